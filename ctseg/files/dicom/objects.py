"""DICOM objects as files: which one it is, and whether two are the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from ctseg.errors import InputError
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.series import uid_digest
from ctseg.files.regular import open_regular

_CHUNK_BYTES = 1 << 20
_BEFORE_GROUP = 128 + 4 + 12
"""Bytes of the preamble, of the mark, and of the element that gives the length of the file meta information."""


@dataclass(frozen=True)
class ObjectUids:
    """Which object a file holds.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        sop_class: SOPClassUID.
    """

    study: str
    series: str
    instance: str
    sop_class: str

    @property
    def label(self) -> str:
        """What messages call it: no patient, no path."""
        return f"{UID(self.sop_class).name} {uid_digest(self.instance)}"


def uids_of(path: Path) -> ObjectUids:
    """Return which object a file holds.

    Raises:
        InputError: It is no DICOM object.
    """
    keywords = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
    try:
        with quiet(), open_regular(path) as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=keywords)
            study, series, instance, sop_class = (str(header[keyword].value) for keyword in keywords)
    except Exception as error:  # whatever pydicom makes of it
        raise InputError(f"a file is no DICOM object ({type(error).__name__})") from error
    return ObjectUids(study, series, instance, sop_class)


def is_same_data_set(one: Path, other: Path) -> bool:
    """Return whether two files hold the same data set, byte for byte, whatever stands before it.

    Preamble and file meta information belong to a file: whoever stores an object writes their own. A data set in
    another transfer syntax is compared element by element, its voxels as numbers.

    Raises:
        InputError: The first is no DICOM object.
        OSError: A file cannot be read.
    """
    uids_of(one)
    try:
        with quiet(), open_regular(one) as first, open_regular(other) as second:
            begun = [_begin_of(file) for file in (first, second)]
            if begun[0].syntax == begun[1].syntax and None not in (begun[0].offset, begun[1].offset):
                return _is_same_from(first, begun[0].offset or 0, second, begun[1].offset or 0)
            first.seek(0)
            second.seek(0)
            return _is_equal(pydicom.dcmread(first), pydicom.dcmread(second))
    except OSError:
        raise
    except Exception:  # whatever pydicom makes of what came from outside
        return False


def _is_equal(one: Dataset, other: Dataset) -> bool:
    if not _have_same_voxels(one, other):
        return False
    for dataset in (one, other):
        dataset.pop("PixelData", None)  # whose VR hangs on the transfer syntax
    return bool(one == other)  # every element, sequences too


def _have_same_voxels(one: Dataset, other: Dataset) -> bool:
    if "PixelData" not in one or "PixelData" not in other:
        return ("PixelData" in one) == ("PixelData" in other)
    syntaxes = [dataset.file_meta.TransferSyntaxUID for dataset in (one, other)]
    if any(syntax.is_encapsulated or not syntax.is_little_endian for syntax in syntaxes):
        return np.array_equal(one.pixel_array, other.pixel_array)
    return bool(one.PixelData == other.PixelData)


class _Begin(NamedTuple):
    """Where a data set begins in its file, as far as the file says so, and in which transfer syntax it is."""

    offset: int | None
    syntax: str


def _begin_of(file: BinaryIO) -> _Begin:
    meta = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
    length = meta.get("FileMetaInformationGroupLength")
    return _Begin(None if length is None else _BEFORE_GROUP + int(length), str(meta.TransferSyntaxUID))


def _is_same_from(first: BinaryIO, offset: int, second: BinaryIO, other_offset: int) -> bool:
    first.seek(offset)
    second.seek(other_offset)
    while True:
        chunks = first.read(_CHUNK_BYTES), second.read(_CHUNK_BYTES)
        if chunks[0] != chunks[1]:
            return False
        if not chunks[0]:
            return True
