"""Folders of label maps against references: nnU-Net's numbers, and what is told of cases that cannot be compared."""

import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from ctseg.evaluate.compared_labels import labels_of_dataset
from ctseg.evaluate.evaluation import read_evaluation
from ctseg.evaluate.folder import evaluate_folder
from ctseg.evaluate.summary import write_evaluation

SPACING_MM = (1.5, 2.0, 4.0)
"""Along (x, y, z)."""
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3, "odd": [1], "ignore": 4}


def write(path: Path, labels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write labels (x, y, z)."""
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([*SPACING_MM, 1.0]) if affine is None else affine), path)
    return path


def blobs(seed: int, highest: int) -> np.ndarray:
    """Return labels (x, y, z) 0 to ``highest`` in connected pieces."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(21, 17, 11)), 2)
    return np.digitize(field, np.quantile(field, np.linspace(0.5, 1, highest + 1)[:-1])).astype(np.uint8)


def folders_with(path: Path, *, highest: int, ignore: int | None) -> tuple[Path, Path]:
    """Make folders of label maps and references, in which labels are missing here, there, and everywhere."""
    labels, references = path / "labels", path / "references"
    for number in range(4):
        one, other = blobs(number, highest), blobs(number + 10, highest)
        other[one > 0] = np.where(other[one > 0] == 0, one[one > 0], other[one > 0])  # they have something in common
        if number == 1:
            one[one == 2] = 0  # missed
        if number == 2:
            one[one == 1], other[other == 1] = 0, 0  # neither has it
        if number == 3:
            one[:], other[:] = 0, 0
            other[2, 3, 4] = 2
        if ignore is not None and number != 2:
            other[3:9, 2:6] = ignore
        write(labels / f"case{number}.nii.gz", one)
        write(references / f"case{number}.nii.gz", other)
    return labels, references


def by_nnunet(labels: Path, references: Path, keys: list[Any], ignore: int | None) -> dict[str, Any]:
    """Return the ``summary.json`` that nnU-Net itself writes."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    file = labels.parent / "by_nnunet.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its means over nothing
        compute_metrics_on_folder(
            str(references), str(labels), str(file), SimpleITKIO(), ".nii.gz", keys, ignore, num_processes=1
        )
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_summary_is_nnunets_own_byte_by_byte_with_regions_and_an_ignore_label(tmp_path: Path) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels, references = folders_with(tmp_path, highest=3, ignore=4)
    manager = LabelManager(REGIONS, [1, 2, 3, 1])
    by_nnunet(labels, references, manager.foreground_regions, manager.ignore_label)
    compared = labels_of_dataset({"labels": REGIONS}, source="dataset.json")
    write_evaluation(evaluate_folder(labels, references, compared), tmp_path / "out")
    written = (tmp_path / "out" / "summary.json").read_text()
    assert written == (tmp_path / "by_nnunet.json").read_text()
    assert set(json.loads(written)["mean"]) == {"(1, 2, 3)", "(2, 3)", "3", "(1,)"}
    assert "NaN" in written


def test_evaluation_is_read_again_as_it_was_written_nan_and_infinity_included(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    evaluation = evaluate_folder(labels, references)
    write_evaluation(evaluation, labels)
    again = read_evaluation(labels / "evaluation.json")
    assert again.to_json() == evaluation.to_json()
    assert again.cases[1].labels["2"].hd95_mm == float("inf")
    assert np.isnan(again.cases[2].labels["1"].dice)
    assert again.labels == {"1": (1,), "2": (2,)}
