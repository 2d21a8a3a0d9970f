"""Regions of structure sets, ctseg's and others', as voxels; what lies elsewhere is refused by name."""

import copy
import logging
import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from ctseg.errors import InputError
from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.label_headers import find_label_objects
from ctseg.files.dicom.series import CtSeries
from ctseg.files.dicom.structure_set import write_structure_set
from ctseg.files.dicom.structure_set_reader import read_structure_set
from tests.support.dicom_results import OVERLAPPING, SEGMENTS, result_of, some_labels, write_ct
from tests.support.dicom_series import OBLIQUE, ct_series, set_raw
from tests.support.even_odd import pixels_inside

SHAPE = (4, 20, 24)


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> CtSeries:
    return write_ct(tmp_path_factory.mktemp("series"), ct_series(SHAPE, pixel_spacing_mm=(0.8, 0.5)))


@pytest.fixture
def one_region(series, tmp_path) -> Path:
    """A structure set with one region, ``liver``, of all voxels of the second slice."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1] = 1
    write_structure_set(tmp_path / "rt.dcm", labels, result_of(series, segments=SEGMENTS[:1]))
    return tmp_path / "rt.dcm"


def change(path: Path, *contours: tuple[str, np.ndarray]) -> Dataset:
    """Give a structure set other contours: their type, and (points, 3) in millimetres."""
    dataset = pydicom.dcmread(path)
    (template,) = dataset.ROIContourSequence[0].ContourSequence
    made = []
    for kind, points in contours:
        contour = Dataset()
        contour.ContourImageSequence = template.ContourImageSequence
        contour.ContourGeometricType = kind
        contour.NumberOfContourPoints = len(points)
        contour.ContourData = [f"{value:.10g}" for value in points.ravel()]
        made.append(contour)
    dataset.ROIContourSequence[0].ContourSequence = Items(made)
    dataset.save_as(path)
    return dataset


def at(series: CtSeries, z: float, *corners: tuple[float, float]) -> np.ndarray:
    """Points at rows and columns of a slice, in millimetres."""
    x, y = np.array(series.orientation_lps).reshape(2, 3)
    step, first = np.array(series.step_lps_mm), np.array(series.slices[0].position_lps_mm)
    return np.array(
        [first + z * step + row * series.pixel_spacing_mm[0] * y + column * series.pixel_spacing_mm[1] * x
         for row, column in corners]
    )  # fmt: skip


def square(low: float, high: float) -> tuple[tuple[float, float], ...]:
    return ((low, low), (low, high), (high, high), (high, low))


@pytest.mark.parametrize("options", [{}, {"orientation": OBLIQUE}, {"shear_degrees": 0.3}])
def test_what_is_written_is_read_back(options, tmp_path):
    series = write_ct(tmp_path / "series", ct_series(SHAPE, pixel_spacing_mm=(0.8, 0.5), **options))
    labels = some_labels(SHAPE)
    write_structure_set(tmp_path / "rt.dcm", labels, result_of(series, segments=OVERLAPPING))
    masks = read_structure_set(tmp_path / "rt.dcm", series)
    assert list(masks) == ["liver", "tumour", "core"]
    for segment in OVERLAPPING:
        assert np.array_equal(masks[segment.name], np.isin(labels, segment.values))
    assert list(read_structure_set(tmp_path / "rt.dcm", series, {"core"})) == ["core"]


def test_a_region_without_contours_has_no_voxels(series, tmp_path):
    write_structure_set(tmp_path / "rt.dcm", np.zeros(SHAPE, np.uint8), result_of(series))
    masks = read_structure_set(tmp_path / "rt.dcm", series)
    assert len(masks) == 3
    assert not any(mask.any() for mask in masks.values())


def test_voxels_whose_centres_lie_inside_belong_to_it(series, one_region):
    corners = ((2.2, 3.1), (15.3, 9.9), (6.4, 20.6))
    change(one_region, ("CLOSED_PLANAR", at(series, 2, *corners)))
    mask = read_structure_set(one_region, series)["liver"]
    assert np.array_equal(mask[2], pixels_inside([np.array(corners)], SHAPE[1:]))
    assert not mask[[0, 1, 3]].any()


def test_a_centre_on_a_contour_counts_where_the_inside_begins(series, one_region):
    change(one_region, ("CLOSED_PLANAR", at(series, 0, *square(4, 8))))
    mask = read_structure_set(one_region, series)["liver"]
    assert np.argwhere(mask[0]).min(axis=0).tolist() == [4, 4]
    assert np.argwhere(mask[0]).max(axis=0).tolist() == [7, 7]


def test_contours_within_contours_are_holes_and_islands(series, one_region):
    rings = [square(1.5, 14.5), square(4.5, 11.5), square(6.5, 8.5)]
    change(one_region, *(("CLOSED_PLANAR", at(series, 0, *ring)) for ring in rings))
    expected = pixels_inside([np.array(ring) for ring in rings], SHAPE[1:])
    assert expected.sum() == 13**2 - 7**2 + 2**2
    assert np.array_equal(read_structure_set(one_region, series)["liver"][0], expected)


def test_contours_beyond_the_image_are_cut_at_its_border(series, one_region):
    change(one_region, ("CLOSED_PLANAR", at(series, 0, *square(-1e6, 1e6))))
    assert read_structure_set(one_region, series)["liver"][0].all()
    change(one_region, ("CLOSED_PLANAR", at(series, 0, *square(100, 1e6))))
    assert not read_structure_set(one_region, series)["liver"].any()


def test_points_open_and_repeated_contours_are_passed_over_and_told(series, one_region, caplog):
    kept, line = at(series, 0, *square(1.5, 9.5)), at(series, 0, *square(12.5, 14.5))
    change(one_region, ("CLOSED_PLANAR", kept), ("CLOSED_PLANAR", kept), ("OPEN_PLANAR", line), ("POINT", line[:1]))
    with caplog.at_level(logging.WARNING):
        mask = read_structure_set(one_region, series)["liver"]
    assert mask.sum() == 64
    (record,) = caplog.records
    told = "passed over 1 contours that repeat another one, 1 open contours, 1 points"
    assert record.message == f"{series.label}: region liver of its structure set: {told}"


@pytest.mark.parametrize("turn", [0, 1, 3])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_contour_is_repeated_wherever_it_begins_and_whichever_way_it_goes(turn, direction, series, one_region):
    kept = at(series, 0, *square(1.5, 9.5))
    again = np.roll(kept, turn, axis=0)[::direction]
    closed = np.vstack([again, again[:1]])
    change(one_region, *(("CLOSED_PLANAR", points) for points in (kept, again, closed)))
    assert read_structure_set(one_region, series)["liver"].sum() == 64


@pytest.mark.parametrize(
    ("squares", "told"),
    [
        ([(1.5, 9.5), (5.5, 12.5)], "contours cross in 1 slices, and what lies in two of them is taken as a hole"),
        ([(1.5, 9.5), (10.5, 25.5)], "1 of its contours reach beyond the slices, and end there"),
        ([(101.5, 109.5)], "1 of its contours reach beyond the slices, and end there"),
        ([(1.5, 15.5), (3.5, 9.5), (5.5, 7.5)], None),
        ([(1.5, 9.5), (9.5, 12.5)], None),
        ([(-0.5, 19.5)], None),
    ],
)
def test_contours_that_nobody_draws_on_purpose_are_told(squares, told, series, one_region, caplog):
    change(one_region, *(("CLOSED_PLANAR", at(series, 0, *square(*ends))) for ends in squares))
    read_structure_set(one_region, series)
    messages = [] if told is None else [f"{series.label}: region liver of its structure set: {told}"]
    assert caplog.messages == messages


def test_names_of_regions_stand_on_one_line(series, one_region):
    dataset = pydicom.dcmread(one_region)
    set_raw(dataset.StructureSetROISequence[0], "ROIName", "LO", b"liver\\1\n2")
    dataset.save_as(one_region)
    assert list(read_structure_set(one_region, series)) == ["liver\\1\\n2"]


def test_regions_of_one_number_are_refused(series, one_region):
    dataset = pydicom.dcmread(one_region)
    again = copy.deepcopy(dataset.StructureSetROISequence[0])
    again.ROIName = "spleen"
    dataset.StructureSetROISequence.append(again)
    dataset.save_as(one_region)
    with pytest.raises(InputError, match="1 of its 2 regions have the ROINumber of another one"):
        read_structure_set(one_region, series)


@pytest.mark.parametrize("z", [0.08, 2.92])
def test_contours_a_little_off_the_slices_are_taken(z, series, one_region):
    change(one_region, ("CLOSED_PLANAR", at(series, z, *square(1.5, 9.5))))
    assert read_structure_set(one_region, series)["liver"][round(z)].sum() == 64


@pytest.mark.parametrize(("z", "told"), [(0.5, "1.25 mm"), (1.12, "0.3 mm"), (-1, "2.5 mm"), (9, "15 mm")])
def test_contours_off_the_slices_are_refused_by_name(z, told, series, one_region):
    change(one_region, ("CLOSED_PLANAR", at(series, z, *square(1.5, 9.5))))
    with pytest.raises(InputError, match="is refused: region liver: a contour lies") as caught:
        read_structure_set(one_region, series)
    assert str(caught.value).startswith(series.label)
    assert f"{told} off the nearest slice, 0.25 mm are allowed" in str(caught.value)


def test_a_contour_across_slices_is_refused(series, one_region):
    points = np.concatenate([at(series, 0, *square(1.5, 9.5)[:2]), at(series, 1, *square(1.5, 9.5)[2:])])
    change(one_region, ("CLOSED_PLANAR", points))
    with pytest.raises(InputError, match="off the nearest slice"):
        read_structure_set(one_region, series)


def test_another_frame_of_reference_is_refused(series, one_region):
    other = replace(series, frame_of_reference_uid="1.2.3")
    with pytest.raises(InputError, match="region liver has another FrameOfReferenceUID"):
        read_structure_set(one_region, other)


@pytest.mark.parametrize(
    "value", [b"1\\2\\3\\4", b"", b"1\\2\\nan\\4\\5\\6", b"1\\2\\1e999\\4\\5\\6", b"a\\b\\c", b"\\\\", b"1\\2\\3"]
)
def test_contours_that_are_no_points_are_refused(value, series, one_region):
    dataset = pydicom.dcmread(one_region)
    set_raw(dataset.ROIContourSequence[0].ContourSequence[0], "ContourData", "DS", value)
    rewritten_explicitly(dataset, one_region)
    with pytest.raises(InputError, match=series.label.replace("(", r"\(").replace(")", r"\)")):
        read_structure_set(one_region, series)


def test_a_contour_of_fewer_points_than_it_says_is_refused(series, one_region):
    dataset = change(one_region, ("CLOSED_PLANAR", at(series, 0, *square(1.5, 9.5))))
    dataset.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 5
    dataset.save_as(one_region)
    with pytest.raises(InputError, match="expected x, y and z for each of 5 points, found 12 values"):
        read_structure_set(one_region, series)


def rewritten_explicitly(dataset: Dataset, path: Path) -> None:
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.save_as(path, implicit_vr=False, little_endian=True)


@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_file_that_is_cut_off_never_loses_contours_in_silence(is_implicit, series, one_region):
    dataset = pydicom.dcmread(one_region)
    if not is_implicit:
        rewritten_explicitly(dataset, one_region)
    whole, expected = one_region.read_bytes(), read_structure_set(one_region, series)["liver"]
    for size in [*range(200, len(whole) - 200, 61), *range(len(whole) - 200, len(whole))]:
        one_region.write_bytes(whole[:size])
        try:
            found = read_structure_set(one_region, series)["liver"]
        except InputError:
            continue
        assert np.array_equal(found, expected)


def test_an_element_of_undefined_length_is_whole(series, one_region):
    expected = read_structure_set(one_region, series)["liver"]
    dataset = pydicom.dcmread(one_region)
    block = dataset.private_block(0x0099, "ctseg tests", create=True)
    block.add_new(1, "OB", pydicom.encaps.encapsulate([b"1234"]))
    block[1].is_undefined_length = True
    rewritten_explicitly(dataset, one_region)
    assert np.array_equal(read_structure_set(one_region, series)["liver"], expected)


def test_other_objects_pipes_and_missing_files_are_refused(series, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (series.paths[0], tmp_path / "pipe", tmp_path / "none", tmp_path):
        with pytest.raises(InputError) as caught:
            read_structure_set(path, series)
        assert str(tmp_path) not in str(caught.value)


def test_label_objects_are_found_by_the_series_that_they_refer_to(series, one_region, tmp_path):
    (tmp_path / "copy").write_bytes(one_region.read_bytes())
    (tmp_path / "text").write_text("nothing")
    found, unreadable = find_label_objects([*series.paths, *tmp_path.iterdir()])
    assert unreadable == 0
    (of_series,) = found
    assert (of_series.kind, of_series.names, of_series.series_uids) == ("RTSTRUCT", ("liver",), {series.series_uid})
    assert of_series.read(series, ["liver"])["liver"].sum() == 20 * 24


def test_physicians_contours_give_back_the_mask_that_was_made_of_them(shared_data):
    folder = shared_data / "sts_sarcoma_dicom" / "STS_042"
    (series,) = find_series(sorted((folder / "ct").iterdir())).series
    mask = read_structure_set(folder / "rtstruct.dcm", series)["GTV_Mass_CT"]
    expected = np.asarray(nibabel.load(shared_data / "sts_sarcoma" / "test" / "STS_042_gtv.nii.gz").dataobj).T > 0
    assert expected.sum() == 11_175
    assert np.count_nonzero(mask != expected) == 0
