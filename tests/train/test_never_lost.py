"""Killed, stopped and starved trainings: what was learnt is still there."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ctseg.cli.main import main
from ctseg.errors import CheckpointError, OutputError, TrainingError
from ctseg.nnunet.checkpoint import read_checkpoint
from ctseg.train.checkpoints import replacing, settle, training_state, write_checkpoint
from ctseg.train.options import Training, TrainingOptions
from ctseg.train.shortages import explaining_full_disk, explaining_full_gpu
from ctseg.train.stopping import StopRequest, TrainingStopped
from tests.support.nnunet_plans import make_plans, swin_architecture
from tests.support.process_groups import assert_nothing_is_left_of_group, living_processes_of_group
from tests.support.tiny_trainings import TinyNnunet
from tests.support.trainers import make_trainer
from tests.support.warm_processes import WarmProcess

TRAINER = "nnUNetTrainerInterrupted"
OUTSIDE = str(Path(__file__).parent / "interrupted_trainer")
TRAIN = ("ctseg", "train", "301", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu")
NO_VALIDATION = {"nnUNet_extTrainer": OUTSIDE, "CTSEG_TEST_NO_VALIDATION": "1"}
SHORT = ("--epochs", "3", "--iterations_per_epoch", "2", "--seed", "1")


def fold_folder(tiny: TinyNnunet, results: str = "results") -> Path:
    return tiny.root / results / tiny.dataset / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"


def test_a_training_killed_in_mid_epoch_continues_to_the_same_weights(tiny: TinyNnunet) -> None:
    (tiny.root / "undisturbed").mkdir()
    elsewhere = str(tiny.root / "undisturbed")
    tiny.run(*TRAIN, *SHORT, "--nnUNet_results", elsewhere, **NO_VALIDATION)
    killed = tiny.run(*TRAIN, *SHORT, check=False, CTSEG_TEST_SIGNAL="9", **NO_VALIDATION)
    assert killed.returncode == -signal.SIGKILL
    folder = fold_folder(tiny)
    latest = read_checkpoint(folder / "checkpoint_latest.pth")
    assert latest["current_epoch"] == 1
    assert latest["_best_ema"] == read_checkpoint(folder / "checkpoint_best.pth")["_best_ema"]
    assert not list(folder.glob("*.part"))

    # --c alone: epochs, steps and seed are those of the checkpoint
    done = tiny.run(*TRAIN, "--c", **NO_VALIDATION)
    assert "checkpoint_latest.pth: 1 epochs are done" in done.stdout
    assert "epoch 1/3" not in done.stdout
    assert "epoch 3/3" in done.stdout
    final = read_checkpoint(folder / "checkpoint_final.pth")
    straight = read_checkpoint(fold_folder(tiny, "undisturbed") / "checkpoint_final.pth")
    assert final["current_epoch"] == straight["current_epoch"] == 3
    assert len(final["logging"]["train_losses"]) == 3
    assert final["logging"]["train_losses"] == pytest.approx(straight["logging"]["train_losses"], rel=1e-6)
    for name, weight in straight["network_weights"].items():
        assert torch.equal(final["network_weights"][name], weight), name
    assert final["trainer_name"] == TRAINER
    assert (folder / "progress.png").stat().st_size > 0


def test_sigterm_saves_and_leaves_with_143(tiny: TinyNnunet) -> None:
    stopped = tiny.run(*TRAIN, *SHORT, check=False, nnUNet_extTrainer=OUTSIDE, CTSEG_TEST_SIGNAL="15")
    assert stopped.returncode == 143, stopped.stderr
    assert "stopped in epoch 2 of 3: saved" in stopped.stderr
    state = training_state(fold_folder(tiny))
    assert state is not None
    assert (state.file.name, state.epochs_done) == ("checkpoint_latest.pth", 1)
    assert state.options == TrainingOptions(
        batch_size=2, lr=0.01, epochs=3, iterations_per_epoch=2, gradient_accumulation_steps=1, seed=1
    )
    options, changes = TrainingOptions(epochs=4, lr=0.01).continued_from(state.options)
    assert changes == ["epochs: 3 so far, 4 from here on"]
    assert (options.epochs, options.seed, options.batch_size) == (4, 1, 2)


@pytest.mark.full
def test_sigterm_in_the_validation_leaves_at_once(tiny: TinyNnunet) -> None:
    stopped = tiny.run(
        *TRAIN, "--epochs", "1", "--iterations_per_epoch", "1", check=False,
        nnUNet_extTrainer=OUTSIDE, CTSEG_TEST_VALIDATION_SIGNAL="15",
    )  # fmt: skip
    assert stopped.returncode == 143, stopped.stderr
    assert "stopped in the validation of fold 0: the weights are saved" in stopped.stderr
    summary = fold_folder(tiny) / "validation" / "summary.json"
    assert (fold_folder(tiny) / "checkpoint_final.pth").is_file()
    assert not summary.exists()
    tiny.run(*TRAIN, "--c", nnUNet_extTrainer=OUTSIDE)
    assert summary.is_file()
    # a training that begins anew is not credited with the validation of the former one
    tiny.run(
        *TRAIN, "--overwrite", "--epochs", "1", "--iterations_per_epoch", "1", check=False,
        nnUNet_extTrainer=OUTSIDE, CTSEG_TEST_VALIDATION_SIGNAL="15",
    )  # fmt: skip
    assert not summary.exists()


@contextlib.contextmanager
def started(tiny: TinyNnunet, *words: str, **more: str) -> Iterator[WarmProcess]:
    """A training that prepares its batches in processes of their own; they are all gone afterwards."""
    process = tiny.start(*TRAIN[1:], *words, **{"nnUNet_extTrainer": OUTSIDE, "nnUNet_n_proc_DA": "2", **more})
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
@pytest.mark.parametrize("how", ["kill -9", "SIGTERM to the group"])
def test_a_training_that_ends_leaves_no_worker_processes_behind(tiny: TinyNnunet, how: str) -> None:
    with started(tiny, "--epochs", "500", "--iterations_per_epoch", "1") as process:
        process.wait_until_said("epoch 1/500")
        assert len(living_processes_of_group(process.pid)) > 2
        if how == "kill -9":
            os.kill(process.pid, signal.SIGKILL)
        else:
            # as systemd and Slurm do; the workers have to stay until the training is saved
            os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == (-9 if how == "kill -9" else 143), process.stderr
        state = training_state(fold_folder(tiny))
        assert state is not None
        # a kill may fall between the best checkpoint of a later epoch and the latest one
        assert state.file.name == "checkpoint_latest.pth" or (how == "kill -9" and state.epochs_done > 1)
        assert state.epochs_done >= 1
        assert_nothing_is_left_of_group(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("where", ["a step", "a loader's process"])
def test_a_training_that_fails_ends_its_worker_processes(tiny: TinyNnunet, where: str) -> None:
    if where == "a step":
        more = {"CTSEG_TEST_FAIL_RANK": "0"}
    else:
        # the only validation case of this fold cannot be read, when the loaders of the training run already
        preprocessed = tiny.root / "damaged"
        shutil.copytree(tiny.root / "preprocessed", preprocessed)
        (preprocessed / tiny.dataset / "nnUNetPlans_3d_fullres" / "tiny0.pkl").unlink()
        splits = [{"train": [f"tiny{i}" for i in range(1, 5)], "val": ["tiny0"]}]
        (preprocessed / tiny.dataset / "splits_final.json").write_text(json.dumps(splits))
        more = {"nnUNet_preprocessed": str(preprocessed)}
    with started(tiny, "--epochs", "2", "--iterations_per_epoch", "1", **more) as process:
        assert process.wait() == 1, process.stdout
        message = "this rank fell over" if where == "a step" else "background workers are no longer alive"
        assert message in process.stderr
        assert_nothing_is_left_of_group(process.pid)


@pytest.mark.full
def test_a_finished_training_goes_on_with_more_epochs(tiny: TinyNnunet) -> None:
    tiny.run(*TRAIN, "--epochs", "1", "--iterations_per_epoch", "1", nnUNet_extTrainer=OUTSIDE)
    done = tiny.run(*TRAIN, "--c", "--epochs", "2", nnUNet_extTrainer=OUTSIDE)
    assert "continued with other values: epochs: 1 so far, 2 from here on" in done.stdout
    assert "epoch 2/2" in done.stdout
    assert len(read_checkpoint(fold_folder(tiny) / "checkpoint_final.pth")["logging"]["lrs"]) == 2


def run_here(*words: str) -> int:
    return main(["train", "301", "3d_fullres", *words, "-device", "cpu"])


def test_continuing_without_a_checkpoint_is_an_error(tiny: TinyNnunet, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("0", "--c") == 2
    assert "fold 0: no checkpoint in" in capsys.readouterr().err
    assert not any(tiny.results.rglob("checkpoint*"))


def write_state(folder: Path, name: str, epochs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / name, {"current_epoch": epochs, "network_weights": {}})


def test_a_training_is_not_begun_anew_by_accident(tiny: TinyNnunet, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.results / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    write_state(folder, "checkpoint_latest.pth", 7)
    assert run_here("0") == 2
    assert "holds 7 epochs already: continue it, or overwrite it, which begins anew" in capsys.readouterr().err
    assert (folder / "checkpoint_latest.pth").is_file()


@pytest.mark.parametrize(
    ("weights", "message"), [("conv.weight", "none of its 1 tensors fits this network"), (None, "no weights found")]
)
def test_overwriting_keeps_the_former_training_where_the_new_one_cannot_start(
    tiny: TinyNnunet, tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str | None, message: str
) -> None:
    folder = tiny.results / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    write_state(folder, "checkpoint_final.pth", 7)
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text("{}")
    torch.save({} if weights is None else {weights: torch.zeros(3)}, tmp_path / "weights.pt")
    assert run_here("0", "--overwrite", "--pretrained_weights", str(tmp_path / "weights.pt")) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.rglob("*")) == ["checkpoint_final.pth", "summary.json", "validation"]
    assert [path.name for path in folder.parent.iterdir()] == ["fold_0"]


def test_overwriting_removes_the_former_training_with_the_first_checkpoint(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    write_state(fold, "checkpoint_final.pth", 7)
    with replacing(fold):
        assert not fold.exists()
        settle(fold.parent / "fold_1")
        assert [path.name for path in tmp_path.iterdir()] == ["replaced_fold_0"]
        write_state(fold, "checkpoint_best.pth", 1)
        settle(fold)
        assert [path.name for path in tmp_path.iterdir()] == ["fold_0"]
    assert [path.name for path in fold.iterdir()] == ["checkpoint_best.pth"]


def test_the_first_saved_checkpoint_settles_the_matter(tiny: TinyNnunet) -> None:
    fold = tiny.results / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    write_state(fold, "checkpoint_final.pth", 7)
    with replacing(fold):
        trainer = make_trainer(tiny, TrainingOptions())
        assert (fold.parent / "replaced_fold_0").is_dir()
        trainer.save_latest()
        assert not (fold.parent / "replaced_fold_0").exists()
    assert [path.name for path in fold.glob("*.pth")] == ["checkpoint_latest.pth"]


def test_what_a_killed_overwriting_left_aside_comes_back(tiny: TinyNnunet, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.results / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    write_state(folder / "replaced_fold_0", "checkpoint_latest.pth", 7)
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "training_log.txt").write_text("killed before its first checkpoint")
    assert run_here("0") == 2
    assert "holds 7 epochs already" in capsys.readouterr().err
    assert [str(path.relative_to(folder)) for path in folder.rglob("*.*")] == ["fold_0/checkpoint_latest.pth"]


def test_a_second_signal_does_not_disturb_the_end_of_a_validation() -> None:
    stop, cleaned_up = StopRequest(), False

    def validate() -> None:
        nonlocal cleaned_up
        with stop.at_once(TrainingStopped("stopped in the validation")):
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                cleaned_up = True

    with stop.on_signals():
        with pytest.raises(TrainingStopped, match="stopped in the validation"):
            validate()
        assert cleaned_up
        cleaned_up = False
        # nor does the validation of the next fold begin
        with pytest.raises(TrainingStopped):
            validate()
        assert not cleaned_up


def test_the_most_advanced_checkpoint_is_continued(tmp_path: Path) -> None:
    assert training_state(tmp_path) is None
    write_state(tmp_path, "checkpoint_final.pth", 10)
    write_state(tmp_path, "checkpoint_latest.pth", 14)
    write_state(tmp_path, "checkpoint_best.pth", 12)
    state = training_state(tmp_path)
    assert state is not None
    assert (state.file.name, state.epochs_done) == ("checkpoint_latest.pth", 14)


def test_a_full_disk_leaves_the_former_checkpoint_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    write_checkpoint(file, {"current_epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(OutputError, match=r"no space left for the checkpoint.*can go on from it") as caught:
            write_checkpoint(file, {"current_epoch": 2, "network_weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.settings == ("resume",)
    assert read_checkpoint(file)["current_epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_disk_that_is_found_full_at_the_very_end_is_told_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    write_checkpoint(file, {"current_epoch": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"no space left for the checkpoint.*can go on from it") as caught:
        write_checkpoint(file, {"current_epoch": 2})
    assert caught.value.settings == ("resume",)
    assert read_checkpoint(file)["current_epoch"] == 1


def test_a_disk_that_nnunet_finds_full_is_told(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "progress.png"))
    with (
        pytest.raises(OutputError, match=r"progress\.png: no space left .*continue the training then"),
        explaining_full_disk(tmp_path),
    ):
        raise full
    with pytest.raises(PermissionError), explaining_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.full
def test_a_training_on_a_full_disk_ends_with_a_message(tiny: TinyNnunet) -> None:
    # the limit takes logs, and no checkpoint
    words = " ".join((sys.executable, "-m", *TRAIN, *SHORT))
    stopped = tiny.run("bash", "-c", f"ulimit -f 64; exec {words}", check=False, nnUNet_extTrainer=OUTSIDE)
    assert stopped.returncode == 2, stopped.stderr
    assert "OutputError: " in stopped.stderr
    assert "no space left" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not list(fold_folder(tiny).glob("checkpoint*"))


def test_an_interrupted_write_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    write_checkpoint(file, {"current_epoch": 1})

    def interrupted(_content: Any, opened: Any) -> None:
        opened.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(file, {"current_epoch": 2}, save=interrupted)
    assert read_checkpoint(file)["current_epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil_was_here"),))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"current_epoch": 1, "network_weights": Evil()}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        training_state(tmp_path)
    assert not (tmp_path / "evil_was_here").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_latest.pth").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match=r"checkpoint_latest\.pth: damaged"):
        training_state(tmp_path)


def test_a_full_gpu_becomes_advice_with_numbers() -> None:
    plans = make_plans(patch_size=(96, 96, 96), architecture=swin_architecture(3))
    training = Training(
        "Dataset301_Tiny", "3d_fullres", (0,), "nnUNetTrainerSwinUNETR", "nnUNetSwinUNETRPlans",
        TrainingOptions(batch_size=4, gradient_accumulation_steps=2),
    )  # fmt: skip
    with pytest.raises(TrainingError) as caught, explaining_full_gpu(training, plans):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    message = str(caught.value)
    assert "batches of 4 patches of 96 x 96 x 96" in message
    assert (
        "a batch size of 2 with 4 gradient accumulation steps takes about half the memory for the same 8 patches"
        in message
    )
    assert "turns gradient checkpointing on" in message
    assert "Tried to allocate 2.00 GiB" in message
