"""What is told of validated folds, before and without any comparison by nnU-Net."""

import json
import math
from pathlib import Path

import pytest

from ctseg.cli.main import main
from tests.support.tiny_trainings import TinyNnunet

UNET = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def write_summary(fold: Path, dice: float) -> None:
    """What nnU-Net leaves of the validation of one case."""
    (fold / "validation").mkdir(parents=True)
    (fold / "validation" / "summary.json").write_text(
        json.dumps(
            {
                "metric_per_case": [{}],
                "mean": {"1": {"Dice": dice}},
                "foreground_mean": {"Dice": dice},
            }
        )
    )


@pytest.fixture
def validated(tiny: TinyNnunet) -> TinyNnunet:
    """Folds 0, 1, 2 and 4, of which the second has no tumour."""
    for fold, dice in ((0, 0.5), (1, math.nan), (2, 0.75), (4, 1.0)):
        write_summary(tiny.results / UNET / f"fold_{fold}", dice)
    (tiny.results / UNET / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumor": 1}}))
    return tiny


def test_results_are_told_by_label_and_fold(validated: TinyNnunet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "301", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert [fold["fold"] for fold in model["folds"]] == ["0", "1", "2", "4"]
    assert [fold["dice"] for fold in model["folds"]] == [{"tumor": d} for d in (0.5, None, 0.75, 1.0)]
    assert main(["results", "301", "-f", "all"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        UNET,
        "  label  fold 0  fold 1  fold 2  fold 4    mean",
        "  tumor  0.5000       -  0.7500  1.0000  0.7500",
        "   mean  0.5000       -  0.7500  1.0000  0.7500",
        "  cases       1       1       1       1        ",
        "  (not validated yet: folds 3)",
    ]


def test_missing_folds_are_told_before_anything_is_compared(
    validated: TinyNnunet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find-best", "301"]) == 2
    said = capsys.readouterr().err
    assert f"{UNET}: folds 3 are not trained and validated (done: 0, 1, 2, 4)" in said
    assert "see -tr, -p, -c, -f" in said
    assert not (validated.results / "best.json").exists()


def test_a_damaged_summary_is_named(validated: TinyNnunet, capsys: pytest.CaptureFixture[str]) -> None:
    file = validated.results / UNET / "fold_2" / "validation" / "summary.json"
    file.write_text("{")
    assert main(["results", "301"]) == 2
    assert f"CheckpointError: {file}: " in capsys.readouterr().err
