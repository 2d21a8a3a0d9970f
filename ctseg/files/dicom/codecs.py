"""Compressed slices, decoded by SimpleITK one by one.

Each one is put into a small file of its own that holds nothing but how its voxels are stored: SimpleITK, which would
apply slope and intercept of the slice's own file, yields the stored numbers, sees no tag that could name a patient,
and treats a frame of a multi-frame file like any other.
"""

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ctseg.errors import SetupError
from ctseg.files.itk import import_simpleitk

DECODED_SYNTAXES = frozenset(
    (
        RLELossless,
        JPEGBaseline8Bit,
        JPEGExtended12Bit,
        "1.2.840.10008.1.2.4.53",  # spectral selection, processes 6 and 8; retired
        "1.2.840.10008.1.2.4.55",  # full progression, processes 10 and 12; retired
        JPEGLossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEGLSNearLossless,
        JPEG2000Lossless,
        JPEG2000,
    )
)
"""Transfer syntaxes of compressed voxels that SimpleITK decodes rightly."""

WORKING_BYTES = 48
"""Memory for each voxel of a slice that decoding takes at most, beside the compressed bytes."""

_ANY_UID = UID("2.25.1")
_LOSSY_JPEG = frozenset((JPEGBaseline8Bit, JPEGExtended12Bit, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"))
_LOSSY_JPEG_BITS = 12
_lock = threading.Lock()
_silent = 0
_was_loud = False


class CodecError(Exception):
    """A slice cannot be decoded; what ITK said of it is kept from everybody, for it may name files."""


def require_decoder() -> Any:
    """Return SimpleITK.

    Raises:
        SetupError: It is not installed.
    """
    return import_simpleitk("a compressed DICOM series", extra="dicom")


def decoded(encoded: bytes, pixels: Dataset, syntax: str, scratch: Path) -> npt.NDArray[Any]:
    """Decode the voxels of one slice.

    Args:
        encoded: As they are compressed.
        pixels: Rows, Columns, BitsAllocated, BitsStored, HighBit and PixelRepresentation.
        syntax: Transfer syntax UID, one of :data:`DECODED_SYNTAXES`.
        scratch: Where a file may be put meanwhile; not there yet.

    Returns:
        (rows, columns): the stored numbers, in whatever integer type the decoder chose.

    Raises:
        CodecError: They cannot be decoded.
        SetupError: The file cannot be put there.
    """
    sitk = require_decoder()
    if not encoded:
        raise CodecError
    try:
        try:
            _write_alone(encoded, pixels, syntax, scratch)
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
    if plane.size != pixels.Rows * pixels.Columns or plane.dtype.kind not in "iu":
        raise CodecError
    return plane.reshape(pixels.Rows, pixels.Columns)


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


def _write_alone(encoded: bytes, pixels: Dataset, syntax: str, path: Path) -> None:
    alone = Dataset()
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = UID(syntax)
    alone.file_meta.MediaStorageSOPClassUID = alone.SOPClassUID = CTImageStorage
    alone.file_meta.MediaStorageSOPInstanceUID = alone.SOPInstanceUID = _ANY_UID
    alone.SamplesPerPixel = 1
    alone.PhotometricInterpretation = "MONOCHROME2"
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(alone, keyword, pixels[keyword].value)
    if syntax in _LOSSY_JPEG and pixels.BitsStored <= _LOSSY_JPEG_BITS < pixels.BitsAllocated:
        alone.BitsAllocated = (
            _LOSSY_JPEG_BITS  # else its decoder tries 16 bits first, and says on stderr that it cannot
        )
    alone.RescaleIntercept, alone.RescaleSlope = "0", "1"
    alone.add_new("PixelData", "OB", encapsulate([encoded]))
    alone["PixelData"].is_undefined_length = True
    dcmwrite(path, alone, implicit_vr=False, little_endian=True, enforce_file_format=True)
