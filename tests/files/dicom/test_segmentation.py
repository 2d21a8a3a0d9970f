import hashlib
import logging
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from pydicom.uid import RLELossless

from ctseg.errors import InputError
from ctseg.files.dicom import results
from ctseg.files.dicom.object_kinds import DICOM_ENDINGS
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.results import Segment
from ctseg.files.dicom.segmentation import segmentation_problem, write_segmentation
from ctseg.files.geometry import RAS_FROM_LPS
from tests.support.dicom_results import (
    LIVER,
    MAKER,
    OVERLAPPING,
    SEGMENTS,
    result_of,
    some_labels,
    write_ct,
    write_enhanced_ct,
)
from tests.support.dicom_series import CORONAL, OBLIQUE, ct_series, set_raw, set_tags
from tests.support.dicom_tools import ALLOWED_OF_LABELMAP, ALLOWED_OF_SOURCE, dciodvfy_findings

SHAPE = (6, 7, 9)
"""63 pixels a frame: bits of one byte belong to two frames."""


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_ct(tmp_path_factory.mktemp("series"), ct_series(SHAPE))


def written(path, labels, result):
    write_segmentation(path, labels, result)
    return path


def frames_by_hand(path):
    """The masks of an uncompressed file by segment and position, by the bits that stand in it."""
    with quiet():
        read = pydicom.dcmread(path)
    size = read.Rows * read.Columns
    bits = np.unpackbits(np.frombuffer(read.PixelData, np.uint8), bitorder="little")[: read.NumberOfFrames * size]
    masks = bits.reshape(read.NumberOfFrames, read.Rows, read.Columns).astype(bool)
    found = {}
    for frame, mask in zip(read.PerFrameFunctionalGroupsSequence, masks, strict=True):
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient))
        found[number, position] = mask
    assert len(found) == read.NumberOfFrames
    return found


def volumes_by_highdicom(path, series):
    """(segment, z, y, x), turned to the order of the series' slices."""
    volume = segread(path).get_volume()
    wanted = series.geometry.affine_ras
    steps = np.linalg.inv(wanted) @ np.diag([-1, -1, 1, 1]) @ volume.affine
    whole = np.zeros((volume.array.shape[-1], *series.geometry.shape), bool)
    for index in np.argwhere(volume.array):
        x, y, z = np.rint(steps[:3, :3] @ index[:3] + steps[:3, 3]).astype(int)
        whole[index[3], z, y, x] = True
    return whole


@pytest.mark.parametrize("orientation", [(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), CORONAL, OBLIQUE])
def test_binary_segments_are_the_labels_for_highdicom_and_by_hand(tmp_path, orientation):
    series = write_ct(tmp_path / "ct", ct_series(SHAPE, orientation=orientation))
    labels = some_labels(SHAPE)
    path = written(tmp_path / "seg.dcm", labels, result_of(series))
    expected = [labels == 1, labels == 2, labels == 5]
    np.testing.assert_array_equal(volumes_by_highdicom(path, series), expected)
    frames = frames_by_hand(path)
    for number, mask in enumerate(expected, start=1):
        for slice_, plane in zip(series.slices[1:], mask[1:], strict=True):
            np.testing.assert_array_equal(frames[number, slice_.position_lps_mm], plane)
    assert len(frames) == 3 * 5  # none for the first slice, which is empty
    assert dciodvfy_findings(path) == []


@pytest.mark.parametrize(("count", "bits"), [(3, 8), (256, 16)])
def test_a_label_map_holds_a_number_a_voxel_and_every_slice(tmp_path, series, count, bits):
    segments = tuple(Segment(number, f"label {number}", (2 * number,), LIVER) for number in range(1, count + 1))
    labels = some_labels(SHAPE, (2, 4, 6)).astype(np.uint16)
    labels[1, 0, 0] = 2 * count
    result = result_of(series, segments=segments, segmentation_type="LABELMAP")
    path = written(tmp_path / "seg.dcm", labels, result)
    read = segread(path)
    assert read.file_meta.TransferSyntaxUID == RLELossless
    assert (read.SegmentationType, read.NumberOfFrames, read.BitsStored) == ("LABELMAP", SHAPE[0], bits)
    np.testing.assert_array_equal(read.pixel_array, labels // 2)
    assert [read.SegmentSequence[number].SegmentNumber for number in (0, 1, count)] == [0, 1, count]
    assert dciodvfy_findings(path, ALLOWED_OF_LABELMAP) == []


def test_regions_that_overlap_are_segments_of_their_own(tmp_path, series):
    labels = some_labels(SHAPE)
    path = written(tmp_path / "seg.dcm", labels, result_of(series, segments=OVERLAPPING))
    np.testing.assert_array_equal(
        volumes_by_highdicom(path, series), [labels > 0, (labels == 2) | (labels == 5), labels == 5]
    )
    assert segread(path).SegmentsOverlap == "YES"
    assert dciodvfy_findings(path) == []
    refused = result_of(series, segments=OVERLAPPING, segmentation_type="LABELMAP")
    assert "liver and tumour share voxels: write it as BINARY" in segmentation_problem(refused)
    with pytest.raises(InputError, match=r"^series 3 .*share voxels"):
        write_segmentation(tmp_path / "refused.dcm", labels, refused)
    assert not (tmp_path / "refused.dcm").exists()


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_an_empty_label_map_has_a_frame_that_says_so(tmp_path, series, kind):
    result = result_of(series, segmentation_type=kind)
    labels = np.full(SHAPE, 9, np.uint8)  # of no segment
    path = written(tmp_path / "seg.dcm", labels, result)
    read = segread(path)
    assert read.NumberOfFrames == {"BINARY": 3, "LABELMAP": SHAPE[0]}[kind]
    assert not read.pixel_array.any()
    assert dciodvfy_findings(path, ALLOWED_OF_LABELMAP if kind == "LABELMAP" else ()) == []


def test_a_label_that_is_nowhere_has_its_number_and_no_frame(tmp_path, series):
    labels = np.where(some_labels(SHAPE) == 5, 5, 0)
    path = written(tmp_path / "seg.dcm", labels, result_of(series))
    assert {number for number, _ in frames_by_hand(path)} == {3}
    assert [segment.SegmentLabel for segment in segread(path).SegmentSequence] == [
        "liver", "kidney_left", "liver_tumor",
    ]  # fmt: skip


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, 300), (np.int64, 65535)])
def test_labels_of_any_type_and_value_are_taken(tmp_path, series, dtype, value):
    labels = np.zeros(SHAPE, dtype)
    labels[2, 3, 4], labels[2, 3, 5] = value, 7
    segments = (Segment(1, "high", (value,), LIVER),)
    for kind in ("BINARY", "LABELMAP"):
        result = result_of(series, segments=segments, segmentation_type=kind)
        read = segread(written(tmp_path / f"{kind}.dcm", labels, result))
        assert np.argwhere(read.pixel_array.reshape(-1, *SHAPE[1:]))[:, 1:].tolist() == [[3, 4]]


@pytest.mark.parametrize("multi_frame", [False, True])
def test_every_frame_refers_to_its_slice_in_order_of_the_slices(tmp_path, multi_frame):
    made = ct_series(SHAPE)
    if multi_frame:
        series = write_enhanced_ct(tmp_path / "ct", made, [3, 0, 5, 1, 4, 2])
    else:
        series = write_ct(tmp_path / "ct", made)
    read = segread(written(tmp_path / "seg.dcm", some_labels(SHAPE), result_of(series)))
    referred = []
    for frame in read.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        referred.append((source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")))
        assert source.ReferencedSOPClassUID == series.sop_class_uid
    each = [(item.sop_instance_uid, item.frame + 1 if multi_frame else None) for item in series.slices[1:]]
    assert referred == each * 3
    (whole,) = read.ReferencedSeriesSequence
    assert whole.SeriesInstanceUID == series.series_uid
    uids = [item.ReferencedSOPInstanceUID for item in whole.ReferencedInstanceSequence]
    assert uids == list(dict.fromkeys(item.sop_instance_uid for item in series.slices))
    assert dciodvfy_findings(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize(("degrees", "count"), [(0.05, 6), (0.3, 6), (0.6, 4)])
def test_slices_keep_their_own_positions_where_the_step_is_not_along_the_normal(tmp_path, degrees, count):
    shape = (count, *SHAPE[1:])
    series = write_ct(tmp_path / "ct", ct_series(shape, shear_degrees=degrees))
    path = written(tmp_path / "seg.dcm", some_labels(shape), result_of(series))
    found = sorted({position for _, position in frames_by_hand(path)})
    np.testing.assert_allclose(found, sorted(item.position_lps_mm for item in series.slices[1:]), atol=1e-9)
    geometry = series.geometry
    straight = [geometry.affine_ras[:3] @ (0, 0, z, 1) @ RAS_FROM_LPS for z in range(1, count)]
    assert np.linalg.norm(np.array(found) - sorted(map(tuple, straight)), axis=1).max() < 0.05
    by_highdicom = segread(path).get_volume_geometry()
    first, last = ([*by_highdicom.affine[:3] @ (z, 0, 0, 1)] for z in (0, by_highdicom.spatial_shape[0] - 1))
    assert np.linalg.norm(np.array([last, first]) - [straight[0], straight[-1]], axis=1).max() < 0.05


def test_segments_say_what_they_are_and_who_made_them(tmp_path, series):
    result = result_of(series)
    read = segread(written(tmp_path / "seg.dcm", some_labels(SHAPE), result))
    liver, kidney, tumour = read.SegmentSequence
    assert [item.SegmentNumber for item in read.SegmentSequence] == [1, 2, 3]
    assert liver.segmented_property_category.meaning == "Anatomical Structure"
    assert liver.segmented_property_type.value == "10200004"
    lightness, a, b = (value / 65535 for value in liver.RecommendedDisplayCIELabValue)
    assert (100 * lightness, 255 * a - 128, 255 * b - 128) == pytest.approx((51.30, -45.94, 34.20), abs=0.01)
    (side,) = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert (side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning) == ("7771000", "SCT", "Left")
    (region,) = tumour.AnatomicRegionSequence
    assert (region.CodeMeaning, region.AnatomicRegionModifierSequence[0].CodeMeaning) == ("Liver", "Right")
    (algorithm,) = liver.SegmentationAlgorithmIdentificationSequence
    assert (liver.SegmentAlgorithmType, liver.SegmentAlgorithmName) == ("AUTOMATIC", "abdomen")
    assert algorithm.AlgorithmVersion == "3"
    assert algorithm.AlgorithmParameters == f"spec_sha256={MAKER.digest},tile_step_size=0.5,mirroring=True"
    assert liver.TrackingID == "abdomen liver"
    assert len({item.TrackingUID for item in read.SegmentSequence}) == 3
    assert read.SeriesDescription.startswith("abdomen 3, 01234567, SEG ")
    assert read.SeriesInstanceUID == result.series_uid("dicom_seg")
    assert (read.SeriesNumber, read.Modality) == (301, "SEG")
    assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (series.study_uid, series.frame_of_reference_uid)
    assert (read.PatientName, read.PatientID, read.PatientBirthDate) == ("Doe^Jane", "0042", "19700101")
    assert (read.ContentDate, read.ContentTime) == ("20260102", "101500")
    assert "InstanceCreationDate" not in read
    assert read.ContentCreatorName == ""


def test_what_was_done_otherwise_is_another_series_with_another_description(tmp_path, series):
    labels = some_labels(SHAPE)
    changes = (
        {},
        {"maker": replace(MAKER, options=(("tile_step_size", 0.75),))},
        {"maker": replace(MAKER, digest="f" * 64)},
        {"segments": (*SEGMENTS[:2], replace(SEGMENTS[2], presentation=LIVER))},
    )
    read = [
        segread(written(tmp_path / f"{number}.dcm", labels, result_of(series, **changed)))
        for number, changed in enumerate(changes)
    ]
    for keyword in ("SeriesInstanceUID", "SOPInstanceUID", "SeriesDescription"):
        assert len({item[keyword].value for item in read}) == len(changes)


def test_uids_hang_on_what_stands_in_the_objects_and_on_nothing_else(series, monkeypatch):
    def uids(**changed):
        result = result_of(changed.pop("series", series), **changed)
        return {kind: result.series_uid(kind) for kind in DICOM_ENDINGS}

    plain = uids()
    liver, *others = SEGMENTS
    measured = LIVER.model_copy(update={"training_volumes_ml": (1.0, 2.0, 3.0)})
    assert uids(segments=(replace(liver, presentation=measured), *others)) == plain
    assert uids(series=replace(series, slices=series.slices[::-1], series_number=9)) == plain
    as_label_map = uids(segmentation_type="LABELMAP")
    assert {kind for kind, uid in plain.items() if uid == as_label_map[kind]} == {"dicom_rtstruct"}
    coloured = LIVER.model_copy(update={"colour": (1, 2, 3)})
    for changed in (
        {"series": replace(series, study_uid="1.2.3")},  # a copy of the images in another study
        {"series": replace(series, series_uid="1.2.3")},
        {"series": replace(series, slices=series.slices[1:])},
        {"maker": replace(MAKER, model="other")},
        {"maker": replace(MAKER, version="4")},
        {"maker": replace(MAKER, options=(*MAKER.options[:1], ("mirroring", False)))},
        {"segments": (replace(liver, name="hepar"), *others)},
        {"segments": (replace(liver, values=(3,)), *others)},
        {"segments": (replace(liver, presentation=coloured), *others)},
    ):
        assert not set(uids(**changed).values()) & set(plain.values()), changed
    monkeypatch.setattr(results, "WRITER_VERSION", "other")
    assert not set(uids().values()) & set(plain.values())


def test_the_same_result_has_the_same_bytes_in_any_process(tmp_path, series):
    labels, calls, here = some_labels(SHAPE), [], []
    for kind in ("BINARY", "LABELMAP"):
        result = result_of(series, segmentation_type=kind)
        here.append(written(tmp_path / f"{kind}_here.dcm", labels, result))
        calls.append((tmp_path / f"{kind}_there.dcm", labels, result))
    (tmp_path / "calls").write_bytes(pickle.dumps(calls))
    program = (
        "import pickle, sys; from ctseg.files.dicom.segmentation import write_segmentation as write; "
        "[write(*call) for call in pickle.load(open(sys.argv[1], 'rb'))]"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4242", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "calls"], check=True, env=environment)
    for path, (there, _, result) in zip(here, calls, strict=True):
        assert hashlib.sha256(there.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
        other = labels.copy()
        other[3, 3, 3] = 1 if labels[3, 3, 3] != 1 else 2
        changed = segread(written(tmp_path / "other.dcm", other, result))
        assert changed.SOPInstanceUID != segread(path).SOPInstanceUID


def test_malformed_tags_of_the_source_leave_a_valid_object_and_say_nothing(tmp_path, capfd, caplog, recwarn):
    made = ct_series(SHAPE)
    for dataset in made.datasets:
        set_tags(
            dataset,
            StudyID="a study of more than sixteen letters",
            PatientName="Doe\\Jane^^^^^=x=y=z" + "n" * 100,
            PatientBirthDate="01.02.1970",
            StudyDate="00000101",
            ContentDate="20260230",
            AcquisitionDate=None,
            PatientSex="FEMALE",
            PatientAge="about 50",
            AccessionNumber=None,
            LossyImageCompression="01",
            LossyImageCompressionRatio=["2", "3"],
            LossyImageCompressionMethod=["ISO_10918_1", "ISO_15444_1"],
            SpecificCharacterSet="ISO_IR 4711",
            PositionReferenceIndicator="of Jane",
            ReferringPhysicianName="====",
        )
        set_raw(dataset, "SliceThickness", "DS", b"Doe^Jane")
        set_raw(dataset, "StudyTime", "TM", b"\xff\xfe")
        set_raw(dataset, "PatientID", "LO", b" 00\x0042  7\x1b")
    series = write_ct(tmp_path / "ct", made)
    with caplog.at_level(logging.DEBUG):
        segments = (SEGMENTS[0], replace(SEGMENTS[1], name="\t", presentation=LIVER), SEGMENTS[2])
        path = written(tmp_path / "seg.dcm", some_labels(SHAPE), result_of(series, segments=segments))
    assert (capfd.readouterr(), caplog.records, list(recwarn)) == (("", ""), [], [])
    assert not [line for line in dciodvfy_findings(path, ALLOWED_OF_SOURCE) if line.startswith("Error")]
    read = segread(path)
    assert (read.StudyID, read.PatientID) == ("a study of more", "00 42  7")
    assert read.PatientName == "Doe Jane^^^^=x=y"
    assert read.SegmentSequence[1].SegmentLabel == "label 2"
    empty = ("PatientBirthDate", "StudyDate", "StudyTime", "PatientSex", "AccessionNumber", "ReferringPhysicianName")
    for keyword in empty:
        assert read[keyword].value in ("", None), keyword
    assert (read.ContentDate, read.ContentTime) == ("20260102", "101500")  # the series'
    assert read.LossyImageCompression == "01"
    assert read.PositionReferenceIndicator == ""  # free text, which nobody needs


@pytest.mark.parametrize(
    ("character_set", "encoding", "name"),
    [
        ("ISO_IR 192", "utf-8", "Yamada^Tarou=山田^太郎\u3000様"),
        (["", "ISO 2022 IR 87"], "iso2022_jp", "X^Y=桂宮^急閤"),  # with bytes that are = \\ and ^ elsewhere
        ("GB18030", "gb18030", "Qian^Cheng=淺^乗"),
        ("ISO_IR 144", "iso8859_5", "Люкceмбypг"),
    ],
)
def test_names_in_any_script_stay(tmp_path, character_set, encoding, name):
    made = ct_series((2, 3, 4), SpecificCharacterSet=character_set)
    for dataset in made.datasets:
        encoded = b"^".join(part.encode(encoding) for part in name.split("^"))
        set_raw(dataset, "PatientName", "PN", encoded + b" " * (len(encoded) % 2))
    segments = (Segment(1, "Nierenzyste größer 1 cm", (1,), LIVER),)
    path = written(
        tmp_path / "seg.dcm", some_labels((2, 3, 4)), result_of(write_ct(tmp_path / "ct", made), segments=segments)
    )
    read = segread(path)
    assert (str(read.PatientName), read.SegmentSequence[0].SegmentLabel) == (name, "Nierenzyste größer 1 cm")


@pytest.mark.parametrize(
    ("changed", "segments", "expected"),
    [
        ({"frame_of_reference_uid": ""}, SEGMENTS, "has no FrameOfReferenceUID"),
        ({"problem": "a gantry tilt of 14 degrees"}, SEGMENTS, "a gantry tilt of 14 degrees"),
        ({"study_uid": "Doe^Jane"}, SEGMENTS, "UIDs that are none"),
        ({}, (), "expected 1 to 65535 labels, which a SEG can number, found 0"),
        ({}, (Segment(1, "many", (70000,), LIVER),), "expected label values up to 65535, found 70000"),
    ],
)
def test_what_cannot_be_written_is_told_from_headers(tmp_path, series, changed, segments, expected):
    result = result_of(replace(series, **changed), segments=segments)
    problem = segmentation_problem(result)
    assert expected in problem
    assert "Doe" not in problem
    with pytest.raises(InputError, match="no SEG can be written"):
        write_segmentation(tmp_path / "seg.dcm", some_labels(SHAPE), result)
    assert segmentation_problem(result_of(series)) is None


def test_labels_of_another_shape_are_the_callers_mistake(tmp_path, series):
    with pytest.raises(ValueError, match=r"expected labels of the shape \(6, 7, 9\), found \(6, 9, 7\)"):
        write_segmentation(tmp_path / "seg.dcm", some_labels((6, 9, 7)), result_of(series))
