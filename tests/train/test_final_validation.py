"""The final validation as asked: skipped, unmirrored, of the best checkpoint; and which folds there are."""

import json
from pathlib import Path

import pytest

from ctseg.cli.main import main
from ctseg.train.options import TrainingOptions
from ctseg.train.validation import CaseCounter, validation_as_asked
from tests.support.tiny_trainings import TinyNnunet
from tests.support.trainers import make_trainer

OUTSIDE = str(Path(__file__).parent / "interrupted_trainer")
TRAIN = ("ctseg", "train", "301", "3d_fullres", "0", "-tr", "nnUNetTrainerInterrupted", "-device", "cpu")


def test_a_training_tells_little_and_its_validation_is_as_asked(tiny: TinyNnunet) -> None:
    trained = tiny.run(
        *TRAIN, "--epochs", "1", "--iterations_per_epoch", "1", "--skip_validation", nnUNet_extTrainer=OUTSIDE
    )
    fold = tiny.results / "nnUNetTrainerInterrupted__nnUNetPlans__3d_fullres" / "fold_0"
    assert not (fold / "validation").exists()
    first, epoch, last = trained.stdout.splitlines()
    (log,) = fold.glob("training_log_*.txt")
    assert first == (
        "fold 0: 4 cases to train on, 1 to validate with; epochs of 1 steps with 2 patches of 32 x 32 x 64 on cpu; "
        f"the log is {log}"
    )
    assert epoch.startswith("epoch 1/1  loss ")
    assert last == "fold 0 is not validated: `ctseg results` and `ctseg find-best` need that"
    assert "These are the global plan.json settings" in log.read_text()

    # only the best checkpoint is there, so that it is what is validated
    (fold / "checkpoint_final.pth").unlink()
    done = tiny.run(*TRAIN, "--val", "-val_best", "--disable_tta", nnUNet_extTrainer=OUTSIDE)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    case, last = done.stdout.splitlines()  # and nothing of nnU-Net's own
    assert case == "validation of fold 0: case 1 of 1, tiny0"
    assert last == (
        f"validation of fold 0: mean Dice {summary['foreground_mean']['Dice']:.4f} of 1 case  "
        f"({fold / 'validation' / 'summary.json'})"
    )
    logs = "".join(file.read_text() for file in sorted(fold.glob("training_log_*.txt")))
    assert "validated with weights of epoch 1, mirrored along None" in logs


def test_cases_are_told_with_the_time_left_but_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ctseg.train.validation.time.monotonic", lambda: now)
    told: list[str] = []
    counter = CaseCounter(told.append, "validation of fold 2")
    for case in range(40):
        counter.begin(f"c{case}", 40)
        now += 4.0
    assert told[0] == "validation of fold 2: case 1 of 40, c0"
    # three cases took 12 s, and 37 are left
    assert told[1] == "validation of fold 2: case 4 of 40, c3, left 2 min"
    assert told[-1] == "validation of fold 2: case 40 of 40, c39, left 4 s"
    assert len(told) == 14


def test_a_trainer_is_as_before_after_its_validation(tiny: TinyNnunet) -> None:
    trainer = make_trainer(tiny, TrainingOptions())
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    before = trainer.dataset_class, trainer.inference_allowed_mirroring_axes
    told: list[str] = []
    with validation_as_asked(trainer, CaseCounter(told.append, "v"), mirrored=True):
        assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)
        dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, ["tiny3", "tiny1"])
        assert dataset.load_case("tiny3")[0].shape == (1, 24, 48, 48)
    with validation_as_asked(trainer, CaseCounter(told.append, "v"), mirrored=False):
        assert trainer.inference_allowed_mirroring_axes is None
    assert (trainer.dataset_class, trainer.inference_allowed_mirroring_axes) == before
    assert told == ["v: case 1 of 2, tiny3"]


@pytest.mark.parametrize("words", [["7"], ["-f", "0", "7"]])
def test_a_fold_that_the_splits_do_not_have_is_refused(
    tiny: TinyNnunet, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["train", "301", "3d_fullres", *words, "-device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "there is no fold 7: " in said
    assert "has folds 0 to 4; `full` trains on every case" in said
    assert not any(tiny.results.rglob("*"))


def with_preprocessed(tiny: TinyNnunet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same preprocessed cases, in a folder that may be changed."""
    there = tiny.root / "preprocessed" / tiny.dataset
    mine = folder / "mine" / tiny.dataset
    mine.mkdir(parents=True)
    for path in there.iterdir():
        (mine / path.name).symlink_to(path)
    (mine / "splits_final.json").unlink(missing_ok=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(mine.parent))
    return mine


def test_folds_of_ones_own_splits_are_known(
    tiny: TinyNnunet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = with_preprocessed(tiny, tmp_path, monkeypatch)
    (mine / "splits_final.json").write_text(json.dumps([{"train": ["tiny0"], "val": ["tiny1"]}] * 2))
    assert main(["train", "301", "3d_fullres", "-f", "all", "-device", "cpu"]) == 2
    assert "there is no fold 2, 3, 4:" in (said := capsys.readouterr().err)
    assert "splits_final.json has folds 0 to 1" in said
    (mine / "splits_final.json").write_text("{")
    assert main(["train", "301", "3d_fullres", "0", "-device", "cpu"]) == 2
    assert "splits_final.json: not a list of folds" in capsys.readouterr().err


def test_too_few_cases_for_five_folds_are_told_before_any_work(
    tiny: TinyNnunet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = with_preprocessed(tiny, tmp_path, monkeypatch)
    data = mine / "nnUNetPlans_3d_fullres"
    cases = list(data.iterdir())
    data.unlink()
    data.mkdir()
    for file in cases:
        if not file.name.startswith("tiny4"):
            (data / file.name).symlink_to(file.resolve())
    assert main(["train", "301", "3d_fullres", "0", "-device", "cpu"]) == 2
    assert "4 cases are fewer than the five folds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("301 0 3d_fullres", "'0' stands where the configuration goes: `ctseg train 301 3d_fullres 0`"),
        ("301 3d_fullres -f -1", "fold '-1' is unknown: give a number"),
        ("301 3d_fullres 0 --val --skip_validation", "--skip_validation cannot go with --val"),
        ("301 3d_fullres 0 --c --disable_checkpointing", "--disable_checkpointing cannot go with --c"),
        ("301 3d_fullres 0 -num_gpus 2", "torchrun --nproc_per_node=2 -m ctseg train"),
        ("Tiny 3d_fullres 0", "or a name (Dataset101_Name); found: Dataset301_Tiny"),
        ("301 3d_fullres 0 -device cpu --val --val_best", "checkpoint_best.pth is missing, so there is nothing"),
        ("301 3d_fullres 0 -device cpu -tr nnUNetTrainerNone", "trainer 'nnUNetTrainerNone' is unknown"),
    ],
)
def test_what_newcomers_mistype_is_told(
    tiny: TinyNnunet, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    assert main(["train", *words.split()]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
