"""Whether two files hold the same object, whichever way an archive has written it."""

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ctseg.files.dicom.objects import is_same_data_set
from ctseg.files.dicom.segmentation import write_segmentation
from tests.support.dicom_results import result_of, some_labels, write_ct
from tests.support.dicom_series import ct_series

SHAPE = (3, 5, 7)


@pytest.fixture(scope="module", params=["BINARY", "LABELMAP"])
def written(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    series = write_ct(folder / "ct", ct_series(SHAPE))
    write_segmentation(folder / "seg.dcm", some_labels(SHAPE), result_of(series, segmentation_type=request.param))
    return folder / "seg.dcm"


def stored(path: Path, to: Path, syntax: str, change=lambda dataset: None) -> Path:
    """Write an object as an archive may: in another transfer syntax, its voxels not compressed."""
    dataset = pydicom.dcmread(path)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.decompress(generate_instance_uid=False)
    change(dataset)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].VR = "OW" if syntax == ImplicitVRLittleEndian else "OB"
    pydicom.dcmwrite(to, dataset)
    return to


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_object_is_the_same_in_any_transfer_syntax(written, tmp_path, syntax):
    assert is_same_data_set(written, stored(written, tmp_path / "same.dcm", syntax))


def with_another_voxel(dataset):
    dataset.PixelData = bytes([dataset.PixelData[0] ^ 1]) + dataset.PixelData[1:]


def with_another_name(dataset):
    dataset.SegmentSequence[1].SegmentLabel = "other"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("change", [with_another_voxel, with_another_name])
def test_another_object_is_another_in_any_transfer_syntax(written, tmp_path, syntax, change):
    assert not is_same_data_set(written, stored(written, tmp_path / "other.dcm", syntax, change))
