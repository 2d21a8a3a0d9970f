"""DICOM series through a folder run: every file of a case lies in one place, says one thing, and is always the same."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from ctseg.errors import InputError, SetupError
from ctseg.files.cases import find_cases
from ctseg.files.dicom import structure_set
from ctseg.files.dicom.quiet import quiet
from ctseg.files.geometry import RAS_FROM_LPS
from ctseg.model_spec import Label
from ctseg.predict.case_files import tell_of_formats
from ctseg.predict.contract import contract_of
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import Outcome, OutcomeStore
from ctseg.predict.report import Report
from ctseg.presentation import Code, LabelPresentation
from tests.support.dicom_series import CORONAL, OBLIQUE, SyntheticSeries, ct_series, enhanced_ct, write_series
from tests.support.dicom_tools import ALLOWED_OF_LABELMAP, ALLOWED_OF_PRIVATE_CODES, dciodvfy_findings
from tests.support.threshold import ThresholdPredictor

SHAPE = (7, 18, 12)
"""At the network's spacing nothing is resampled: what is above 0 HU is label 1."""
LANDMARKS = ((1, 2, 3), (2, 15, 9), (4, 4, 10), (5, 11, 1))
"""Single voxels (z, y, x) that no mirroring or turn maps onto each other."""
FRAMES = (3, 0, 6, 5, 1, 4, 2)
"""Slices in order of the frames of a multi-frame file."""
SAME_PLACE_MM = 0.05
ALL = ("nifti", "dicom_seg", "dicom_rtstruct", "dicom_sr")
OBJECTS = ALL[1:]
NUMBERS = {
    "axial": 1, "coronal": 2, "oblique": 3, "sheared by 0.05": 4, "sheared by 0.3": 5, "sheared by 0.6": 6,
    "empty": 7, "no frame of reference": 8, "multi-frame": 9,
}  # fmt: skip
LIVER = LabelPresentation(
    category=Code(value="123037004", scheme="SCT", meaning="Anatomical Structure"),
    type=Code(value="10200004", scheme="SCT", meaning="Liver"),
)


def made(name: str) -> SyntheticSeries:
    """A series whose landmarks alone are above 0 HU."""
    stored = np.zeros(SHAPE, np.uint16)
    if name != "empty":
        stored[tuple(np.transpose(LANDMARKS))] = 2000
    degrees = float(name.removeprefix("sheared by ")) if name.startswith("sheared") else 0.0
    tags = {"FrameOfReferenceUID": None} if name == "no frame of reference" else {}
    orientation = {"coronal": {"orientation": CORONAL}, "oblique": {"orientation": OBLIQUE}}.get(name, {})
    return ct_series(
        SHAPE, pixel_spacing_mm=(2.0, 1.0), slice_spacing_mm=3.0, stored=stored, shear_degrees=degrees,
        series=NUMBERS[name], **orientation, **tags,
    )  # fmt: skip


def landmarks_of(series: SyntheticSeries) -> np.ndarray:
    """(n, 3), LPS in mm, by the headers of each slice alone."""
    places = []
    for z, y, x in LANDMARKS:
        header = series.datasets[z]
        along_x, along_y = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        rows_mm, columns_mm = map(float, header.PixelSpacing)
        places.append(np.array(header.ImagePositionPatient, float) + x * columns_mm * along_x + y * rows_mm * along_y)
    return np.array(places)


def by_nibabel(path: Path) -> np.ndarray:
    image = nib.load(path)
    indices = np.argwhere(np.asarray(image.dataobj))
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code > 0
        np.testing.assert_allclose(affine, image.affine, atol=1e-3)
    return nib.affines.apply_affine(RAS_FROM_LPS_4 @ image.affine, indices)


def by_simpleitk(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    return np.array(
        [
            image.TransformIndexToPhysicalPoint(index[::-1].tolist())
            for index in np.argwhere(sitk.GetArrayFromImage(image))
        ]
    )


def by_highdicom(path: Path) -> np.ndarray:
    with quiet():
        segmentation = hd.seg.segread(path)
        volume = segmentation.get_volume(combine_segments=True, allow_missing_positions=True)
        return volume.map_indices_to_reference(np.argwhere(volume.array))


def by_contours(path: Path) -> np.ndarray:
    """The centres of contours, one round each voxel."""
    (contours,) = (item.get("ContourSequence", []) for item in pydicom.dcmread(path).ROIContourSequence)
    points = [np.array(contour.ContourData, float).reshape(-1, 3) for contour in contours]
    return np.array([(one.min(axis=0) + one.max(axis=0)) / 2 for one in points])


READERS = {
    "nibabel": (by_nibabel, ".nii.gz"), "SimpleITK": (by_simpleitk, ".nii.gz"), "highdicom": (by_highdicom, ".seg.dcm"),
    "contours": (by_contours, ".rtstruct.dcm"),
}  # fmt: skip
RAS_FROM_LPS_4 = np.diag([*np.diag(RAS_FROM_LPS), 1.0])


def far_from(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far the farthest of some places is from where it is expected, in whatever order."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found[:, None] - expected[None], axis=2).min(axis=0).max())


@dataclass
class Tree:
    """Series in a tree, a NIfTI scan, and what one run has written of them.

    Attributes:
        scans: The input.
        output: Of the run.
        report: Of the run.
        names: Of the cases, by what the series are called here.
    """

    scans: Path
    output: Path
    report: Report
    names: Mapping[str, str]

    def outcome(self, name: str) -> Outcome:
        return next(case for case in self.report.cases if case.case == self.names[name])

    def path(self, name: str, ending: str) -> Path:
        return self.output / f"{self.names[name]}{ending}"


def run(scans: Path, output: Path, predictor: ThresholdPredictor | None = None, **options: Any) -> Report:
    cases = find_cases(scans, channels=1, recursive=True)
    return segment_cases(cases, predictor or ThresholdPredictor(), output, BatchOptions(**options))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    folder = tmp_path_factory.mktemp("tree")
    for name in NUMBERS:
        series = made(name)
        datasets = [enhanced_ct(series, order=FRAMES)] if name == "multi-frame" else series.datasets
        write_series(folder / "in" / "CT" / name.replace(" ", "_"), datasets)
    series = made("axial")
    nib.save(nib.Nifti1Image(series.hu.T.astype(np.int16), series.affine_ras), folder / "in" / "twin.nii.gz")
    names = {
        name: case.name
        for case in find_cases(folder / "in", channels=1, recursive=True)
        for name, number in NUMBERS.items()
        if case.channels[0].series is not None and case.channels[0].series.series_number == number
    }
    report = run(folder / "in", folder / "out", output_formats=ALL)
    return Tree(folder / "in", folder / "out", report, names)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """The folder of a single series."""
    write_series(tmp_path / "in", made("axial").datasets)
    return tmp_path / "in"


def written(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.suffix in (".gz", ".dcm")}


def test_a_dicom_case_has_the_labels_of_the_same_scan_in_nifti(tree):
    twin, case = (nib.load(path) for path in (tree.output / "twin.nii.gz", tree.path("axial", ".nii.gz")))
    assert np.array_equal(np.asarray(twin.dataobj), np.asarray(case.dataobj))
    assert np.argwhere(np.asarray(case.dataobj).T).tolist() == sorted(map(list, LANDMARKS))
    np.testing.assert_allclose(case.affine, twin.affine, atol=2e-5)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["axial", "coronal", "oblique", "sheared by 0.05", "sheared by 0.3", "multi-frame"])
def test_all_files_of_a_case_lie_in_one_place(tree, name, reader):
    read, ending = READERS[reader]
    label_map, expected = by_nibabel(tree.path(name, ".nii.gz")), landmarks_of(made(name))
    found = read(tree.path(name, ending))
    assert far_from(label_map, expected) <= SAME_PLACE_MM
    assert far_from(found, label_map) <= SAME_PLACE_MM


def test_a_shear_that_would_move_voxels_is_refused_by_name_and_stops_no_other(tree):
    outcome = tree.outcome("sheared by 0.6")
    assert outcome.status == "failed"
    assert "0.6" in outcome.error.message
    assert tree.outcome("sheared by 0.3").status == "ok"


def test_what_people_are_to_know_of_a_series_and_of_its_objects_stands_in_the_outcome(tree):
    assert tree.outcome("axial").warnings == ()
    (sheared,) = tree.outcome("sheared by 0.3").warnings
    assert "0.3" in sheared
    (coronal,) = tree.outcome("coronal").warnings
    assert coronal.startswith("dicom_rtstruct: ")


@pytest.mark.parametrize(("reader", "ending"), [("NibabelIOWithReorient", ".nii.gz"), ("SimpleITKIO", ".mha")])
def test_objects_lie_there_whatever_the_reader_turns_and_the_label_map_is(tmp_path, reader, ending):
    write_series(tmp_path / "in", made("coronal").datasets)
    predictor = ThresholdPredictor()
    spec = predictor.spec.model_copy(update={"reader": reader, "file_ending": ending, "spacing_mm": (3.0, 2.0, 1.0)})
    if reader == "NibabelIOWithReorient":  # the second axis of the patient is that of the slices
        spec = spec.model_copy(update={"spacing_mm": (2.0, 3.0, 1.0)})
    predictor.spec = spec
    (case,) = run(tmp_path / "in", tmp_path / "out", predictor, output_formats=ALL).cases
    expected = landmarks_of(made("coronal"))
    assert case.status == "ok", case.error
    assert far_from(by_simpleitk(tmp_path / "out" / f"{case.case}{ending}"), expected) <= SAME_PLACE_MM
    assert far_from(by_highdicom(tmp_path / "out" / f"{case.case}.seg.dcm"), expected) <= SAME_PLACE_MM
    assert far_from(by_contours(tmp_path / "out" / f"{case.case}.rtstruct.dcm"), expected) <= SAME_PLACE_MM


def test_outcomes_say_which_objects_were_written_and_what_their_segments_are(tree):
    outcome = tree.outcome("axial")
    assert [(segment.number, segment.values) for segment in outcome.segments] == [(1, (1,))]
    assert [item.format for item in outcome.objects] == list(OBJECTS)
    for item in outcome.objects:
        header = pydicom.dcmread(tree.output / item.name, stop_before_pixels=True)
        assert (header.SeriesInstanceUID, header.SOPInstanceUID) == (item.series_uid, item.instance_uid)
    assert {file.name for file in outcome.outputs} == {
        tree.path("axial", ending).name for ending in (".nii.gz", ".seg.dcm", ".rtstruct.dcm", ".sr.dcm")
    }
    assert outcome.volumes_ml == {outcome.segments[0].name: pytest.approx(4 * 6 / 1000)}


def test_dicom_and_nifti_lie_in_one_folder_and_each_gets_what_it_can(tree):
    assert {case.status for case in tree.report.cases} == {"ok", "failed"}
    twin = next(case for case in tree.report.cases if case.case == "twin")
    assert [file.name for file in twin.outputs] == ["twin.nii.gz"]
    assert [failed.format for failed in twin.failed_formats] == list(OBJECTS)


def test_without_a_frame_of_reference_the_label_map_stays(tree):
    outcome = tree.outcome("no frame of reference")
    assert outcome.status == "ok"
    assert [file.name for file in outcome.outputs] == [tree.path("no frame of reference", ".nii.gz").name]
    assert {failed.format: failed.foreseen for failed in outcome.failed_formats} == dict.fromkeys(OBJECTS, True)


def test_an_empty_label_map_is_written_in_every_format(tree):
    outcome = tree.outcome("empty")
    assert [item.format for item in outcome.objects] == list(OBJECTS)
    assert not np.asarray(nib.load(tree.path("empty", ".nii.gz")).dataobj).any()
    with quiet():
        segmentation = hd.seg.segread(tree.path("empty", ".seg.dcm"))
    assert list(segmentation.segment_numbers) == [1]
    assert not segmentation.pixel_array.any()
    structures = pydicom.dcmread(tree.path("empty", ".rtstruct.dcm"))
    assert len(structures.StructureSetROISequence) == 1
    assert not any(item.get("ContourSequence") for item in structures.ROIContourSequence)
    assert measured_in(tree.path("empty", ".sr.dcm")) == [0]
    assert measured_in(tree.path("axial", ".sr.dcm")) == [4 * 6]


def measured_in(path: Path) -> list[float]:
    """Return the volumes in a structured report, in cubic millimetres."""
    return [float(element.value) for element in pydicom.dcmread(path).iterall() if element.keyword == "NumericValue"]


@pytest.mark.parametrize("name", ["axial", "coronal", "oblique", "sheared by 0.3", "empty", "multi-frame"])
@pytest.mark.parametrize("ending", [".seg.dcm", ".rtstruct.dcm", ".sr.dcm"])
def test_a_validator_finds_nothing(tree, name, ending):
    assert dciodvfy_findings(tree.path(name, ending), ALLOWED_OF_PRIVATE_CODES) == []


def test_the_same_command_writes_the_same_bytes(tree, tmp_path):
    run(tree.scans, tmp_path / "again", output_formats=ALL)
    again = written(tmp_path / "again")
    assert again == written(tree.output)
    assert len(again) > 20


def test_other_options_codes_types_and_models_give_other_uids(one, tmp_path):
    changes = {
        "as it is": {},
        "step": {"tile_step_size": 0.25},
        "codes": {"codes": {label_name(): LIVER}},
        "type": {"segmentation_type": "labelmap"},
        "model": {"predictor": other_model()},
    }
    found = {
        what: run(one, tmp_path / what, output_formats=ALL, **change).cases[0].objects
        for what, change in changes.items()
    }
    assert all(len(objects) == 3 for objects in found.values())
    contours = [next((tmp_path / what).glob("*.rtstruct.dcm")).read_bytes() for what in ("as it is", "type")]
    assert contours[0] == contours[1]  # of which the type of the segmentation changes nothing
    found["type"] = tuple(item for item in found["type"] if item.format != "dicom_rtstruct")
    uids = [uid for objects in found.values() for item in objects for uid in (item.series_uid, item.instance_uid)]
    assert len(set(uids)) == len(uids)
    (labelmap,) = (tmp_path / "type").glob("*.seg.dcm")
    assert dciodvfy_findings(labelmap, (*ALLOWED_OF_LABELMAP, *ALLOWED_OF_PRIVATE_CODES)) == []


def label_name() -> str:
    return next(iter(ThresholdPredictor().spec.named_values))


def other_model() -> ThresholdPredictor:
    """A network with the same answers and another digest."""
    predictor = ThresholdPredictor()
    predictor.spec = copy.deepcopy(predictor.spec).model_copy(update={"name": "other"})
    identity = predictor.identity
    predictor.identity = type(identity)("other", 7, predictor.spec.digest, identity.servers, identity.transport)
    return predictor


def test_a_run_that_goes_on_makes_what_is_missing_and_keeps_the_rest_as_one_set(one, tmp_path):
    def go_on(**options: Any) -> tuple[str, set[str]]:
        (case,) = run(one, tmp_path / "out", continue_prediction=True, **options).cases
        return case.status, {Path(file.name).suffixes[-2] for file in case.outputs}

    assert go_on() == ("ok", {".nii", ".seg"})
    assert go_on() == ("skipped", {".nii", ".seg"})
    assert go_on(output_formats=("dicom_rtstruct",)) == ("ok", {".nii", ".seg", ".rtstruct"})
    assert go_on(output_formats=("nifti",)) == ("skipped", {".nii", ".seg", ".rtstruct"})
    before = written(tmp_path / "out")
    assert go_on(codes={label_name(): LIVER}) == ("ok", {".nii", ".seg", ".rtstruct"})
    after = written(tmp_path / "out")
    assert [name for name in before if before[name] != after[name]] == [
        name for name in before if not name.endswith(".nii.gz")
    ]
    assert go_on(codes={label_name(): LIVER}) == ("skipped", {".nii", ".seg", ".rtstruct"})
    (tmp_path / "out" / next(name for name in after if name.endswith(".seg.dcm"))).unlink()
    assert go_on(codes={label_name(): LIVER}) == ("ok", {".nii", ".seg", ".rtstruct"})
    assert written(tmp_path / "out") == after
    go_on(output_formats=ALL)
    for ending in (".seg.dcm", ".nii.gz"):
        next((tmp_path / "out").glob(f"*{ending}")).unlink()
    assert go_on(output_formats=("nifti",)) == ("ok", {".nii", ".seg", ".rtstruct", ".sr"}), "the report needs its SEG"


def test_a_format_that_is_added_asks_the_network_only_where_the_label_map_is_not_there(one, tmp_path):
    def go_on(**options: Any) -> tuple[int, Outcome]:
        predictor = ThresholdPredictor()
        (case,) = run(one, tmp_path / "out", predictor, continue_prediction=True, **options).cases
        assert case.status == "ok"
        return predictor.calls, case

    calls, first = go_on(output_formats=("nifti",))
    assert calls > 0
    added, case = go_on(output_formats=ALL)
    assert added == 0
    assert (case.windows, case.volumes_ml) == (first.windows, first.volumes_ml)
    at_once = run(one, tmp_path / "at_once", output_formats=ALL).cases[0]
    assert [file.sha256 for file in case.outputs] == [file.sha256 for file in at_once.outputs]
    (label_map,) = (tmp_path / "out").glob("*.nii.gz")
    label_map.unlink()
    assert go_on(output_formats=ALL)[0] == calls
    assert go_on(output_formats=ALL, save_probabilities=True)[0] == calls


class SeeingPredictor(ThresholdPredictor):
    """Keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []

    def predict(self, patches):
        self.seen += [np.ascontiguousarray(patch).tobytes() for patch in patches]
        return super().predict(patches)


@pytest.mark.parametrize("name", ["axial", "coronal", "oblique"])
def test_rows_are_shown_to_the_network_as_the_training_scans_had_them(tmp_path, name):
    series = made(name)
    write_series(tmp_path / "dicom", series.datasets)
    # dcm2niix: rows from the last to the first, and all else as it is
    affine = series.affine_ras @ np.diag([1, -1, 1, 1])
    affine[:3, 3] += series.affine_ras[:3, 1] * (SHAPE[1] - 1)
    (tmp_path / "nifti").mkdir()
    nib.save(nib.Nifti1Image(series.hu[:, ::-1].T.astype(np.int16), affine), tmp_path / "nifti" / "twin.nii.gz")

    def seen(scans: str, **options: Any) -> list[bytes]:
        predictor = SeeingPredictor()
        report = run(tmp_path / scans, tmp_path / f"{scans} {options}", predictor, **options)
        assert report.cases[0].status == "ok"
        return sorted(set(predictor.seen))

    assert seen("dicom", dicom_rows="up") == seen("nifti") == seen("nifti", dicom_rows="up") != seen("dicom")
    (up,) = (tmp_path / "dicom {'dicom_rows': 'up'}").glob("*.nii.gz")
    (down,) = (tmp_path / "dicom {}").glob("*.nii.gz")
    assert up.read_bytes() == down.read_bytes()
    again = SeeingPredictor()
    (case,) = run(
        tmp_path / "dicom", up.parent, again, output_formats=ALL, continue_prediction=True, dicom_rows="up"
    ).cases
    assert (case.status, again.seen, len(case.outputs)) == ("ok", [], 4)
    (case,) = run(tmp_path / "dicom", up.parent, again, output_formats=ALL, continue_prediction=True).cases
    assert (case.status, len(again.seen) > 0) == ("ok", True)


@pytest.mark.parametrize("of_segmentation", [("a part found nothing",), None], ids=["known", "of an older ctseg"])
def test_a_format_that_is_added_replaces_warnings_and_keeps_those_of_the_segmentation(one, tmp_path, of_segmentation):
    def go_on(*formats: str) -> tuple[str, ...]:
        (case,) = run(one, tmp_path / "out", continue_prediction=True, output_formats=formats).cases
        assert case.status == "ok"
        return case.warnings

    before = go_on("nifti")
    ((_, outcome),) = (store := OutcomeStore(tmp_path / "out")).all()
    told = ("worded otherwise", "a part found nothing")
    changed = {"warnings": told, "segmentation_warnings": of_segmentation}
    store.write(outcome.case, outcome.model_copy(update=changed))
    expected = (*before, *(told if of_segmentation is None else of_segmentation))
    assert go_on("nifti", "dicom_seg") == expected
    assert go_on("nifti", "dicom_seg", "dicom_sr") == expected, "and none of them twice"


def test_an_object_that_a_person_corrected_stays_and_stops_no_other_format(one, tmp_path):
    run(one, tmp_path / "out", output_formats=("nifti", "dicom_rtstruct"))
    (corrected,) = (tmp_path / "out").glob("*.rtstruct.dcm")
    corrected.write_bytes(b"corrected by a person")
    (case,) = run(one, tmp_path / "out", output_formats=("dicom_sr",), continue_prediction=True).cases
    assert case.status == "ok"
    assert [Path(file.name).suffixes[-2] for file in case.outputs] == [".nii", ".seg", ".sr"]
    assert corrected.read_bytes() == b"corrected by a person"
    (case,) = run(one, tmp_path / "out", output_formats=ALL, continue_prediction=True).cases
    assert case.status == "kept"
    assert corrected.read_bytes() == b"corrected by a person"


def test_a_format_that_fails_while_it_is_written_stops_no_other_and_is_tried_again(one, tmp_path, monkeypatch):
    def go_on() -> tuple[str, list[str], list[tuple[str, bool, str]]]:
        (case,) = run(one, tmp_path / "out", output_formats=ALL, continue_prediction=True).cases
        failed = [(failed.format, failed.foreseen, failed.error.type) for failed in case.failed_formats]
        return case.status, [Path(file.name).suffixes[-2] for file in case.outputs], failed

    with monkeypatch.context() as patched:
        patched.setattr(structure_set, "_MAX_CONTOURS", 0)
        assert go_on() == ("ok", [".nii", ".seg", ".sr"], [("dicom_rtstruct", False, "InputError")])
        patched.setattr(structure_set, "contours_of", lambda *_: 1 / 0)
        assert go_on() == ("ok", [".nii", ".seg", ".sr"], [("dicom_rtstruct", False, "ZeroDivisionError")])
    assert go_on() == ("ok", [".nii", ".seg", ".rtstruct", ".sr"], [])


def test_without_going_on_the_set_is_what_is_asked_for(one, tmp_path):
    run(one, tmp_path / "out", output_formats=ALL)
    run(one, tmp_path / "out", output_formats=("dicom_seg",))
    assert [Path(name).suffixes[-2] for name in written(tmp_path / "out")] == [".seg"]


def test_a_type_that_no_segmentation_of_the_model_can_have_is_refused_before_any_work(one, tmp_path):
    predictor = ThresholdPredictor()
    labels = [Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))]
    predictor.spec = predictor.spec.model_copy(update={"labels": tuple(labels), "regions_class_order": (1, 2)})
    with pytest.raises(SetupError, match="share voxels: write it as binary"):
        run(one, tmp_path / "out", predictor, segmentation_type="labelmap")
    (case,) = run(one, tmp_path / "out", predictor).cases
    told = [(segment.number, segment.name, segment.values) for segment in case.segments]
    assert told == [(1, "whole", (1, 2)), (2, "core", (2,))]


@pytest.mark.parametrize(("labels", "kind", "told"), [(20, "binary", 1), (19, "binary", 0), (20, "labelmap", 0)])
def test_many_labels_are_told_of_once_where_each_has_frames_of_its_own(one, caplog, labels, kind, told):
    caplog.set_level(logging.INFO)
    names = {f"label{value}": (value,) for value in range(1, labels + 1)}
    contract = replace(contract_of(ThresholdPredictor().spec), labels=names)
    cases = find_cases(one, channels=1)
    tell_of_formats([*cases, *cases], contract, BatchOptions(segmentation_type=kind))
    assert caplog.text.count("labelmap are much smaller") == told


def test_codes_are_looked_at_before_any_work(one, tmp_path, caplog):
    predictor = ThresholdPredictor()
    with pytest.raises(InputError, match="speleen"):
        run(one, tmp_path / "out", predictor, codes={"speleen": LIVER})
    with pytest.raises(SetupError, match="expected codes for every label"):
        run(one, tmp_path / "out", predictor, codes_required=True)
    assert predictor.calls == 0
    assert run(one, tmp_path / "out", codes_required=True, codes={label_name(): LIVER}).cases[0].status == "ok"
    assert "no codes" not in caplog.text
    run(one, tmp_path / "out")
    assert caplog.text.count("no codes for") == 1
