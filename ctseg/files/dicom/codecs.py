"""Compressed slices, decoded by SimpleITK one by one.

Each one is put into a small file of its own that holds nothing but how its voxels are stored: SimpleITK, which would
apply slope and intercept of the slice's own file, yields the stored numbers, sees no tag that could name a patient,
and treats a frame of a multi-frame file like any other.
"""

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage

from ctseg.errors import SetupError
from ctseg.files.dicom.code_streams import jpeg_2000_of, jpeg_of
from ctseg.files.dicom.kinds import RLE
from ctseg.files.itk import import_simpleitk

WORKING_BYTES = 48
"""Memory for each voxel of a slice that decoding takes at most, beside the compressed bytes."""

_ANY_UID = UID("2.25.1")
_LOSSY_JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55))
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_LOSSY_JPEG_BITS = 12
_lock = threading.Lock()
_silent = 0
_was_loud = False


@dataclass(frozen=True)
class StoredForm:
    """How the numbers of a slice are stored.

    Attributes:
        rows: Along a column.
        columns: Along a row.
        bits_allocated: 8, 16 or 32.
        bits_stored: The lowest of them.
        is_signed: Whether they can be negative.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool

    @property
    def range(self) -> tuple[int, int]:
        """Lowest and highest number that can be stored."""
        return (-(2 ** (self.bits_stored - 1)) if self.is_signed else 0, 2 ** (self.bits_stored - self.is_signed) - 1)


class CodecError(Exception):
    """A slice cannot be decoded; what ITK said of it is kept from everybody, for it may name files."""


def require_decoder() -> Any:
    """Return SimpleITK.

    Raises:
        SetupError: It is not installed.
    """
    return import_simpleitk("a compressed DICOM series", extra="dicom")


def decoded(encoded: bytes, form: StoredForm, syntax: str, scratch: Path) -> npt.NDArray[Any]:
    """Decode the voxels of one slice.

    Args:
        encoded: As they are compressed.
        form: How they are stored.
        syntax: Transfer syntax UID, one of :data:`ctseg.files.dicom.kinds.COMPRESSED`.
        scratch: Where a file may be put meanwhile; not there yet.

    Returns:
        (rows, columns): the stored numbers, in whatever integer type the decoder chose.

    Raises:
        CodecError: They cannot be decoded.
        SetupError: The file cannot be put there.
    """
    sitk = require_decoder()
    if not _is_as_told(encoded, form, syntax):
        raise CodecError
    try:
        try:
            _write_alone(encoded, form, syntax, scratch)
        except OSError as error:
            raise _no_scratch(error) from error
        file = sitk.ImageFileReader()
        file.SetImageIO("GDCMImageIO")
        file.SetFileName(str(scratch))
        try:
            plane: npt.NDArray[Any] = sitk.GetArrayFromImage(file.Execute())
        except RuntimeError:
            raise CodecError from None
    finally:
        scratch.unlink(missing_ok=True)
    if plane.size != form.rows * form.columns or plane.dtype.kind not in "iu":
        raise CodecError
    return plane.reshape(form.rows, form.columns)


def _is_as_told(encoded: bytes, form: StoredForm, syntax: str) -> bool:
    """Whether a slice is compressed for such voxels: with other sizes or bits, decoders have been seen to crash."""
    if syntax == RLE:
        return bool(encoded)
    found = jpeg_2000_of(encoded) if syntax in _JPEG_2000 else jpeg_of(encoded)
    return (
        found is not None
        and (found.rows, found.columns, found.components) == (form.rows, form.columns, 1)
        and 1 < found.bits <= form.bits_allocated
    )


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder for the files of :func:`decoded`, which nobody else can read; it is gone afterwards.

    Raises:
        SetupError: It cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="ctseg-slices-", ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_scratch(error) from error
    with folder as name:
        yield Path(name)


def _no_scratch(error: OSError) -> SetupError:
    return SetupError(
        f"compressed slices are decoded in the folder for temporary files, which cannot be written "
        f"({error.strerror or error}): make room there, or name another one in TMPDIR"
    )


@contextlib.contextmanager
def silent_itk() -> Iterator[None]:
    """Keep ITK from writing warnings to standard error in the block, in every thread."""
    sitk = require_decoder()
    _enter(sitk)
    try:
        yield
    finally:
        _leave(sitk)


def _enter(sitk: Any) -> None:
    global _silent, _was_loud
    with _lock:
        _silent += 1
        if _silent == 1:
            _was_loud = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)


def _leave(sitk: Any) -> None:
    global _silent
    with _lock:
        _silent -= 1
        if not _silent:
            sitk.ProcessObject.SetGlobalWarningDisplay(_was_loud)


def _write_alone(encoded: bytes, form: StoredForm, syntax: str, path: Path) -> None:
    alone = Dataset()
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = UID(syntax)
    alone.file_meta.MediaStorageSOPClassUID = alone.SOPClassUID = CTImageStorage
    alone.file_meta.MediaStorageSOPInstanceUID = alone.SOPInstanceUID = _ANY_UID
    alone.SamplesPerPixel = 1
    alone.PhotometricInterpretation = "MONOCHROME2"
    alone.Rows, alone.Columns = form.rows, form.columns
    bits = form.bits_allocated  # all of them: what else is decoded than the header says is to be seen
    if syntax in _LOSSY_JPEG and form.bits_stored <= _LOSSY_JPEG_BITS < bits:
        bits = _LOSSY_JPEG_BITS  # else 16 are tried first, and stderr is told that it failed
    alone.BitsAllocated, alone.BitsStored, alone.HighBit = bits, bits, bits - 1
    alone.PixelRepresentation = int(form.is_signed)
    alone.RescaleIntercept, alone.RescaleSlope = "0", "1"
    alone.add_new("PixelData", "OB", encapsulate([encoded]))
    alone["PixelData"].is_undefined_length = True
    dcmwrite(path, alone, implicit_vr=False, little_endian=True, enforce_file_format=True)
