"""UIDs that are derived from what decides an object's content: equal UID, equal bytes."""

import hashlib
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from ctseg.documents import canonical

_PLACEHOLDER = "2.25.0"


def derived_uid(*parts: object) -> str:
    """Return the UID (2.25, from a hash) that belongs to plain data.

    Args:
        parts: What decides the content: strings, numbers, and lists and mappings of them.
    """
    return _uid_of(hashlib.sha256(canonical(list(parts))).digest())


def set_instance_uid(dataset: Dataset) -> str:
    """Give a data set the SOPInstanceUID that is derived from its whole content, and return it.

    Args:
        dataset: Whole but for this UID; its ``file_meta`` says in which transfer syntax it is written.
    """
    dataset.SOPInstanceUID = UID(_PLACEHOLDER)
    syntax = dataset.file_meta.TransferSyntaxUID
    pixels = dataset.get((0x7FE0, 0x0010))  # the element
    if pixels is not None:  # hashed by themselves: no second copy of them is made
        del dataset["PixelData"]
    content = BytesIO()
    encoded = DicomIO(content)
    encoded.is_little_endian, encoded.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
    write_dataset(encoded, dataset)
    digest = hashlib.sha256(syntax.encode() + b"\0")
    digest.update(content.getbuffer())
    if pixels is not None:
        digest.update(pixels.value)
        dataset["PixelData"] = pixels
    uid = _uid_of(digest.digest())
    dataset.SOPInstanceUID = UID(uid)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    return uid


def _uid_of(digest: bytes) -> str:
    """Return a UID of 128 bits of a digest in the form of a UUID of version 8 (RFC 9562), which are free to choose."""
    value = int.from_bytes(digest[:16], "big")
    value = (value & ~(0xF << 76)) | (0x8 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"2.25.{value}"
