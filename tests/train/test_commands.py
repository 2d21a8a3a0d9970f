"""Every command line of the user's notes, with ``nnUNetv2_X`` read as ``ctseg X``; and the whole road.

The notes' trtexec line, and what became of it, belong to the deployment tests.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ctseg.cli.main import main
from ctseg.nnunet.best_configuration import BestConfiguration
from ctseg.nnunet.checkpoint import read_checkpoint
from ctseg.nnunet.trainers import TRAINERS_FOLDER
from ctseg.train.options import RECORD_KEY
from ctseg.train.swin_unetr import SwinUNETR
from tests.support.swin_weights import published_encoder
from tests.support.tiny_trainings import TinyNnunet, torchrun
from tests.support.warm_processes import WarmProcess

UNET, SWIN = "nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainerSwinUNETR__nnUNetSwinUNETRPlans__3d_fullres"
TRAIN_SWIN = ("train", "301", "3d_fullres", "0", "-tr", "nnUNetTrainerSwinUNETR")
SHORT = ("-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "1")


@pytest.mark.full
def test_five_folds_then_the_best_then_nnunets_own_prediction(
    tiny: TinyNnunet, capsys: pytest.CaptureFixture[str]
) -> None:
    # `nnUNetv2_train XXX 3d_fullres -f all --npz`
    tiny.run("ctseg", "train", "301", "3d_fullres", "-f", "all", "--npz", *SHORT, "--lr", "1e-4")
    for fold in range(5):
        assert (tiny.results / UNET / f"fold_{fold}" / "checkpoint_final.pth").is_file()
        assert len(list((tiny.results / UNET / f"fold_{fold}" / "validation").glob("*.npz"))) == 1

    assert main(["results", "301", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [fold["fold"] for fold in table["models"][0]["folds"]] == ["0", "1", "2", "3", "4"]
    assert list(table["models"][0]["folds"][0]["dice"]) == ["tumor"]
    assert main(["results", "301"]) == 0
    assert "  label  fold 0  fold 1  fold 2  fold 3  fold 4    mean" in capsys.readouterr().out

    # `nnUNetv2_find_best_configuration XXX -c 3d_fullres`
    said = tiny.run("ctseg", "find_best_configuration", "301", "-c", "3d_fullres").stdout
    best = BestConfiguration.read(tiny.results / "best.json")
    assert (best.members[0].folder_name, best.folds, best.is_ensemble) == (UNET, (0, 1, 2, 3, 4), False)
    merged = tiny.results / UNET / "crossval_results_folds_0_1_2_3_4"
    own = json.loads((merged / "postprocessing.json").read_text())
    assert len(best.postprocessing) == len(own["postprocessing_fns"])
    assert best.dice == pytest.approx(own["input_folder"]["foreground_mean"]["Dice"])
    assert "next: `ctseg export --from" in said

    # nnU-Net's own command takes what ctseg trained
    (tiny.root / "in").mkdir()
    shutil.copy(tiny.root / "raw" / tiny.dataset / "imagesTr" / "tiny0_0000.nii.gz", tiny.root / "in")
    predict = str(Path(sys.executable).parent / "nnUNetv2_predict")
    tiny.run(
        predict, "-d", "301", "-i", str(tiny.root / "in"), "-o", str(tiny.root / "out"), "-c", "3d_fullres",
        "-f", "0", "1", "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1",
    )  # fmt: skip
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tiny.root / "out" / "tiny0.nii.gz")))
    assert labels.shape == (24, 48, 48)
    assert set(np.unique(labels)) <= {0, 1}

    # missing folds are told before anything is compared
    shutil.rmtree(tiny.results / UNET / "fold_3")
    assert main(["find-best", "301"]) == 2
    assert f"{UNET}: folds 3 are not trained and validated (done: 0, 1, 2, 4)" in capsys.readouterr().err


def train_until_the_first_epoch_is_over(tiny: TinyNnunet, number: signal.Signals, *words: str) -> WarmProcess:
    """Train fold 0 of the Swin UNETR, send a signal after the first epoch, and wait for the end."""
    process = tiny.start(*TRAIN_SWIN, *words, "-device", "cpu", "--iterations_per_epoch", "1")
    process.wait_until_said("epoch 1/500")
    os.kill(process.pid, number)
    process.wait()
    return process


def test_the_notes_training_line_with_every_option_until_sigterm(tiny: TinyNnunet) -> None:
    # `nnUNetv2_train XXX 3d_fullres 0 -tr nnUNetTrainerSwinUNETR --batch_size 2 --lr 1e-4 --epochs 500 --amp
    #  --gradient_accumulation_steps 4`, shortened by --iterations_per_epoch and stopped from outside
    process = train_until_the_first_epoch_is_over(
        tiny, signal.SIGTERM, "--batch_size", "2", "--lr", "1e-4", "--epochs", "500", "--amp",
        "--gradient_accumulation_steps", "4",
    )  # fmt: skip
    assert process.wait() == 143, process.stderr
    assert "left" in next(line for line in process.stdout.splitlines() if line.startswith("epoch 1/500"))
    checkpoint = read_checkpoint(tiny.results / SWIN / "fold_0" / "checkpoint_latest.pth")
    record = checkpoint[RECORD_KEY]
    assert checkpoint["trainer_name"] == "nnUNetTrainerSwinUNETR"
    assert {key: record[key] for key in ("batch_size", "lr", "epochs", "amp", "gradient_accumulation_steps")} == {
        "batch_size": 2, "lr": 1e-4, "epochs": 500, "amp": True, "gradient_accumulation_steps": 4,
    }  # fmt: skip


@pytest.mark.full
def test_a_killed_training_of_the_swin_unetr_continues(tiny: TinyNnunet) -> None:
    process = train_until_the_first_epoch_is_over(tiny, signal.SIGKILL, "--epochs", "500", "--lr", "2e-4")
    assert process.wait() == -9, process.stderr
    checkpoint = read_checkpoint(tiny.results / SWIN / "fold_0" / "checkpoint_latest.pth")
    # with the values of the checkpoint, except those that are given
    done = tiny.run("ctseg", *TRAIN_SWIN, "--c", "-device", "cpu", "--epochs", "2")
    assert "checkpoint_latest.pth: 1 epochs are done" in done.stdout
    assert "continued with other values: epochs: 500 so far, 2 from here on" in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("epoch ")] == ["2/2"]
    final = read_checkpoint(tiny.results / SWIN / "fold_0" / "checkpoint_final.pth")
    assert final["current_epoch"] == 2
    losses = final["logging"]["train_losses"]
    assert losses[0] == checkpoint["logging"]["train_losses"][0]
    assert losses[1] < losses[0] + 0.5
    assert {**checkpoint[RECORD_KEY], "epochs": 2} == final[RECORD_KEY]
    assert final[RECORD_KEY]["lr"] == 2e-4
    assert next(iter(final["optimizer_state"]["state"].values()))["step"] == 2
    assert len(list((tiny.results / SWIN / "fold_0" / "validation").glob("*.nii.gz"))) == 1


@pytest.mark.full
def test_pretrained_weights_are_what_the_training_begins_with(tiny: TinyNnunet, tmp_path: Path) -> None:
    plans = json.loads((tiny.root / "preprocessed" / tiny.dataset / "nnUNetSwinUNETRPlans.json").read_text())
    network = SwinUNETR(1, 2, **plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"])
    weights = published_encoder(network)
    torch.save({"state_dict": weights}, tmp_path / "ssl.pt")
    # the rate is so small that the weights stay what they were
    done = tiny.run(
        "ctseg", "train", "301", "3d_fullres", "0", "-tr", "nnUNetTrainerSwinUNETR", *SHORT, "--lr", "1e-12",
        "--pretrained_weights", str(tmp_path / "ssl.pt"),
    )  # fmt: skip
    loaded = len(network.swinViT.state_dict())
    assert f"ssl.pt: {loaded} tensors loaded" in done.stdout
    assert "not loaded: out.conv.conv.weight (not in the file)" in done.stdout
    assert "not used: module.rotation_head.weight" in done.stdout
    trained = read_checkpoint(tiny.results / SWIN / "fold_0" / "checkpoint_final.pth")["network_weights"]
    for name in ("patch_embed.proj.weight", "layers3.0.blocks.0.attn.qkv.weight"):
        torch.testing.assert_close(trained[f"swinViT.{name}"], weights[f"module.{name}"], rtol=0, atol=1e-9)

    # a file for another network is refused, and no checkpoint is left behind
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    refused = tiny.run(
        "ctseg", "train", "301", "3d_fullres", "1", "-tr", "nnUNetTrainerSwinUNETR", *SHORT,
        "--pretrained_weights", str(tmp_path / "other.pt"), check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "none of its 1 tensors fits this network" in refused.stderr
    assert not list((tiny.results / SWIN / "fold_1").glob("checkpoint*"))


def test_torchrun_with_two_processes_trains_and_validates(tiny: TinyNnunet) -> None:
    # `torchrun --nproc_per_node=2 … --distributed=ddp`
    tiny.run(*torchrun(2, "-m", "ctseg", "train", "301", "3d_fullres", "0", *SHORT), "--distributed=ddp")
    folder = tiny.results / UNET / "fold_0"
    assert read_checkpoint(folder / "checkpoint_final.pth")[RECORD_KEY]["world_size"] == 2
    assert len(json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]) == 1


def test_positional_all_is_refused_and_full_is_fold_all(tiny: TinyNnunet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "301", "3d_fullres", "all", "-device", "cpu"]) == 2
    assert "`-f all` trains the five folds" in capsys.readouterr().err
    assert not any(tiny.results.iterdir() if tiny.results.is_dir() else [])


@pytest.mark.full
def test_full_trains_on_every_case(tiny: TinyNnunet) -> None:
    tiny.run("ctseg", "train", "301", "3d_fullres", "full", *SHORT)
    assert (tiny.results / UNET / "fold_all" / "checkpoint_final.pth").is_file()
    assert len(list((tiny.results / UNET / "fold_all" / "validation").glob("*.nii.gz"))) == 5


@pytest.fixture
def unplanned(tiny: TinyNnunet, tmp_path: Path) -> TinyNnunet:
    """The raw data set in folders of its own: planning would replace the small plans of the others."""
    root = tmp_path / "own"
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(parents=True)
    shutil.copytree(tiny.root / "raw" / tiny.dataset, root / "raw" / tiny.dataset)
    return TinyNnunet(root)


@pytest.mark.full
def test_plan_and_preprocess_then_swin_without_p(unplanned: TinyNnunet) -> None:
    # `nnUNetv2_verify_dataset_integrity -d XXX`, `nnUNetv2_plan_and_preprocess -d XXX --verify_dataset_integrity`
    unplanned.run("ctseg", "verify_dataset_integrity", "-d", "301")
    unplanned.run(
        "ctseg", "plan_and_preprocess", "-d", "301", "--verify_dataset_integrity",
        "-c", "3d_fullres", "--gpu_memory_gb", "1.6",
    )  # fmt: skip
    # `nnUNetv2_train XXX 3d_fullres 0 -tr nnUNetTrainerSwinUNETR`, without -p
    unplanned.run("ctseg", "train", "301", "3d_fullres", "0", "-tr", "nnUNetTrainerSwinUNETR", *SHORT)
    assert (unplanned.results / SWIN / "fold_0" / "checkpoint_final.pth").is_file()


@pytest.mark.full
def test_a_residual_encoder_is_planned_and_trained_by_name(unplanned: TinyNnunet) -> None:
    plan = ("ctseg", "plan", "-d", "301", "-pl", "nnUNetPlannerResEncM", "-c", "3d_fullres", "--gpu_memory_gb", "1")
    assert "train with -p nnUNetResEncUNetMPlans" in unplanned.run(*plan).stdout
    unplanned.run("ctseg", "train", "301", "3d_fullres", "0", "-p", "nnUNetResEncUNetMPlans", *SHORT)
    fold = unplanned.results / "nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres" / "fold_0"
    weights = read_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    assert "encoder.stages.0.blocks.0.conv1.conv.weight" in weights
    assert (fold / "validation" / "summary.json").is_file()


@pytest.mark.full
def test_nnunets_own_train_command_finds_the_trainer_on_foreign_plans(tiny: TinyNnunet) -> None:
    # its 1000 epochs are not for a test: it is stopped once the first batch is through the network
    train = str(Path(sys.executable).parent / "nnUNetv2_train")
    environment = {**tiny.environment, "nnUNet_extTrainer": str(TRAINERS_FOLDER), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [train, "301", "3d_fullres", "0", "-tr", "nnUNetTrainerSwinUNETR", "-p", "nnUNetPlans", "-device", "cpu"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Current learning rate" in line:
                os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    assert any("Using trainer 'nnUNetTrainerSwinUNETR' from:" in line for line in said)
    assert any("Current learning rate" in line for line in said), "".join(said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "301", "3d_fullres"], "give the folds once"),
        (["train", "301", "3d_fullres", "0", "-f", "1"], "give the folds once"),
        (["train", "301", "3d_fullres", "-tr", "nnUNetTrainer", "0", "--lr", "1", "--c"], "fold 0: no checkpoint"),
        (["train", "301", "3d_fullres", "0", "--c", "--val"], "--c cannot go with --val"),
        (["train", "301", "3d_fullres", "0", "--epochs", "0"], "epochs must be positive, found 0 (see --epochs)"),
        (["train", "301", "3d_lowres", "0"], "have no configuration '3d_lowres'"),
        (["train", "301", "3d_fulres", "0"], "did you mean 3d_fullres?"),
        (["train", "301", "3d_fullres", "0", "-p", "nnUNetPlan"], "did you mean nnUNetPlans?"),
        (
            ["train", "301", "3d_fullres", "0", "-tr", "nnUNetTrainer_250epoch"],
            "mean nnUNetTrainer_250epochs? (see -tr)",
        ),
        (["train", "301", "3d_fullres", "0", "-p", "myPlans"], "no plans 'myPlans'"),
        (["train", "999", "3d_fullres", "0"], "data set 999: no such data set"),
        (["train", "301", "3d_fullres", "0", "--distributed=ddp"], "torchrun --nproc_per_node=2"),
        (["train", "301", "3d_fullres", "0", "--pretrained_weights", "gone.pt"], "gone.pt: no such file"),
        (["train", "301", "3d_fullres", "0", "--val"], "there is nothing to validate"),
        (["find-best", "301"], "nothing trained"),
        (["results", "301", "-tr", "nnUNetTrainerX"], "nothing trained for trainer nnUNetTrainerX"),
    ],
)
def test_wrong_usage_is_told_before_any_work(
    tiny: TinyNnunet, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    device = ["-device", "cpu"] if words[0] == "train" else []
    assert main([*words, *device]) == 2
    assert message in capsys.readouterr().err


def test_missing_folders_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "gone"))
    assert main(["train", "301", "3d_fullres", "0"]) == 2
    said = capsys.readouterr().err
    assert "nnUNet_preprocessed (plans and preprocessed cases) is not set" in said
    assert f"nnUNet_results (trained models): {tmp_path / 'gone'} does not exist" in said
    (tmp_path / "file").write_text("")
    assert main(["dataset", "verify", "-d", "1", "--nnUNet_raw", str(tmp_path / "file")]) == 2
    assert "is a file, expected a folder" in capsys.readouterr().err
