"""Agreement of folds beside the Dice: the right pairs, and correlations that are known."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.predict.outcomes import Outcome
from ctseg.predict.report import REPORT_NAME, Report
from scripts.agreement_against_dice import Point, correlations, draw, points_of, table_of


def write(path: Path, *voxels: int) -> None:
    path.parent.mkdir(exist_ok=True)
    labels = np.zeros((4, 5, 6), np.uint8)
    labels.flat[: len(voxels)] = voxels
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases; of b the folds found no 2, which its reference has, and c has no reference."""
    found, references = tmp_path / "found", tmp_path / "references"
    write(found / "a.nii.gz", 1, 1, 2, 2)
    write(references / "a.nii.gz", 1, 1, 1, 2)
    write(found / "b.nii.gz", 1, 0, 0)
    write(references / "b.nii.gz", 1, 1, 2)
    write(found / "c.nii.gz", 1)
    (references / "dataset.json").write_text('{"labels": {"background": 0, "one": 1, "two": 2}}')
    cases = (
        Outcome(case="a", status="ok", agreement={"one": 0.9, "two": 0.7}),
        Outcome(case="b", status="ok", agreement={"one": 0.4}),
        Outcome(case="c", status="ok", agreement={"one": 0.1}),
    )
    report = Report(finished=True, written="", cases=cases)
    (found / REPORT_NAME).write_text(report.model_dump_json())
    return found, references


def test_points_are_labels_that_have_both_an_agreement_and_a_dice(folders):
    assert points_of(*folders) == [
        Point("a", "one", 0.9, pytest.approx(0.8)),
        Point("a", "two", 0.7, pytest.approx(2 / 3)),
        Point("b", "one", 0.4, pytest.approx(2 / 3)),
    ]


def test_correlations_are_those_of_pearson_and_spearman():
    rising = [Point("", "one", x, x**3) for x in (0.1, 0.2, 0.5, 0.9)]
    pearson, spearman = correlations(rising)
    assert spearman == pytest.approx(1.0)
    assert pearson == pytest.approx(np.corrcoef([0.1, 0.2, 0.5, 0.9], [0.001, 0.008, 0.125, 0.729])[0, 1])
    assert correlations([Point("", "one", x, 1 - x) for x in (0.1, 0.2, 0.5)]) == pytest.approx((-1.0, -1.0))
    assert all(math.isnan(value) for value in correlations(rising[:2]))


def test_the_table_has_a_row_for_each_label_and_one_for_all(tmp_path):
    points = [Point("", "one", x, x) for x in (0.1, 0.2, 0.5)] + [Point("", "two", x, 1 - x) for x in (0.6, 0.7, 0.9)]
    assert table_of(points).splitlines()[2:4] == [
        "| one | 3 | 0.100 to 0.500 | 0.100 to 0.500 | 1.00 | 1.00 |",
        "| two | 3 | 0.600 to 0.900 | 0.100 to 0.400 | -1.00 | -1.00 |",
    ]
    assert table_of(points).splitlines()[4].startswith("| all | 6 | 0.100 to 0.900 | 0.100 to 0.500 | ")
    draw(points, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
