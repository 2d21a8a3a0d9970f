"""A data set small enough to train on within seconds: crops of the repository's real CT."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tests.support.nnunet_plans import swin_architecture, unet_architecture
from tests.support.warm_processes import WarmProcess, run_ctseg

DEMO_DATA = Path(__file__).parents[2] / "examples" / "demo_data"

CASES = 5
CROP_ZYX = (24, 48, 48)


@dataclass(frozen=True)
class TinyNnunet:
    """nnU-Net's folders with a planned, preprocessed ``Dataset301_Tiny``."""

    root: Path
    dataset: str = "Dataset301_Tiny"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a user whose machine is small."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")},
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }

    @property
    def results(self) -> Path:
        """Where the trained models of the data set lie."""
        return self.root / "results" / self.dataset

    def start(self, *words: str, **more: str) -> WarmProcess:
        """Begin ``ctseg WORDS`` with this environment, in a process of its own."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        return WarmProcess(run_ctseg, (words,), {**self.environment, **more}, folder)

    def run(self, *words: str, check: bool = True, timeout_s: float = 500, **more: str) -> subprocess.CompletedProcess:
        """Run a command line with this environment; ``ctseg`` runs in a process that has imported everything."""
        if words[0] == "ctseg":
            process = self.start(*words[1:], **more)
            code = process.wait(timeout_s)
            done = subprocess.CompletedProcess(words, code, process.stdout, process.stderr)
        else:
            done = subprocess.run(
                words, env={**self.environment, **more}, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        assert not check or done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done


def torchrun(processes: int, *words: str) -> list[str]:
    """A command line of ``torchrun``."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *words]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def write_pairs(folder: Path, cases: int = CASES) -> None:
    """Write ``tinyN_ct.nii.gz`` and ``tinyN_gtv.nii.gz``, crops round the tumours of the demo's patients."""
    folder.mkdir(parents=True)
    patients = sorted((DEMO_DATA / "labels").glob("*.nii.gz"))
    for i in range(cases):
        image, label = _crop_of(patients[i % len(patients)], shift=i // len(patients))
        sitk.WriteImage(image, str(folder / f"tiny{i}_ct.nii.gz"), True)
        sitk.WriteImage(label, str(folder / f"tiny{i}_gtv.nii.gz"), True)


def _crop_of(file: Path, *, shift: int) -> tuple[sitk.Image, sitk.Image]:
    """Cut a piece round the middle of the tumour, some slices and voxels further on for another one."""
    label = sitk.ReadImage(str(file))
    image = sitk.ReadImage(str(DEMO_DATA / "images" / file.name.replace(".nii.gz", "_0000.nii.gz")))
    where = np.argwhere(sitk.GetArrayViewFromImage(label) == 1).mean(axis=0) + shift * np.array([3, 7, 5])
    shape = image.GetSize()[::-1]
    start = [int(np.clip(c - n / 2, 0, s - n)) for c, n, s in zip(where, CROP_ZYX, shape, strict=True)]
    size, index = CROP_ZYX[::-1], start[::-1]
    return tuple(sitk.RegionOfInterest(part, size, index) for part in (image, label))


def small_swin_architecture() -> dict[str, Any]:
    """A Swin UNETR that a CPU trains: the narrowest, with one block a stage and small windows."""
    architecture = swin_architecture(3)
    architecture["arch_kwargs"].update(depths=[1, 1, 1, 1], window_size=4)
    return architecture


def write_small_plans(preprocessed: Path) -> None:
    """Write ``nnUNetSwinUNETRPlans`` and ``nnUNetPlans`` with patches and networks that a CPU trains in no time."""
    source = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    for name, architecture in (
        ("nnUNetSwinUNETRPlans", small_swin_architecture()),
        ("nnUNetPlans", unet_architecture(3, features=(4, 8, 8))),
    ):
        plans: dict[str, Any] = json.loads(json.dumps(source))
        plans["plans_name"] = name
        configuration = plans["configurations"]["3d_fullres"]
        configuration.update(patch_size=[32, 32, 64], batch_size=2, architecture=architecture, batch_dice=False)
        plans["configurations"] = {"3d_fullres": configuration}
        (preprocessed / f"{name}.json").write_text(json.dumps(plans))


@dataclass(frozen=True)
class PlannedNnunet:
    """The data set as ``ctseg dataset create`` and ``ctseg plan`` leave it.

    Attributes:
        tiny: Its folders; the plans are the planners' own.
        said: What ``ctseg plan`` printed.
    """

    tiny: TinyNnunet
    said: str


def make_planned(root: Path) -> PlannedNnunet:
    """Create, plan and preprocess the data set by ctseg's own commands."""
    tiny = TinyNnunet(root)
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(parents=True)
    write_pairs(root / "pairs")
    pairs = str(root / "pairs")
    tiny.run(
        "ctseg", "dataset", "create", "-d", "301", "--name", "Tiny", "--images", pairs, "--labels", pairs,
        "--image_suffix", "_ct", "--label_suffix", "_gtv", "--label", "tumor=1",
    )  # fmt: skip
    planned = tiny.run("ctseg", "plan", "-d", "301", "-c", "3d_fullres", "--gpu_memory_gb", "16", "-np", "1")
    return PlannedNnunet(tiny, planned.stdout)


def with_small_plans(planned: TinyNnunet, root: Path) -> TinyNnunet:
    """Copy a planned data set, and give it plans that a CPU trains in no time."""
    tiny = TinyNnunet(root)
    shutil.copytree(planned.root / "preprocessed", root / "preprocessed")
    (root / "raw").symlink_to(planned.root / "raw")
    (root / "results").mkdir()
    write_small_plans(root / "preprocessed" / tiny.dataset)
    return tiny
