import os
import tarfile
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless

from ctseg.errors import InputError
from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.label_headers import find_label_objects
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.segmentation import write_segmentation
from ctseg.files.dicom.segmentation_reader import read_segments
from tests.support.dicom_results import OVERLAPPING, result_of, some_labels, write_ct
from tests.support.dicom_series import OBLIQUE, ct_series, set_raw, uid

SHAPE = (6, 7, 9)


@pytest.fixture(scope="module")
def made():
    return ct_series(SHAPE, orientation=OBLIQUE, patient_name="Doe^Jane")


@pytest.fixture(scope="module")
def series(made, tmp_path_factory):
    return write_ct(tmp_path_factory.mktemp("series"), made)


@pytest.fixture
def segmentation(series, tmp_path):
    """Of the series, and where it lies."""
    path = tmp_path / "Doe^Jane.dcm"
    write_segmentation(path, some_labels(SHAPE), result_of(series))
    return path


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_what_was_written_is_read(tmp_path, series, kind):
    labels = some_labels(SHAPE)
    write_segmentation(tmp_path / "seg.dcm", labels, result_of(series, segmentation_type=kind))
    found = read_segments(tmp_path / "seg.dcm", series)
    assert list(found) == ["liver", "kidney_left", "liver_tumor"]
    for name, value in zip(found, (1, 2, 5), strict=True):
        np.testing.assert_array_equal(found[name], labels == value)
    (only,) = read_segments(tmp_path / "seg.dcm", series, ["kidney_left"])
    assert only == "kidney_left"


def test_regions_that_overlap_and_segments_of_one_name_are_read(tmp_path, series):
    labels = some_labels(SHAPE)
    segments = (*OVERLAPPING[:2], replace(OVERLAPPING[2], name="liver", values=(1,)))
    write_segmentation(tmp_path / "seg.dcm", labels, result_of(series, segments=segments))
    found = read_segments(tmp_path / "seg.dcm", series)
    assert list(found) == ["liver", "tumour"]
    np.testing.assert_array_equal(found["liver"], labels > 0)
    np.testing.assert_array_equal(found["tumour"], (labels == 2) | (labels == 5))


def test_half_of_the_highest_fraction_counts(tmp_path, made, series):
    fractions = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    algorithm = hd.AlgorithmIdentificationSequence("other", codes.DCM.ArtificialIntelligence, "1")
    segment = hd.seg.SegmentDescription(1, "liver", codes.SCT.Organ, codes.SCT.Liver, "AUTOMATIC", algorithm)
    with quiet():
        other = hd.seg.Segmentation(
            made.datasets, fractions, "FRACTIONAL", [segment], uid(1), 1, uid(2), 1, "m", "m", "1", "1",
            transfer_syntax_uid=RLELossless,
        )  # fmt: skip
    other.save_as(tmp_path / "seg.dcm")
    found = read_segments(tmp_path / "seg.dcm", series)
    np.testing.assert_array_equal(found["liver"], np.around(fractions * 255) >= 127.5)


def test_fractions_of_one_bit_are_whole(segmentation, series):
    expected = read_segments(segmentation, series)["liver"]
    read = pydicom.dcmread(segmentation)
    read.SegmentationType, read.MaximumFractionalValue = "FRACTIONAL", 255
    read.save_as(segmentation)
    np.testing.assert_array_equal(read_segments(segmentation, series)["liver"], expected)


def test_names_of_several_values_and_lines_are_the_same_in_headers_and_labels(segmentation, series):
    read = pydicom.dcmread(segmentation)
    read.SegmentSequence[0].SegmentLabel = ["GTV", "1"]
    read.SegmentSequence[1].SegmentLabel = "two\nlines"
    read.save_as(segmentation)
    (found,), unreadable = find_label_objects([segmentation])
    assert (found.names, unreadable) == (("GTV\\1", "two\\nlines", "liver_tumor"), 0)
    assert tuple(found.read(series, found.names)) == found.names


def test_values_of_a_labelmap_that_no_segment_has_are_refused(tmp_path, series):
    path = tmp_path / "seg.dcm"
    write_segmentation(path, some_labels(SHAPE), result_of(series, segmentation_type="LABELMAP"))
    read = pydicom.dcmread(path)
    read.SegmentSequence.pop()
    read.save_as(path)
    with pytest.raises(InputError, match="it has voxels of segment 3, which it does not describe"):
        read_segments(path, series, ["liver"])


def test_a_segment_of_dcmqi_is_the_label_that_slicer_drew(tmp_path, shared_data):
    odd = shared_data / "odd" / "dcmqi_3slice"
    with tarfile.open(odd / "ct_3slice_dicom.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (series,) = find_series(sorted(tmp_path.rglob("*.dcm"))).series
    found = read_segments(odd / "liver_dicomseg.dcm", series)
    drawn = sitk.GetArrayFromImage(sitk.ReadImage(odd / "liver_spine_seg.nrrd"))
    np.testing.assert_array_equal(found["Liver"], drawn == 1)


def _moved(read):
    position = read.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0].ImagePositionPatient
    position[0] = float(position[0]) + 0.2


def _turned(read):
    read.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def _placed_at(position):
    def change(read):
        (place,) = read.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
        set_raw(place, "ImagePositionPatient", "DS", position)

    return change


def _numbered_twice(read):
    read.SegmentSequence[1].SegmentNumber = 1


def _of_nobody(read):
    read.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def _longer(read):
    read.PixelData += bytes(64)


CHANGES = [
    (_numbered_twice, "its SEG is refused: several of its segments have one SegmentNumber"),
    (_of_nobody, "its SEG is refused: it has voxels of segment 9, which it does not describe"),
    (_longer, "its SEG is refused: it has voxels of more frames than it describes"),
    (_moved, "its SEG is refused: a frame lies 0.2 mm from the nearest slice, 0.05 mm are allowed"),
    (_turned, "its SEG is refused: a frame lies"),
    (_placed_at(b"Doe\\J\\J"), "its SEG cannot be read (ValueError): it is cut off, or no valid DICOM"),
    (_placed_at(b"nan\\0\\0 "), "its SEG cannot be read (ValueError)"),
    (lambda read: setattr(read, "FrameOfReferenceUID", uid("other")), "it has another FrameOfReferenceUID"),
    (lambda read: setattr(read, "Rows", 8), "expected frames of 7 x 9 voxels as the slices, found 8 x 9"),
    (lambda read: setattr(read, "NumberOfFrames", 10**9), "it says 1000000000 frames and describes 15"),
    (lambda read: setattr(read, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), "expected a SEG, found another object"),
    (lambda read: read.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence"), "have no PixelMeasuresSequence"),
    (lambda read: read.pop("SegmentSequence"), "its SEG cannot be read (AttributeError)"),
    (lambda read: setattr(read, "PixelData", read.PixelData[:40]), "it is cut off: its frames are not all there"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_what_lies_elsewhere_or_is_malformed_is_refused_without_a_name(segmentation, series, change, told, capfd):
    with quiet():
        read = pydicom.dcmread(segmentation)
        change(read)
        read.save_as(segmentation)
    with pytest.raises(InputError) as error:
        read_segments(segmentation, series)
    assert str(error.value).startswith(series.label)
    assert told in str(error.value)
    assert "Doe" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file_or_half_a_file_is_refused(tmp_path, segmentation, series):
    whole = segmentation.read_bytes()
    for size in (0, 100, 1000, len(whole) // 2, len(whole) - 10):
        segmentation.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"^series 3 .*: its SEG (cannot be read|is refused)"):
            read_segments(segmentation, series)
    os.mkfifo(tmp_path / "pipe")
    for path, told in ((tmp_path / "pipe", "is a named pipe"), (tmp_path / "nothing", "No such file")):
        with pytest.raises(InputError, match=told):
            read_segments(Path(path), series)
