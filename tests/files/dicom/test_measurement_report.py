import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from highdicom.sr import srread

from ctseg.errors import InputError
from ctseg.files.dicom.measurement_report import write_measurement_report
from ctseg.files.dicom.segmentation import write_segmentation
from tests.support.dicom_results import MAKER, result_of, some_labels, write_ct
from tests.support.dicom_series import ct_series
from tests.support.dicom_tools import ALLOWED_OF_LABELMAP, dciodvfy_findings

SHAPE = (6, 7, 9)
VOLUMES_ML = {"liver": 1234.5678901, "kidney_left": 0.0, "liver_tumor": 0.0016}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return result_of(write_ct(tmp_path_factory.mktemp("series"), ct_series(SHAPE)))


@pytest.fixture(scope="module")
def segmentation(result, tmp_path_factory):
    """Without the label whose volume is 0."""
    path = tmp_path_factory.mktemp("seg") / "seg.dcm"
    labels = some_labels(SHAPE)
    write_segmentation(path, np.where(labels == 2, 0, labels), result)
    return path


@pytest.fixture
def report(result, segmentation, tmp_path):
    path = tmp_path / "sr.dcm"
    write_measurement_report(path, VOLUMES_ML, result, segmentation)
    return path


def test_each_label_has_its_volume_and_refers_to_its_segment(report, result, segmentation):
    seg = pydicom.dcmread(segmentation)
    groups = srread(report).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 3
    expected = zip(groups, seg.SegmentSequence, (1234567.89, 0.0, 1.6), ("Liver", "Kidney", "Neoplasm"), strict=True)
    for group, segment, volume_mm3, finding in expected:
        assert (group.tracking_uid, group.tracking_identifier) == (segment.TrackingUID, segment.TrackingID)
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert reference.referenced_segment_numbers == [segment.SegmentNumber]
        assert (group.finding_type.meaning, group.finding_category.meaning) == (
            finding, segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning,
        )  # fmt: skip
        (measured,) = group.get_measurements()
        assert (measured.name.meaning, measured.value, measured.unit.value) == ("Volume", volume_mm3, "mm3")
    kidney, tumour = groups[1].finding_sites[0], groups[2].finding_sites[0]
    assert (kidney.value.meaning, kidney.laterality.meaning) == ("Kidney", "Left")
    assert (tumour.value.meaning, tumour.laterality.meaning) == ("Liver", "Right")
    assert groups[0].finding_sites == []


def test_the_report_is_valid_and_says_who_made_it(report, result):
    assert dciodvfy_findings(report) == []
    read = pydicom.dcmread(report)
    assert (read.SeriesInstanceUID, read.SeriesNumber) == (result.series_uid("dicom_sr"), 303)
    assert read.SeriesDescription.startswith("abdomen 3, 01234567, SR ")
    assert (read.PatientName, read.StudyInstanceUID) == ("Doe^Jane", result.series.study_uid)
    assert (read.ContentDate, read.ContentTime) == ("20260102", "101500")
    assert (read.CompletionFlag, read.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    texts = [item.TextValue for item in _items(read) if item.ValueType == "TEXT"]
    assert f"spec_sha256={MAKER.digest}" in texts
    assert "tile_step_size=0.5" in texts


def _items(item):
    yield item
    for below in item.get("ContentSequence", ()):
        yield from _items(below)


def test_the_report_may_refer_to_a_label_map(result, tmp_path):
    labelmap = replace(result, segmentation_type="LABELMAP")
    write_segmentation(tmp_path / "seg.dcm", some_labels(SHAPE), labelmap)
    write_measurement_report(tmp_path / "sr.dcm", VOLUMES_ML, labelmap, tmp_path / "seg.dcm")
    assert dciodvfy_findings(tmp_path / "sr.dcm", ALLOWED_OF_LABELMAP) == []


def test_an_empty_label_map_has_a_report_of_nothing(result, tmp_path):
    write_segmentation(tmp_path / "seg.dcm", np.zeros(SHAPE, np.uint8), result)
    write_measurement_report(tmp_path / "sr.dcm", dict.fromkeys(VOLUMES_ML, 0.0), result, tmp_path / "seg.dcm")
    values = [item.MeasuredValueSequence[0].NumericValue for item in _items(pydicom.dcmread(tmp_path / "sr.dcm"))
              if item.ValueType == "NUM"]  # fmt: skip
    assert values == [0, 0, 0]
    assert dciodvfy_findings(tmp_path / "sr.dcm") == []


def test_the_same_report_has_the_same_bytes_in_any_process(report, result, segmentation, tmp_path):
    (tmp_path / "call").write_bytes(pickle.dumps((tmp_path / "there.dcm", VOLUMES_ML, result, segmentation)))
    program = (
        "import pickle, sys; from ctseg.files.dicom.measurement_report import write_measurement_report as write; "
        "write(*pickle.load(open(sys.argv[1], 'rb')))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4242", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "call"], check=True, env=environment)
    assert (tmp_path / "there.dcm").read_bytes() == report.read_bytes()
    write_measurement_report(tmp_path / "other.dcm", VOLUMES_ML | {"liver": 1.0}, result, segmentation)
    assert pydicom.dcmread(tmp_path / "other.dcm").SOPInstanceUID != pydicom.dcmread(report).SOPInstanceUID


def test_a_segmentation_of_another_result_or_none_is_refused(result, segmentation, tmp_path):
    other = replace(result, maker=replace(MAKER, digest="f" * 64))
    with pytest.raises(InputError, match="the SEG to which the report refers is of another result"):
        write_measurement_report(tmp_path / "sr.dcm", VOLUMES_ML, other, segmentation)
    (tmp_path / "half.dcm").write_bytes(segmentation.read_bytes()[:600])
    for path in (tmp_path / "half.dcm", tmp_path / "nothing.dcm"):
        with pytest.raises(InputError, match=r"^series 3 .* cannot be read"):
            write_measurement_report(tmp_path / "sr.dcm", VOLUMES_ML, result, path)
    assert not (tmp_path / "sr.dcm").exists()
