"""Folders of label maps against references: nnU-Net's numbers, and what is told of cases that cannot be compared."""

import csv
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from ctseg.errors import InputError
from ctseg.evaluate.compared_labels import ComparedLabels, labels_of_dataset, labels_of_values
from ctseg.evaluate.evaluation import EvaluatedCase, read_evaluation
from ctseg.evaluate.folder import evaluate_folder
from ctseg.evaluate.summary import summary_of, table_of, write_evaluation
from ctseg.evaluate.surfaces import surface_scores

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


@pytest.mark.parametrize("ignore", [None, 3])
def test_counts_of_labels_are_nnunets(tmp_path: Path, ignore: int | None) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    labels, references = folders_with(tmp_path, highest=2, ignore=ignore)
    content = summary_of(evaluate_folder(labels, references, labels_of_values([1, 2, 5], ignore)))
    for number, case in enumerate(content["metric_per_case"]):
        files = (str(references / f"case{number}.nii.gz"), str(labels / f"case{number}.nii.gz"))
        expected = compute_metrics(*files, SimpleITKIO(), [1, 2, 5], ignore)["metrics"]
        np.testing.assert_equal(case["metrics"], {str(key): value for key, value in expected.items()})
        assert math.isnan(case["metrics"]["5"]["Dice"])


def test_background_asked_for_is_no_foreground_as_in_nnunet(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    expected = by_nnunet(labels, references, [0, 1, 2], None)
    found = summary_of(evaluate_folder(labels, references, labels_of_values([0, 1, 2])))
    np.testing.assert_equal(found["foreground_mean"], expected["foreground_mean"])
    assert found["mean"]["0"]["Dice"] == expected["mean"]["0"]["Dice"] > found["foreground_mean"]["Dice"]


def test_volume_is_the_label_maps_and_reference_volume_the_references(tmp_path: Path) -> None:
    one, other = np.zeros((9, 8, 7), np.uint8), np.zeros((9, 8, 7), np.uint8)
    one[1:6, 2:6, 3:5] = 1  # 40 voxels of 12 mm3
    other[5:8, 2:6, 3:4] = 1  # 12
    write(tmp_path / "labels" / "a.nii.gz", one)
    write(tmp_path / "references" / "a.nii.gz", other)
    scores = evaluate_folder(tmp_path / "labels", tmp_path / "references").cases[0].labels["1"]
    assert (scores.volume_ml, scores.reference_volume_ml) == pytest.approx((0.48, 0.144))


def test_labels_without_names_are_all_values_that_any_file_has(tmp_path: Path) -> None:
    labels, references = tmp_path / "labels", tmp_path / "references"
    for case, value in (("a", 7), ("b", 300)):
        one = np.zeros((5, 4, 3), np.uint16)
        one[1, 1, 1] = value
        write(labels / f"{case}.nii.gz", one)
        write(references / f"{case}.nii.gz", np.roll(one, 1, axis=0))
    evaluation = evaluate_folder(labels, references)
    assert evaluation.labels == {"7": (7,), "300": (300,)}
    a, b = (case.labels for case in evaluation.cases)
    assert (a["7"].dice, a["7"].fp, a["7"].fn, a["7"].tn) == (0, 1, 1, 58)
    assert math.isnan(a["300"].dice)
    assert a["300"].tn == b["7"].tn == 60
    assert a["7"].hd95_mm == pytest.approx(SPACING_MM[0])
    assert b["300"].volume_ml == pytest.approx(0.012)


def test_values_that_no_label_has_count_for_nothing_and_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels, references = folders_with(tmp_path, highest=3, ignore=None)
    with caplog.at_level(logging.WARNING, "ctseg"):
        evaluation = evaluate_folder(labels, references, ComparedLabels({"first": (1,)}))
    assert "2 (in case0), 3 (in case0)" in caplog.text
    assert evaluation.cases[0].labels == {
        "first": evaluate_folder(labels, references).cases[0].labels["1"],
    }


def test_ignored_voxels_count_for_no_surface_and_no_volume(tmp_path: Path) -> None:
    one, other = np.zeros((20, 20, 20), np.uint8), np.zeros((20, 20, 20), np.uint8)
    one[4:16, 4:10, 4:10] = 1
    other[4:10, 4:10, 4:10] = 1
    other[10:] = 2  # where the label map goes on, nobody knows
    write(tmp_path / "labels" / "a.nii.gz", one)
    write(tmp_path / "references" / "a.nii.gz", other)
    folders = (tmp_path / "labels", tmp_path / "references")
    scores = evaluate_folder(*folders, ComparedLabels({"first": (1,)}, ignore_label=2)).cases[0].labels["first"]
    assert (scores.dice, scores.hd95_mm, scores.assd_mm, scores.nsd) == (1.0, 0.0, 0.0, (1.0, 1.0))
    assert scores.volume_ml == scores.reference_volume_ml == pytest.approx(216 * 0.012)
    assert evaluate_folder(*folders, ComparedLabels({"first": (1,)})).cases[0].labels["first"].dice < 0.7


def test_ignored_voxels_just_outside_of_the_box_of_a_label_count_too(tmp_path: Path) -> None:
    one, other = np.zeros((20, 19, 18), np.uint8), np.zeros((20, 19, 18), np.uint8)
    one[4:10, 4:10, 4:10] = 1
    other[4:8, 4:10, 4:10] = 1
    other[10:] = 2  # touches the end of the label map, and lies outside of its box
    write(tmp_path / "labels" / "a.nii.gz", one)
    write(tmp_path / "references" / "a.nii.gz", other)
    compared = ComparedLabels({"first": (1,)}, ignore_label=2)
    found = evaluate_folder(tmp_path / "labels", tmp_path / "references", compared).cases[0].labels["first"]
    whole = surface_scores((one == 1).T, (other == 1).T, SPACING_MM[::-1], (1.0, 3.0), (other == 2).T)
    assert (found.hd95_mm, found.assd_mm, found.nsd) == (whole.hd95_mm, pytest.approx(whole.assd_mm), whole.nsd)
    assert surface_scores((one == 1).T, (other == 1).T, SPACING_MM[::-1], (1.0, 3.0)).nsd != whole.nsd


def test_distances_are_along_the_axes_of_the_files(tmp_path: Path) -> None:
    one = np.zeros((12, 13, 14), np.uint8)
    one[2:6, 3:8, 4:9] = 1
    for axis, case in enumerate("xyz"):
        write(tmp_path / "labels" / f"{case}.nii.gz", np.roll(one, 2, axis))
        write(tmp_path / "references" / f"{case}.nii.gz", one)
    evaluation = evaluate_folder(tmp_path / "labels", tmp_path / "references", tolerances_mm=(3.0, 4.0, 8.0))
    distances = [case.labels["1"].hd95_mm for case in evaluation.cases]
    assert distances == pytest.approx([2 * size for size in SPACING_MM])
    assert [[share == 1 for share in case.labels["1"].nsd] for case in evaluation.cases] == [
        [True, True, True], [False, True, True], [False, False, True],
    ]  # fmt: skip


def test_missing_and_surplus_cases_are_told_and_other_files_are_none(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    (labels / "case0.nii.gz").rename(labels / "else.nii.gz")
    (labels / "report.json").write_text("{}")
    (labels / "case1.npz").write_text("probabilities")
    (labels / ".ctseg").mkdir()
    (labels / ".hidden.nii.gz").write_text("no case")
    evaluation = evaluate_folder(labels, references)
    assert (evaluation.missing, evaluation.surplus, evaluation.refused) == (("case0",), ("else",), ())
    assert [case.case for case in evaluation.cases] == ["case1", "case2", "case3"]


def shifted(labels: Path, reference: np.ndarray) -> None:
    affine = np.diag([*SPACING_MM, 1.0])
    affine[0, 3] = 0.2
    write(labels / "case1.nii.gz", reference, affine)


def mirrored(labels: Path, reference: np.ndarray) -> None:
    write(labels / "case1.nii.gz", reference, np.diag([-SPACING_MM[0], *SPACING_MM[1:], 1.0]))


def cut(labels: Path, reference: np.ndarray) -> None:
    write(labels / "case1.nii.gz", reference[:-1])


def in_shares(labels: Path, reference: np.ndarray) -> None:
    write(labels / "case1.nii.gz", reference.astype(np.float32) * 0.5)


def negative(labels: Path, reference: np.ndarray) -> None:
    write(labels / "case1.nii.gz", reference.astype(np.int16) - 1)


def too_high(labels: Path, reference: np.ndarray) -> None:
    write(labels / "case1.nii.gz", reference.astype(np.int32) * 70_000)


def half_a_file(labels: Path, reference: np.ndarray) -> None:
    (labels / "case1.nii.gz").write_bytes((labels / "case1.nii.gz").read_bytes()[:100])


def doubled(labels: Path, reference: np.ndarray) -> None:
    write(labels / "case1.nii", reference)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (shifted, "voxels up to 0.2 mm away from its own (first voxel: (0.2, 0, 0) mm to the right"),
        (mirrored, "voxels up to 60 mm away"),
        (cut, "found (11, 17, 20) voxels (z, y, x) instead of (11, 17, 21)"),
        (in_shares, "found values from 0.0 to 1.0, not all of them whole: is this a label map?"),
        (negative, "found values from -1"),
        (too_high, "expected whole numbers from 0 to 65535, found values from 0 to 140000"),
        (half_a_file, "case1.nii.gz"),
        (doubled, "case1.nii and case1.nii.gz in"),
    ],
)
def test_case_that_cannot_be_compared_is_refused_by_name_and_the_others_go_on(
    tmp_path: Path, spoil: Any, told: str
) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    spoil(labels, np.asarray(nib.load(references / "case1.nii.gz").dataobj))
    evaluation = evaluate_folder(labels, references)
    assert [(one.case, one.error.startswith("case case1: ")) for one in evaluation.refused] == [("case1", True)]
    assert told in evaluation.refused[0].error
    assert [case.case for case in evaluation.cases] == ["case0", "case2", "case3"]
    assert not evaluation.missing
    assert not evaluation.surplus


def test_rounding_of_headers_is_no_shift(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[0, 3] = 0.01
    write(labels / "case1.nii.gz", blobs(1, 2), affine)
    assert evaluate_folder(labels, references).refused == ()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_files_of_other_formats_and_whole_numbers_in_float_score_the_same(tmp_path: Path, ending: str) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    expected = evaluate_folder(labels, references)
    for number in (0, 1):
        file = labels / f"case{number}.nii.gz"
        image = SimpleITK.ReadImage(file)
        if number:
            image = SimpleITK.Cast(image, SimpleITK.sitkFloat32)
        SimpleITK.WriteImage(image, file.with_name(f"case{number}{ending}"))
        file.unlink()

    def scores(case: EvaluatedCase) -> dict[str, Any]:
        return {name: label.model_dump() for name, label in case.labels.items()}

    np.testing.assert_equal(
        list(map(scores, evaluate_folder(labels, references).cases)), list(map(scores, expected.cases))
    )


def test_folders_without_a_common_name_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    write(tmp_path / "labels" / "a_0000.nii.gz", blobs(0, 1))
    write(tmp_path / "references" / "a.nii.gz", blobs(0, 1))
    with pytest.raises(InputError, match=r"found 1 label maps \(a_0000\) and 1 references \(a\)"):
        evaluate_folder(tmp_path / "labels", tmp_path / "references")


def test_evaluation_of_unchanged_files_is_the_earlier_one_and_of_changed_ones_is_not(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    first = evaluate_folder(labels, references)
    assert evaluate_folder(labels, references, earlier=first) is first
    assert evaluate_folder(labels, references, tolerances_mm=(2.0,), earlier=first).tolerances_mm == (2.0,)
    write(labels / "more.nii.gz", blobs(5, 2))
    assert evaluate_folder(labels, references, earlier=first).surplus == ("more",)
    write(references / "case0.nii.gz", blobs(99, 2))
    again = evaluate_folder(labels, references, earlier=first)
    assert again.cases[0].labels["1"].dice != first.cases[0].labels["1"].dice


def test_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=3, ignore=4)
    compared = labels_of_dataset({"labels": REGIONS}, source="dataset.json")
    told: list[str] = []
    one = evaluate_folder(labels, references, compared, threads=1, case_done=told.append)
    assert told == ["case0", "case1", "case2", "case3"]
    assert one.to_json() == evaluate_folder(labels, references, compared, threads=5).to_json()


def test_table_has_a_line_for_each_label_of_each_case_and_names_the_definition(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    rows = [line.split(",") for line in table_of(evaluate_folder(labels, references)).splitlines()]
    assert rows[0][:8] == ["case", "label", "dice", "iou", "hd95_mm", "assd_mm", "nsd_1mm", "nsd_3mm"]
    assert [row[:2] for row in rows[1:]] == [[f"case{n}", str(value)] for n in range(4) for value in (1, 2)]
    assert {row[-1] for row in rows[1:]} == {"surface-distance 0.1 (DeepMind)"}
    assert rows[5][2:8] == ["nan"] * 6
    assert rows[4][2:8] == ["0.0", "0.0", "inf", "inf", "0.0", "0.0"]


def test_highest_values_and_the_background_are_counted_as_others_are(tmp_path: Path) -> None:
    reference = np.zeros((5, 6, 7), np.uint16)
    reference[:2], reference[4] = 65_534, 65_535
    write(tmp_path / "references" / "a.nii.gz", reference)
    write(tmp_path / "labels" / "a.nii.gz", np.where(reference == 65_535, 65_534, reference).astype(np.uint16))
    compared = labels_of_values([0, 65_534], 65_535)
    (case,) = evaluate_folder(tmp_path / "labels", tmp_path / "references", compared).cases
    assert {name: (scores.tp, scores.fp, scores.fn, scores.tn) for name, scores in case.labels.items()} == {
        "0": (84, 0, 0, 84), "65534": (84, 0, 0, 84),
    }  # fmt: skip


def test_names_of_cases_and_labels_are_on_one_line_and_no_formulas(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("=a\nb\udcff", "c\nd"):
        write(tmp_path / "references" / f"{name}.nii.gz", blobs(1, 1))
    write(tmp_path / "labels" / "=a\nb\udcff.nii.gz", blobs(1, 1) * 9)
    write(tmp_path / "labels" / "e\nf.nii.gz", blobs(1, 1))
    evaluation = evaluate_folder(tmp_path / "labels", tmp_path / "references", labels_of_values([1]))
    assert (evaluation.cases[0].case, evaluation.missing, evaluation.surplus) == (
        "=a\\nb\\xff", ("c\\nd",), ("e\\nf",),
    )  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        "values that no label has count for nothing: 9 (in =a\\nb\\xff)"
    ]
    write_evaluation(evaluation, tmp_path / "out")
    assert read_evaluation(tmp_path / "out" / "evaluation.json").cases[0].case == "=a\\nb\\xff"
    (_, row) = csv.reader((tmp_path / "out" / "evaluation.csv").read_text().splitlines())
    assert row[:3] == ["'=a\\nb\\xff", "1", "0.0"]
    write(tmp_path / "labels" / "c\nd.nii.gz", blobs(1, 1)[:5])
    write(tmp_path / "labels" / "c\nd.nii", blobs(1, 1))
    refused = evaluate_folder(tmp_path / "labels", tmp_path / "references", labels_of_values([1])).refused
    assert [one.case for one in refused] == ["c\\nd"]
    assert "\n" not in refused[0].error


def test_tolerance_that_is_named_twice_counts_once_and_close_ones_have_names_of_their_own(tmp_path: Path) -> None:
    labels, references = folders_with(tmp_path, highest=2, ignore=None)
    evaluation = evaluate_folder(labels, references, tolerances_mm=(1, 1.0, 2.5, 1.0000001, 2.5))
    assert evaluation.tolerances_mm == (1.0, 2.5, 1.0000001)
    header, row, *_ = (line.split(",") for line in table_of(evaluation).splitlines())
    assert header[6:9] == ["nsd_1mm", "nsd_2.5mm", "nsd_1.0000001mm"]
    assert len(row) == len(header)


def test_ignore_label_in_a_label_map_is_no_label_and_is_not_told_as_unnamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = np.zeros((3, 4, 5), np.uint8)
    reference[0], reference[2, 0] = 1, 4
    write(tmp_path / "references" / "a.nii.gz", reference)
    write(tmp_path / "labels" / "a.nii.gz", np.where(reference == 1, 4, reference).astype(np.uint8))
    (case,) = evaluate_folder(tmp_path / "labels", tmp_path / "references", labels_of_values([1], 4)).cases
    scores = case.labels["1"]
    assert (scores.tp, scores.fp, scores.fn, scores.tn) == (0, 0, 20, 35)
    assert not caplog.records
