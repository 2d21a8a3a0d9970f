"""What is told of validated folds, before and without any comparison by nnU-Net."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
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
        "  (not validated yet: fold 3: no epoch is done)",
        "  (no surfaces of folds 0, 1, 2, 4: the label maps of the validation are gone)",
    ]


def test_a_fold_without_a_validation_is_refused_with_what_to_do(
    validated: TinyNnunet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", "301", "-f", "3"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert (
        f"none of the folds that were asked for is validated ({UNET}: fold 3: no epoch is done): "
        "`ctseg train 301 3d_fullres 3` trains and validates it"
    ) in told.err
    assert main(["results", "301", "-f", "3", "0"]) == 0
    assert "(not validated yet: fold 3: no epoch is done)" in capsys.readouterr().out


def test_missing_folds_are_told_before_anything_is_compared(
    validated: TinyNnunet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find-best", "301"]) == 2
    said = capsys.readouterr().err
    assert f"{UNET}: fold 3 is not trained and validated (done: 0, 1, 2, 4)" in said
    assert "see -tr, -p, -c, -f" in said
    assert not (validated.results / "best.json").exists()


@pytest.mark.parametrize("folds", [["9"], ["0", "9"]])
def test_a_fold_that_there_is_not_is_told_with_those_that_are(
    validated: TinyNnunet, capsys: pytest.CaptureFixture[str], folds: list[str]
) -> None:
    assert main(["find-best", "301", "-f", *folds]) == 2
    said = capsys.readouterr().err
    assert "no model has a fold 9, and nnU-Net's are 0 to 4: trained and validated are" in said
    assert f"of {UNET} 0, 1, 2, 4" in said
    assert said.rstrip().endswith("(see -f)")
    assert main(["find-best", "301", "-c", "3d_fulres"]) == 2
    assert "did you mean 3d_fullres?" in capsys.readouterr().err


def test_a_damaged_summary_is_named(validated: TinyNnunet, capsys: pytest.CaptureFixture[str]) -> None:
    file = validated.results / UNET / "fold_2" / "validation" / "summary.json"
    file.write_text("{")
    assert main(["results", "301"]) == 2
    assert f"CheckpointError: {file}: " in capsys.readouterr().err


def write_labels(path: Path, end: int) -> None:
    labels = np.zeros((12, 11, 13), np.uint8)
    labels[3:7, 3:7, 2:end] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 2.0, 3.0, 1.0])), path)


@pytest.fixture
def with_label_maps(validated: TinyNnunet) -> tuple[TinyNnunet, Path]:
    """Folds 0 and 1 with a label map each, which ends two and four slices before the data set's."""
    for name in ("raw", "preprocessed"):  # other tests read the data set, too: this one is changed
        shared = (validated.root / name).resolve()
        (validated.root / name).unlink()
        shutil.copytree(shared, validated.root / name)
    shutil.rmtree(validated.results / UNET / "fold_4")
    shutil.rmtree(validated.results / UNET / "fold_2")
    references = validated.root / "preprocessed" / validated.dataset / "gt_segmentations"
    for fold, end in ((0, 8), (1, 6)):
        write_labels(validated.results / UNET / f"fold_{fold}" / "validation" / f"case{fold}.nii.gz", end)
        write_labels(references / f"case{fold}.nii.gz", 10)
    write_labels(references / "of_another_fold.nii.gz", 10)
    return validated, references


def told(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["results", "301", "--json", *more]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    return dict(model)


def test_surfaces_are_those_of_all_folds_and_stand_below_the_dice(
    with_label_maps: tuple[TinyNnunet, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (surfaces,) = told(capsys)["surfaces"]
    assert (surfaces["label"], surfaces["cases"], surfaces["hd95_mm"]) == ("tumor", 2, 9.0)  # of 6 and 12 mm
    assert main(["results", "301"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  surfaces, over the cases of all folds" in lines
    assert lines[-1].split()[:2] == ["tumor", "9.00"]
    assert told(capsys, "--no_surfaces")["surfaces"] == []


def test_unchanged_label_maps_are_not_read_again_and_changed_ones_are(
    with_label_maps: tuple[TinyNnunet, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    nnunet, references = with_label_maps
    first = told(capsys)
    kept = nnunet.results / UNET / "fold_0" / "validation" / "evaluation.json"
    written = kept.stat().st_mtime_ns
    assert told(capsys) == first
    assert kept.stat().st_mtime_ns == written
    write_labels(nnunet.results / UNET / "fold_0" / "validation" / "case0.nii.gz", 9)
    assert told(capsys)["surfaces"][0]["hd95_mm"] == 7.5  # of 3 and 12 mm
    write_labels(references / "case0.nii.gz", 9)
    assert told(capsys)["surfaces"][0]["hd95_mm"] == 6.0  # of 0 and 12 mm


def test_label_maps_of_the_data_set_that_are_gone_are_told_unless_they_were_compared_before(
    with_label_maps: tuple[TinyNnunet, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    nnunet, references = with_label_maps
    first = told(capsys)
    shutil.rmtree(references)
    shutil.rmtree(nnunet.root / "raw" / nnunet.dataset / "labelsTr")
    assert told(capsys) == first
    write_labels(nnunet.results / UNET / "fold_0" / "validation" / "case0.nii.gz", 9)  # validated again
    (why,) = told(capsys)["without_surfaces"]
    assert why.startswith(f"fold 0: {nnunet.dataset}: the label maps of the data set are gone (looked for in ")
    write_labels(nnunet.root / "raw" / nnunet.dataset / "labelsTr" / "case0.nii.gz", 10)
    assert told(capsys)["surfaces"][0]["hd95_mm"] == 7.5
