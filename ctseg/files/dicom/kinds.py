"""What a DICOM file is by its SOP class, and which encodings of voxels are read."""

CT = "1.2.840.10008.5.1.4.1.1.2"
"""CT Image Storage: one slice a file."""
MULTI_FRAME_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT Image Storage, and Legacy Converted Enhanced CT Image Storage."""
DICOMDIR = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: lists the files of a disc."""

_IMAGES = "1.2.840.10008.5.1.4.1.1."
_KINDS = {
    DICOMDIR: "DICOMDIR",
    _IMAGES + "2.1": "enhanced CT image",
    _IMAGES + "7": "secondary capture",
    _IMAGES + "7.1": "secondary capture",
    _IMAGES + "7.2": "secondary capture",
    _IMAGES + "7.3": "secondary capture",
    _IMAGES + "7.4": "secondary capture",
    _IMAGES + "4": "MR image",
    _IMAGES + "4.1": "MR image",
    _IMAGES + "4.3": "MR image",
    _IMAGES + "4.4": "MR image",
    _IMAGES + "128": "PET image",
    _IMAGES + "130": "PET image",
    _IMAGES + "128.1": "PET image",
    _IMAGES + "20": "nuclear medicine image",
    _IMAGES + "1": "X-ray image",
    _IMAGES + "1.1": "X-ray image",
    _IMAGES + "12.1": "X-ray image",
    _IMAGES + "6.1": "ultrasound image",
    _IMAGES + "3.1": "ultrasound image",
    _IMAGES + "13.1.1": "cone-beam CT image (X-Ray 3D)",
    _IMAGES + "30": "parametric map",
    _IMAGES + "66": "raw data",
    _IMAGES + "66.1": "spatial registration",
    _IMAGES + "66.3": "spatial registration",
    _IMAGES + "66.4": "SEG",
    _IMAGES + "66.7": "SEG",
    _IMAGES + "481.1": "RT image",
    _IMAGES + "481.2": "RTDOSE",
    _IMAGES + "481.3": "RTSTRUCT",
    _IMAGES + "481.5": "RTPLAN",
    _IMAGES + "481.8": "RTPLAN",
    _IMAGES + "88.67": "dose report",
    _IMAGES + "88.73": "dose report",
    _IMAGES + "88.59": "key object selection",
    _IMAGES + "104.1": "encapsulated document",
    _IMAGES + "104.2": "encapsulated document",
}
_FAMILIES = {
    _IMAGES + "88.": "structured report",
    _IMAGES + "11.": "presentation state",
    _IMAGES + "9.": "waveform",
    _IMAGES + "481.": "radiotherapy object",
}
"""By the beginning of the SOP class."""

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
"""Everything behind the file's meta information is deflated."""
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNCOMPRESSED = (IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN, DEFLATED, EXPLICIT_BIG_ENDIAN)
"""Transfer syntaxes whose voxels are as they are."""
WHOLE_BITS = (8, 16, 32)
"""BitsAllocated of numbers that are read."""
RLE = "1.2.840.10008.1.2.5"
LOSSY = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55))
"""JPEG: baseline, extended and progressive."""
MAYBE_LOSSY = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (81, 91))
"""JPEG-LS and JPEG 2000 that may be lossless all the same."""
COMPRESSED = (RLE, *LOSSY, *MAYBE_LOSSY, *(f"1.2.840.10008.1.2.4.{number}" for number in (57, 70, 80, 90)))
"""Transfer syntaxes that SimpleITK decodes."""


def kind_of_class(sop_class_uid: str) -> str:
    """Return what an object that is no CT is, in words: a noun that is counted."""
    if kind := _KINDS.get(sop_class_uid):
        return kind
    return next((kind for start, kind in _FAMILIES.items() if sop_class_uid.startswith(start)), "other DICOM object")
