"""A structure set gives back the very voxels, to every reader, and says what it must."""

import errno
import os
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from ctseg.errors import InputError
from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.results import DicomResult, Segment
from ctseg.files.dicom.series import CtSeries
from ctseg.files.dicom.structure_set import structure_set_problem, write_structure_set
from ctseg.presentation import Code, LabelPresentation
from tests.support.dicom_results import result_of, write_enhanced_ct
from tests.support.dicom_series import CORONAL, OBLIQUE, PRONE, SyntheticSeries, ct_series, set_tags, write_series
from tests.support.dicom_tools import dciodvfy_findings, required_tool
from tests.support.even_odd import pixels_inside

SHAPE = (4, 20, 24)
ORGAN = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
LUNG = Code(value="39607008", scheme="SCT", meaning="Lung")
LEFT = Code(value="7771000", scheme="SCT", meaning="Left")


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> CtSeries:
    synthetic = ct_series(SHAPE, pixel_spacing_mm=(0.8, 0.5), origin_lps_mm=(-9.53, -7.251, 100.1))
    return written_series(tmp_path_factory.mktemp("series"), synthetic)


def written_series(folder: Path, synthetic: SyntheticSeries) -> CtSeries:
    (series,) = find_series(write_series(folder, synthetic.datasets)).series
    return series


def segment(number: int, name: str, *values: int, **presentation: object) -> Segment:
    """A segment with codes; its value is its number where none is given."""
    codes = {"category": ORGAN, "type": LUNG, **presentation}
    return Segment(number, name, values or (number,), LabelPresentation.model_validate(codes))


def by_model(series: CtSeries, *segments: Segment) -> DicomResult:
    return result_of(series, segments=segments)


def random_labels(highest: int, share: float = 0.6) -> np.ndarray:
    """Labels with holes, islands and single voxels, up to the borders."""
    generator = np.random.default_rng(highest)
    return np.where(generator.random(SHAPE) < share, generator.integers(1, highest + 1, SHAPE), 0).astype(np.uint8)


def written(path: Path, labels: np.ndarray, result: DicomResult) -> pydicom.Dataset:
    write_structure_set(path, labels, result)
    return pydicom.dcmread(path)


def masks_by_even_odd(dataset: pydicom.Dataset, series: CtSeries) -> dict[str, np.ndarray]:
    """Read the regions back by the images that the contours name."""
    names = {roi.ROINumber: str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    planes = {(slice_.sop_instance_uid, slice_.frame + 1): z for z, slice_ in enumerate(series.slices)}
    along_x, along_y = np.array(series.orientation_lps[:3]), np.array(series.orientation_lps[3:])
    masks = {}
    for roi in dataset.ROIContourSequence:
        mask = np.zeros((len(series.slices), series.rows, series.columns), bool)
        of_slices: dict[int, list[np.ndarray]] = {}
        for contour in roi.get("ContourSequence", []):
            (image,) = contour.ContourImageSequence
            frame = image.get("ReferencedFrameNumber", 1)
            z = planes[image.ReferencedSOPInstanceUID, frame]
            offsets = np.array(contour.ContourData, float).reshape(-1, 3) - series.slices[z].position_lps_mm
            assert len(offsets) == contour.NumberOfContourPoints
            assert np.abs(offsets @ np.cross(along_x, along_y)).max() < 2e-6
            rows, columns = (
                offsets @ along_y / series.pixel_spacing_mm[0],
                offsets @ along_x / series.pixel_spacing_mm[1],
            )
            of_slices.setdefault(z, []).append(np.stack([rows, columns], axis=1))
        for z, contours in of_slices.items():
            mask[z] = pixels_inside(contours, mask.shape[1:])
        masks[names[roi.ReferencedROINumber]] = mask
    return masks


def masks_by_plastimatch(path: Path, series: CtSeries, folder: Path) -> dict[str, np.ndarray]:
    """Read the regions back as a union of contours."""
    subprocess.run(
        [required_tool("plastimatch"), "convert", "--input", str(path), "--referenced-ct",
         str(series.paths[0].parent), "--output-prefix", str(folder), "--prefix-format", "nrrd"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return {file.stem: sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(bool) for file in folder.iterdir()}


def test_two_independent_readers_give_back_the_very_voxels(series, tmp_path):
    labels = random_labels(9)
    labels[:, 2:9, 2:9], labels[:, 4:7, 4:7], labels[:, 5, 5] = 1, 0, 1  # a hole with an island
    segments = [segment(number, f"label{number}") for number in range(1, 10)]
    segments += [segment(10, "region", 1, 2, 3), segment(11, "all", *range(1, 10)), segment(12, "empty", 77)]
    dataset = written(tmp_path / "rt.dcm", labels, by_model(series, *segments))
    expected = {of.name: np.isin(labels, of.values) for of in segments}
    by_even_odd = masks_by_even_odd(dataset, series)
    by_union = masks_by_plastimatch(tmp_path / "rt.dcm", series, tmp_path / "masks")
    assert by_even_odd.keys() == expected.keys()
    for name, mask in expected.items():
        assert np.array_equal(by_even_odd[name], mask), name
        if name != "empty":  # plastimatch drops what has no contours
            assert np.array_equal(by_union[name], mask), name


@pytest.mark.parametrize(
    ("orientation", "warns"), [(PRONE, False), (CORONAL, True), (OBLIQUE, True), ((0.8, 0.6, 0, -0.6, 0.8, 0), True)]
)
def test_every_orientation_is_exact_and_odd_ones_are_told(orientation, warns, tmp_path):
    synthetic = ct_series(SHAPE, orientation=orientation, pixel_spacing_mm=(0.8, 0.5))
    series = written_series(tmp_path / "series", synthetic)
    labels = random_labels(2)
    warnings = write_structure_set(tmp_path / "rt.dcm", labels, by_model(series, segment(1, "a"), segment(2, "b")))
    assert [text.startswith(series.label) for text in warnings] == [True] * warns
    masks = masks_by_even_odd(pydicom.dcmread(tmp_path / "rt.dcm"), series)
    assert np.array_equal(masks["a"], labels == 1)
    assert np.array_equal(masks["b"], labels == 2)


def test_contours_of_a_sheared_series_lie_on_the_sources_own_slices(tmp_path):
    series = written_series(tmp_path / "series", ct_series(SHAPE, shear_degrees=0.3))
    dataset = written(tmp_path / "rt.dcm", np.ones(SHAPE, np.uint8), by_model(series, segment(1, "a")))
    corners = [contour.ContourData[:3] for contour in dataset.ROIContourSequence[0].ContourSequence]
    positions = np.array([slice_.position_lps_mm for slice_ in series.slices])
    assert np.allclose(np.diff(np.array(corners, float), axis=0), np.diff(positions, axis=0), atol=2e-6)


def test_frames_of_an_enhanced_series_are_named_by_their_numbers(tmp_path):
    series = write_enhanced_ct(tmp_path / "series", ct_series(SHAPE), [3, 2, 1, 0])
    dataset = written(tmp_path / "rt.dcm", labels := random_labels(1), by_model(series, segment(1, "a")))
    first = dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0]
    assert (first.ReferencedSOPClassUID, first.ReferencedFrameNumber) == (series.sop_class_uid, 4)
    assert np.array_equal(masks_by_even_odd(dataset, series)["a"], labels == 1)
    assert dciodvfy_findings(tmp_path / "rt.dcm") == []


def test_what_it_says(series, tmp_path):
    told = {"colour": (255, 128, 0), "modifier": LEFT, "region": LUNG, "region_modifier": LEFT, "display_name": "Lunge"}
    segments = (segment(1, "lung_left", **told), segment(2, "Tumör", category=LUNG))
    result = by_model(series, *segments)
    dataset = written(tmp_path / "rt.dcm", random_labels(2), result)
    source = pydicom.dcmread(series.paths[0])
    for keyword in (
        "PatientName",
        "PatientID",
        "StudyInstanceUID",
        "StudyID",
        "FrameOfReferenceUID",
        "AccessionNumber",
    ):
        assert dataset[keyword].value == source[keyword].value
    assert dataset.SeriesInstanceUID == result.series_uid("dicom_rtstruct")
    assert dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    assert [str(roi.ROIName) for roi in dataset.StructureSetROISequence] == ["lung_left", "Tumör"]
    assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {"AUTOMATIC"}
    assert list(dataset.ROIContourSequence[0].ROIDisplayColor) == [255, 128, 0]
    first, second = dataset.RTROIObservationsSequence
    assert (first.RTROIInterpretedType, second.RTROIInterpretedType) == ("ORGAN", "")
    code = first.RTROIIdentificationCodeSequence[0]
    assert (code.CodeValue, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("39607008", "Left")
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    images = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence
    assert [image.ReferencedSOPInstanceUID for image in images] == [of.sop_instance_uid for of in series.slices]
    assert dciodvfy_findings(tmp_path / "rt.dcm") == []


@pytest.mark.parametrize(
    ("value", "keyword"),
    [
        ("91723000", "CodeValue"),
        ("123456789012345678", "LongCodeValue"),
        ("urn:oid:1.2.3.4.5.6", "URNCodeValue"),
    ],
)
def test_codes_are_called_by_what_they_are(value, keyword, series, tmp_path):
    coded = segment(1, "part", type=Code(value=value, scheme="99LOCAL", meaning="part"))
    dataset = written(tmp_path / "rt.dcm", random_labels(1), by_model(series, coded))
    (code,) = dataset.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence
    assert {element.keyword for element in code} == {keyword, "CodingSchemeDesignator", "CodeMeaning"}
    assert code[keyword].value == value


def test_every_decimal_string_fits_into_sixteen_characters(tmp_path):
    synthetic = ct_series(SHAPE, orientation=OBLIQUE, origin_lps_mm=(-12345.678901, 23456.7, -0.000123))
    series = written_series(tmp_path / "series", synthetic)
    dataset = written(tmp_path / "rt.dcm", random_labels(1), by_model(series, segment(1, "a")))
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        assert max(len(str(value)) for value in contour.ContourData) <= 16


def test_a_label_that_is_nowhere_is_a_region_without_contours(series, tmp_path):
    empty = np.zeros(SHAPE, np.uint8)
    dataset = written(tmp_path / "rt.dcm", empty, by_model(series, segment(1, "a"), segment(2, "b")))
    assert [str(roi.ROIName) for roi in dataset.StructureSetROISequence] == ["a", "b"]
    assert [roi.ReferencedROINumber for roi in dataset.ROIContourSequence] == [1, 2]
    assert not any("ContourSequence" in roi for roi in dataset.ROIContourSequence)
    assert dciodvfy_findings(tmp_path / "rt.dcm") == []


def test_the_same_result_is_the_same_bytes_in_every_process(series, tmp_path):
    result, labels = by_model(series, segment(1, "a", colour=(1, 2, 3)), segment(2, "ab", 1, 2)), random_labels(2)
    write_structure_set(tmp_path / "here.dcm", labels, result)
    (tmp_path / "call").write_bytes(pickle.dumps((labels, result)))
    code = (
        "import pickle, sys; from pathlib import Path; from ctseg.files.dicom.structure_set import write_structure_set;"
        "write_structure_set(Path(sys.argv[2]), *pickle.loads(Path(sys.argv[1]).read_bytes()))"
    )
    there = tmp_path / "there.dcm"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "call"), str(there)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        timeout=120,
    )
    assert there.read_bytes() == (tmp_path / "here.dcm").read_bytes()
    other = written(tmp_path / "other.dcm", np.where(labels == 1, 2, labels), result)
    here = pydicom.dcmread(tmp_path / "here.dcm")
    assert other.SOPInstanceUID != here.SOPInstanceUID
    assert other.SeriesInstanceUID == here.SeriesInstanceUID


def test_tags_that_dicom_does_not_allow_are_cut_or_left_out(tmp_path):
    synthetic = ct_series(SHAPE, patient_name="Do\\e^Ja\nne")
    for dataset in synthetic.datasets:
        set_tags(dataset, StudyID="a study ID of more than sixteen", PatientBirthDate="1.1.70", PatientSex="female")
    series = written_series(tmp_path / "series", synthetic)
    dataset = written(tmp_path / "rt.dcm", random_labels(1), by_model(series, segment(1, "a\\b" * 40)))
    assert (dataset.StudyID, dataset.PatientBirthDate, dataset.PatientSex) == ("a study ID of mo", "", "")
    assert len(dataset.StructureSetROISequence[0].ROIName) <= 64
    assert dciodvfy_findings(tmp_path / "rt.dcm") == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"frame_of_reference_uid": ""}, "no FrameOfReferenceUID"),
        ({"study_uid": "a study"}, "UIDs that are none"),
        ({"problem": "gantry tilt of 14 degrees"}, "gantry tilt of 14 degrees"),
        ({"pixel_spacing_mm": (0.8, 0.0005)}, "found 0.0005 mm"),
        ({"pixel_spacing_mm": (0.8, float("nan"))}, "found nan mm"),
        ({"pixel_spacing_mm": (60.0, 0.001)}, "at most 1000000 of them from the origin, found 0.001 mm and 13"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(changes, told, series, tmp_path):
    series = replace(series, **changes)
    result = by_model(series, segment(1, "a"))
    assert told in structure_set_problem(result)
    with pytest.raises(InputError, match=f"{told}") as caught:
        write_structure_set(tmp_path / "rt.dcm", random_labels(1), result)
    assert series.label in str(caught.value)
    assert not (tmp_path / "rt.dcm").exists()


def test_a_series_that_can_be_written_has_no_problem(series):
    assert structure_set_problem(by_model(series, segment(1, "a"))) is None


def test_a_file_that_has_changed_is_refused(series, tmp_path):
    slices = tuple(replace(slice_, sop_instance_uid="1.2.3") for slice_ in series.slices)
    with pytest.raises(InputError, match="has changed"):
        write_structure_set(
            tmp_path / "rt.dcm", random_labels(1), by_model(replace(series, slices=slices), segment(1, "a"))
        )
    assert not (tmp_path / "rt.dcm").exists()


def test_labels_scattered_over_too_many_parts_are_refused_by_name(series, tmp_path, monkeypatch):
    monkeypatch.setattr("ctseg.files.dicom.structure_set._MAX_CONTOURS", 50)
    with pytest.raises(InputError, match="at most 50 contours and 2 GiB"):
        write_structure_set(tmp_path / "rt.dcm", random_labels(9), by_model(series, segment(1, "a"), segment(2, "b")))
    assert not (tmp_path / "rt.dcm").exists()


def test_a_file_that_cannot_be_written_is_told_in_the_systems_words(series, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"^\[Errno 27\] [^\n]*$") as told:
            write_structure_set(tmp_path / "rt.dcm", random_labels(2), by_model(series, segment(1, "a")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told.value.errno == errno.EFBIG
