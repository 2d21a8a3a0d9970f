"""The kinds of objects that are written of a DICOM case: plain words, which need no pydicom."""

from typing import Literal

DicomFormat = Literal["dicom_seg", "dicom_rtstruct", "dicom_sr"]
SegmentationType = Literal["BINARY", "LABELMAP"]
DICOM_ENDINGS: dict[DicomFormat, str] = {
    "dicom_seg": ".seg.dcm",
    "dicom_rtstruct": ".rtstruct.dcm",
    "dicom_sr": ".sr.dcm",
}
"""Of the names of the files."""
