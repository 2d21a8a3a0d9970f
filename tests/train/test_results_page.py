"""The page of trainings: curves as nnU-Net logged them, cases from the worst Dice on, and what is gone is told."""

import base64
import io
import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from numpy.typing import NDArray
from PIL import Image

from ctseg.cli.main import main
from ctseg.errors import CheckpointError
from ctseg.evaluate.compared_labels import ComparedLabels
from ctseg.evaluate.evaluation import EVALUATION_NAME
from ctseg.evaluate.folder import evaluate_folder
from ctseg.nnunet.training_curve import read_training_curve
from ctseg.train.cross_validation import results_table, trained_models
from ctseg.train.paths import NnunetPaths
from ctseg.train.results_page import ModelLook, look_at_results, results_page
from ctseg.train.validation_cases import plane_of_disagreement

DATASET, MODEL = "Dataset306_Judged", "nnUNetTrainer__nnUNetPlans__3d_fullres"
SHAPE_ZYX = (6, 20, 30)
AFFINE = np.diag([1.0, 2.0, 5.0, 1.0])  # to the right, front and up
LABELS = {"background": 0, "liver": 1, "<b>cyst</b>": 2}
DICE = {  # liver, cyst
    "good": (0.9, 0.8), "worst": (0.1, 0.3), "no_cyst": (0.5, math.nan), "nothing": (math.nan, math.nan),
    "<img src=x>": (0.95, 0.85),
}  # fmt: skip


def save(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), AFFINE), path)


def reference() -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    labels[1:4, 8:12, 12:18] = 1
    return labels


def prediction() -> NDArray[np.uint8]:
    """The reference, and a block of the cyst in plane 4, at the patient's right back."""
    labels = reference()
    labels[4, 0:6, 22:30] = 2
    labels[2, 8:9, 12:18] = 0
    return labels


@dataclass(frozen=True)
class Judged:
    """nnU-Net's three folders with two folds, of which one is validated."""

    root: Path

    @property
    def paths(self) -> NnunetPaths:
        return NnunetPaths(self.root / "raw", self.root / "preprocessed", self.root / "results")

    @property
    def model(self) -> Path:
        return self.root / "results" / DATASET / MODEL

    def page(self) -> str:
        return results_page(DATASET, self.looks())

    def looks(self, *, surfaces: bool = False) -> list[ModelLook]:
        models = trained_models(self.paths, DATASET)
        table = results_table(DATASET, models, None, self.paths if surfaces else None)
        return look_at_results(self.paths, table, models)


def logged(folder: Path, epochs: int) -> dict[str, list[Any]]:
    """What nnU-Net's own logger holds after so many epochs."""
    logger = MetaLogger(str(folder), False)
    for epoch in range(epochs):
        logger.log("epoch_start_timestamps", 1000.0 + 60 * epoch, epoch)
        logger.log("lrs", 0.01 * (1 - epoch / 10), epoch)
        logger.log("train_losses", np.float32(0.5 - epoch / 4), epoch)
        logger.log("mean_fg_dice", np.float64(0.25 + epoch / 8), epoch)
        logger.log("dice_per_class_or_region", [np.float32(0.5 + epoch / 8), np.float32(epoch / 8)], epoch)
        logger.log("val_losses", np.float32(0.75 - epoch / 4), epoch)
        logger.log("epoch_end_timestamps", 1040.0 + 60 * epoch, epoch)
    return logger.get_checkpoint()


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    judged = Judged(tmp_path)
    metrics = []
    for case, dice in DICE.items():
        save(tmp_path / "raw" / DATASET / "imagesTr" / f"{case}_0000.nii.gz", np.full(SHAPE_ZYX, -160, np.int16))
        save(tmp_path / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", reference())
        save(tmp_path / "preprocessed" / DATASET / "gt_segmentations" / f"{case}.nii.gz", reference())
        save(judged.model / "fold_0" / "validation" / f"{case}.nii.gz", prediction())
        metrics.append(
            {
                "prediction_file": f"C:\\elsewhere\\validation\\{case}.nii.gz",
                "reference_file": f"/gone/{case}.nii.gz",
                "metrics": {"1": {"Dice": dice[0]}, "2": {"Dice": dice[1]}},
            }
        )
    summary = {
        "metric_per_case": metrics,
        "mean": {"1": {"Dice": 0.6125}, "2": {"Dice": 0.65}},
        "foreground_mean": {"Dice": 0.63125},
    }
    (judged.model / "fold_0" / "validation" / "summary.json").write_text(json.dumps(summary))
    dataset = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 5, "file_ending": ".nii.gz"}
    for folder in (judged.model, tmp_path / "raw" / DATASET):
        (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold, epochs in ((0, 3), (1, 1)):
        folder = judged.model / f"fold_{fold}"
        folder.mkdir(exist_ok=True)
        record = {"ctseg_training": {"epochs": 4}} if fold else {}
        torch.save({"logging": logged(folder, epochs), **record}, folder / "checkpoint_latest.pth")
    return judged


def looks(judged: Judged) -> Any:
    (look,) = judged.looks()
    return look


def test_cases_come_from_the_worst_dice_on(judged: Judged) -> None:
    cases = looks(judged).cases
    assert [(case.case, case.mean_dice) for case in cases[:4]] == [
        ("worst", pytest.approx(0.2)),
        ("no_cyst", 0.5),
        ("good", pytest.approx(0.85)),
        ("<img src=x>", pytest.approx(0.9)),
    ]
    assert cases[4].case == "nothing"  # neither label is there: no Dice, last
    assert cases[0].lowest == ("liver", 0.1)
    page = judged.page()
    rows = [page.index(f'<td class="case">{name}</td>') for name in ("worst", "no_cyst", "good", "nothing")]
    assert rows == sorted(rows)


def test_a_picture_shows_the_largest_disagreement(judged: Judged) -> None:
    uri = next(case.picture for case in looks(judged).cases if case.case == "good")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), dtype=int)
    height, width = picture.shape[:2]
    assert (height, width) == (220, 165)  # 40 mm by 30 mm
    lit = picture.max(axis=2) > 40  # the image is black; the veil of the cyst is not
    rows, columns = np.nonzero(lit)
    # rows 0 to 6 of 20 are the back, columns 22 to 30 of 30 the patient's right: at the bottom, on the left
    assert (rows.min(), rows.max()) == (pytest.approx(154, abs=2), pytest.approx(220, abs=2))
    assert (columns.min(), columns.max()) == (pytest.approx(0, abs=2), pytest.approx(44, abs=2))


def test_the_plane_is_that_of_most_differing_voxels_that_count() -> None:
    expected, predicted = reference(), prediction()
    assert plane_of_disagreement(predicted, expected) == 4
    expected[4, 0:6, 22:30] = 7
    assert plane_of_disagreement(predicted, expected, ignore_label=7) == 2
    larger = reference()
    larger[3, 0:4, 0:4] = 1
    assert plane_of_disagreement(larger, larger) == 3


def test_curves_are_what_nnunets_logger_logged(judged: Judged) -> None:
    curve = read_training_curve(judged.model / "fold_0")
    logging = logged(judged.model, 3)
    assert [epoch.loss for epoch in curve.epochs] == logging["train_losses"]
    assert [epoch.validation_loss for epoch in curve.epochs] == logging["val_losses"]
    assert [epoch.mean_dice for epoch in curve.epochs] == logging["mean_fg_dice"]
    assert [epoch.moving_dice for epoch in curve.epochs] == logging["ema_fg_dice"]
    assert [list(epoch.pseudo_dice) for epoch in curve.epochs] == logging["dice_per_class_or_region"]
    assert [epoch.learning_rate for epoch in curve.epochs] == logging["lrs"]
    assert [epoch.took_s for epoch in curve.epochs] == [40.0] * 3


def test_a_fold_is_told_after_its_first_epoch_validated_or_not(judged: Judged) -> None:
    page = judged.page()
    assert "Not validated yet: fold 1" in page
    assert (
        "epoch 1 of 4, 40 s an epoch, left 2 min; loss 0.5 (validation 0.75); pseudo Dice 0.25 (moving 0.25, lowest 0 "
        "&lt;b&gt;cyst&lt;/b&gt;); learning rate 1.00e-02"
    ) in page
    assert "<title>training loss: 0.5 at 1</title>" in page
    assert "<title>liver: 0.75 at 3</title>" in page
    assert page.count('<svg viewBox="0 0 420 180"') == 2 * 4


def test_a_fold_that_is_trained_and_not_validated_says_so(judged: Judged) -> None:
    folder = judged.model / "fold_1"
    torch.save({"logging": logged(folder, 4), "ctseg_training": {"epochs": 4}}, folder / "checkpoint_latest.pth")
    assert "fold 1: all 4 epochs are done, the validation is not" in judged.page()


def test_folds_stand_in_the_order_of_their_numbers(judged: Judged) -> None:
    for fold in ("all", "10", "2"):
        folder = judged.model / f"fold_{fold}"
        folder.mkdir()
        torch.save({"logging": logged(folder, 1)}, folder / "checkpoint_latest.pth")
    assert [course.fold for course in looks(judged).courses] == ["0", "1", "2", "10", "full"]


def test_what_is_gone_is_told_and_the_row_stays(judged: Judged) -> None:
    (judged.root / "raw" / DATASET / "imagesTr" / "good_0000.nii.gz").unlink()
    (judged.model / "fold_0" / "validation" / "worst.nii.gz").unlink()
    (judged.root / "preprocessed" / DATASET / "gt_segmentations" / "no_cyst.nii.gz").unlink()
    save(judged.root / "preprocessed" / DATASET / "gt_segmentations" / "nothing.nii.gz", reference()[:5])
    missing = {case.case: case.missing for case in looks(judged).cases if case.picture is None}
    assert missing == {
        "good": "its image is gone, or nnUNet_raw is not set",
        "worst": "worst.nii.gz is gone from the validation's folder",
        "no_cyst": "its reference is gone, or nnUNet_preprocessed is not set",
        "nothing": "the reference lies on another grid than the image: was the image changed since?",
    }
    page = judged.page()
    assert page.count('<td class="case">') == len(DICE)
    assert page.count("no picture: ") == 4
    shutil.rmtree(judged.root / "raw")
    assert judged.page().count("no picture: ") == len(DICE)


def test_names_from_outside_are_text(judged: Judged) -> None:
    page = judged.page()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page
    assert "<b>cyst" not in page
    assert page.count("<script") == 1
    assert "patient data" in page


def test_the_table_of_folds_has_nnunets_means(judged: Judged) -> None:
    look = looks(judged)
    assert [(fold.fold, fold.cases, fold.mean_dice) for fold in look.results.folds] == [("0", 5, 0.63125)]
    assert look.labels == ComparedLabels({"liver": (1,), "<b>cyst</b>": (2,)})
    page = judged.page()
    assert '<td class="number" data-sort="0.6125">0.613</td>' in page or 'data-sort="0.6125">0.612</td>' in page


def test_a_damaged_summary_is_named(judged: Judged) -> None:
    file = judged.model / "fold_0" / "validation" / "summary.json"
    content = json.loads(file.read_text())
    del content["metric_per_case"][0]["prediction_file"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"summary.json: KeyError"):
        judged.page()


def test_the_command_writes_the_page_beside_the_models_or_elsewhere(
    judged: Judged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(judged.root / name))
    assert main(["results", "306", "--html"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == str(judged.model.parent / "results.html")
    assert "  (not validated yet: fold 1: epoch 1 of 4)" in told
    page = (judged.model.parent / "results.html").read_text(encoding="utf-8")
    assert "Surfaces, over the cases of all folds" in page
    assert re.search(r">NSD [0-9.]+ mm, mean<", page)
    assert "liver HD95, mm" in page, "of each case, without a command before"
    assert main(["results", "306", "--html", "--no_surfaces"]) == 0
    capsys.readouterr()
    assert "Surfaces, over" not in (judged.model.parent / "results.html").read_text(encoding="utf-8")
    assert main(["results", "306", "--json", "--html", "-o", str(judged.root / "new")]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"] == DATASET  # the page's name goes to standard error
    assert (judged.root / "new" / "results.html").is_file()
    assert trained_models(judged.paths, DATASET)[0].name == MODEL  # the page is no model


def test_surfaces_and_volumes_of_an_evaluation_stand_beside_the_dice(judged: Judged) -> None:
    assert "HD95" not in judged.page()
    validation = judged.model / "fold_0" / "validation"
    references = judged.root / "preprocessed" / DATASET / "gt_segmentations"
    labels = ComparedLabels({"liver": (1,), "<b>cyst</b>": (2,)})
    evaluation = evaluate_folder(validation, references, labels)
    (validation / EVALUATION_NAME).write_text(evaluation.to_json())
    liver = looks(judged).cases[0].scores["liver"]
    assert (liver.n_pred, liver.n_ref) == (66, 72)
    assert math.isfinite(liver.hd95_mm)
    page = judged.page()
    assert "liver HD95, mm" in page
    assert "0.66 (0.72)</td>" in page  # voxels of 10 cubic millimetres
    assert page.count(">∞</td>") == len(DICE)  # the cyst is in no reference
    (validation / EVALUATION_NAME).write_text("{")
    assert "HD95" not in judged.page()
