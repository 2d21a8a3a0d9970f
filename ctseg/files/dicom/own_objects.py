"""What all objects that ctseg writes have in common: how they are called, and how they come to a file."""

from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from ctseg.files.dicom.carried_over import CHARACTER_SET, valid_text
from ctseg.files.dicom.object_kinds import DICOM_ENDINGS, DicomFormat
from ctseg.files.dicom.results import MANUFACTURER, WRITER_VERSION, DicomResult
from ctseg.files.dicom.series import uid_digest
from ctseg.files.dicom.uids import derived_uid, set_instance_uid

_SHORT = 8
_HIGHEST_SERIES_NUMBER = 2**31 // 100 - 1
_WORDS: dict[DicomFormat, str] = {"dicom_seg": "SEG", "dicom_rtstruct": "RTSTRUCT", "dicom_sr": "SR"}


def series_description(result: DicomResult, kind: DicomFormat) -> str:
    """Return how a person tells one result of a series from another, 64 characters at most."""
    what = f", {result.maker.digest[:_SHORT]}, {_WORDS[kind]} {uid_digest(result.series_uid(kind))}"
    return valid_text(f"{result.maker.model} {result.maker.version}"[: 64 - len(what)] + what, "LO")


def series_number(result: DicomResult, kind: DicomFormat) -> int:
    """Return a number that comes after the source's, such as 401 for the segmentation of series 4."""
    number = min(abs(result.series.series_number or 0), _HIGHEST_SERIES_NUMBER)
    return number * 100 + list(DICOM_ENDINGS).index(kind) + 1


def equipment(result: DicomResult) -> Dataset:
    """Return what made the object (General and Enhanced General Equipment)."""
    made = Dataset()
    made.Manufacturer = MANUFACTURER
    made.ManufacturerModelName = valid_text(result.maker.model, "LO")
    made.DeviceSerialNumber = result.maker.digest[:16] or "0"
    made.SoftwareVersions = [
        valid_text(f"model {result.maker.version}", "LO"),
        f"{MANUFACTURER} writer {WRITER_VERSION}",
    ]
    return made


def write_object(path: Path, dataset: Dataset) -> None:
    """Give an object its UID, and write it.

    Args:
        path: Not there yet.
        dataset: Whole but for its SOPInstanceUID; its ``file_meta`` says the class and the transfer syntax.

    Raises:
        OSError: The file cannot be written.
    """
    dataset.SpecificCharacterSet = CHARACTER_SET
    dataset.file_meta.ImplementationClassUID = UID(derived_uid(MANUFACTURER, "implementation"))
    dataset.file_meta.ImplementationVersionName = f"{MANUFACTURER.upper()}_{WRITER_VERSION}"
    set_instance_uid(dataset)
    dataset.save_as(path, enforce_file_format=True)
