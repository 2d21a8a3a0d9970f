"""The training image: from raw files to a proven bundle, and the same outside any container."""

import json
import shlex
import sys
from pathlib import Path

import nibabel
import numpy as np

from scripts.check_images.claims import claim, step
from scripts.check_images.data import give_to
from scripts.check_images.machine import MODEL, TRAINER_USER, Machine


def train_and_export(machine: Machine, data: Path) -> None:
    """Create, verify, plan, train, export: the training image, without a network."""
    common = ["--network", "none", "--user", TRAINER_USER, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for name in folders:
        (data / name).mkdir()
    give_to(data, TRAINER_USER)
    step("data set from six pieces of real CT")
    mounts = [word for name in (*folders, "images", "labels") for word in ("-v", f"{data / name}:/data/{name}")]
    machine.podman(
        "run", "--rm", *common, *mounts, "localhost/ci/train", "dataset", "create", "-d", "101", "--name", "Pieces",
        "--images", "/data/images", "--labels", "/data/labels", "--label", "tumor=1",
    )  # fmt: skip
    step("scripts/train.sh: plan, train")
    road = {"DATA": str(data), "RUN_AS": TRAINER_USER, "SHM_SIZE": "1g"}
    log = machine.run(
        "scripts/train.sh", "101", "3d_fullres", "0", "-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "2",
        PLAN="-c 3d_fullres -pl ExperimentPlanner -np 2", **road,
    ).stdout  # fmt: skip
    results = data / "nnUNet_results" / "Dataset101_Pieces"
    final = next(iter(results.rglob("checkpoint_final.pth")), None)
    claim("a training without network, on a read-only root, leaves its checkpoint", final is not None, log[-2000:])
    owners = {path.stat().st_uid for path in results.rglob("*")}
    claim("files belong to the caller, whose id has no account", owners == {12345}, owners)
    compile_in_training(machine, road)
    in_training = [*common, "--shm-size", "1g", *mounts]
    step("torchrun: a fold on two processes")
    log = machine.podman(
        "run", "--rm", *in_training, "localhost/ci/train", "torchrun", "--nproc_per_node=2", "-m", "ctseg", "train",
        "101", "3d_fullres", "1", "-device", "cpu", "--distributed=ddp", "--epochs", "1", "--iterations_per_epoch", "1",
    )  # fmt: skip
    finals = sorted(path.parent.name for path in results.rglob("checkpoint_final.pth"))
    claim(
        "two processes under torchrun leave one checkpoint", finals == ["fold_0", "fold_1"], f"{finals} {log[-2000:]}"
    )
    step("pages of the data set and of its training")
    for words, folder, page in (
        (("dataset", "overview", "-d", "101"), "nnUNet_preprocessed", "overview.html"),
        (("results", "101", "--html"), "nnUNet_results", "results.html"),
    ):
        said = machine.podman("run", "--rm", *in_training, "localhost/ci/train", *words)
        text = (data / folder / "Dataset101_Pieces" / page).read_text(encoding="utf-8")
        claim(f"ctseg {words[0]} shows pictures in {page}", "data:image/" in text, said)
    step("nnUNetv2_predict, nnU-Net's own command")
    machine.podman(
        "run", "--rm", *in_training, "-v", f"{data / 'nnunet_scans'}:/scans:ro", "-v", f"{data / 'nnunet'}:/labels",
        "localhost/ci/train", "nnUNetv2_predict", "-i", "/scans", "-o", "/labels", "-d", "101", "-c", "3d_fullres",
        "-f", "0", "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1",
    )  # fmt: skip
    step("scripts/export_and_build.sh: export, build")
    (data / "bundles").chmod(0o755)
    give_to(data / "models", TRAINER_USER)
    machine.run(
        "scripts/export_and_build.sh", "101", "3d_fullres", MODEL, "-f", "0", MODELS=str(data / "models"),
        BACKEND="python", BUILD="--runtime onnxruntime", **road,
    )  # fmt: skip
    state = json.loads((data / "models" / MODEL / "ctseg.json").read_text())["parity"]["state"]
    claim("the built entry is proven", state == "proven", state)
    program = ("python", "-c", "import nnunetv2, torch; print(torch.__version__)")
    versions = machine.podman("run", "--rm", *common, "localhost/ci/train", *program)
    claim("a first word that is a program is run", "2.13.0" in versions, versions)
    trainer = machine.podman(
        "run", "--rm", *common, "localhost/ci/train", "python", "-c",
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as f; "
        "print(f('nnUNetTrainerSwinUNETR').__name__)",
    )  # fmt: skip
    claim("nnU-Net itself finds the Swin UNETR trainer", trainer.endswith("nnUNetTrainerSwinUNETR"), trainer)


def compile_in_training(machine: Machine, road: dict[str, str]) -> None:
    """Compile in a container as train.sh starts it, at a second call, which plans nothing."""
    step("scripts/train.sh: torch.compile in its container")
    engine = machine.scratch / "engine"  # train.sh's own flags, another program
    program = "import torch; print(float(torch.compile(lambda x: (2 * x + 1).relu().sum())(torch.ones(1000))))"
    engine.write_text(
        '#!/bin/bash\nwhile [[ $1 != "$TRAIN_IMAGE" ]]; do words+=("$1"); shift; done\n'
        f'echo "asked: $2"\nexec podman "${{words[@]}}" "$TRAIN_IMAGE" python -c {shlex.quote(program)}\n'
    )
    engine.chmod(0o755)
    said = machine.run("scripts/train.sh", "101", "3d_fullres", "0", ENGINE=str(engine), **road).stdout
    claim("a second call of train.sh plans nothing anew", "asked: train" in said and "asked: plan" not in said, said)
    claim("torch.compile works where a training runs", "3000.0" in said, said[-2000:])


def embedded_labels(machine: Machine, data: Path) -> np.ndarray:
    """Segment the scan with a server of ctseg's own, outside any container."""
    step("the embedded run on the host")
    ctseg = [sys.executable, "-m", "ctseg"]
    machine.run(*ctseg, "build", data / "bundles" / MODEL, "--repository", data / "own", "--runtime", "onnxruntime")
    machine.run(
        *ctseg, "predict", "-i", data / "scans", "-o", data / "embedded", "-m", MODEL, "--repository", data / "own",
        "--disable_tta",
    )  # fmt: skip
    labels = np.asarray(nibabel.load(data / "embedded" / "chest.nii.gz").dataobj)
    nnunet = np.asarray(nibabel.load(data / "nnunet" / "chest.nii.gz").dataobj)
    # stock nnU-Net rounds its logits to float16, which decides ties; a network of two iterations is full of them
    equal = float(np.mean(labels == nnunet))
    claim(f"{100 * equal:.3f} % of the voxels are those of nnU-Net in the training image", equal >= 0.995, equal)
    claim("which finds something", 0 < np.mean(nnunet) < 1, np.mean(nnunet))
    return labels
