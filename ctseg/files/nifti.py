"""NIfTI files with nibabel and numpy alone, under the rules of SimpleITK's reader and of nibabel's.

The two libraries disagree about the same file: which of the two affines counts, what a missing one
means, units, and scaling. nnU-Net's plans name the reader of the training, and so decide here.
"""

import contextlib
import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from ctseg.arrays import Shape3, Spacing
from ctseg.errors import InputError
from ctseg.files.grid import ChannelHeader, ChannelVolume, FileGrid, NiftiSource
from ctseg.files.gunzip import DAMAGED, GZIP_MAGIC, GzipContent
from ctseg.files.nifti_grid import finite, itk_grid, nibabel_grid
from ctseg.files.regular import open_regular

_GZIP_FILE: type[gzip.GzipFile] = gzip.GzipFile
with contextlib.suppress(ImportError):  # without the extra fast-io, zlib does the same, slower
    from isal import igzip

    _GZIP_FILE = igzip.IGzipFile

CHUNK_BYTES = 4 << 20
DEFLATE_MOST = 1032
"""Deflate makes at most this many bytes out of one."""
COMPRESS_LEVEL = 1
"""Label maps shrink well at any level, and people wait for it."""

_Stream = BinaryIO | GzipContent

_HEADER_CLASSES: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_SINGLE_FILE_MAGIC = {348: b"n+1", 540: b"n+2"}
_SEVERAL_NUMBERS = {32: "complex64", 128: "RGB", 1792: "complex128", 2048: "complex256", 2304: "RGBA"}
"""NIfTI's data types of more than one number per voxel."""
_GEOMETRY_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_Scaling: TypeAlias = tuple[float, float] | None


class _Start(NamedTuple):
    """What stands before the voxels of a NIfTI file, as a reader takes it.

    Attributes:
        header: As it stands there.
        shape: (z, y, x) along the file's own axes.
        dtype: Of the numbers in the file, in its byte order.
        scaling: Slope and intercept; None: voxels are taken as they are.
        grid: The file's own.
        spacing_mm: Along the axes that the reader yields.
    """

    header: Any
    shape: Shape3
    dtype: "np.dtype[Any]"
    scaling: _Scaling
    grid: FileGrid
    spacing_mm: Spacing

    @property
    def yielded_dtype(self) -> "np.dtype[Any]":
        """Of the voxels that the reader yields."""
        is_kept = self.scaling is None and self.dtype.kind in "iu" and self.dtype.itemsize <= 4
        return self.dtype.newbyteorder("=") if is_kept else np.dtype(np.float32)


def read_nifti(path: Path, reader: str) -> ChannelVolume:
    """Read a NIfTI file as one of nnU-Net's readers does.

    Args:
        path: A NIfTI-1 or NIfTI-2 file of one piece, with or without gzip; its content decides.
        reader: ``SimpleITKIO``, ``SimpleITKIOWithReorient``, ``NibabelIO`` or ``NibabelIOWithReorient``.

    Returns:
        Voxels in the type of the file where that is an integer of at most 4 bytes without scaling,
        else float32. They are views where the axes were turned.

    Raises:
        InputError: The file cannot be read, is no NIfTI file, is damaged, promises more voxels than it
            can hold, is no volume of one number per voxel, or has no usable affine.
    """
    with _reading(path) as stream:
        start = _read_start(stream, path, reader)
        voxels = _read_voxels(stream, start)
    voxels = _scaled(voxels, start.scaling, through_float32="ITK" in reader)
    return ChannelVolume(start.grid.reorientation.apply(voxels), start.spacing_mm, start.grid)


def read_nifti_header(path: Path, reader: str) -> ChannelHeader:
    """Read what a NIfTI file says of its voxels, and not the voxels.

    Args:
        path: See :func:`read_nifti`.
        reader: Likewise.

    Raises:
        InputError: As :func:`read_nifti`, but for what only the voxels show.
    """
    with _reading(path) as stream:
        start = _read_start(stream, path, reader)
    dtype, voxels = start.yielded_dtype, math.prod(start.shape)
    copied = 0 if dtype == start.dtype.newbyteorder("=") and start.scaling is None else dtype.itemsize
    return ChannelHeader(dtype, start.spacing_mm, start.grid, (start.dtype.itemsize + copied) * voxels)


def write_nifti_file(path: Path, voxels: npt.NDArray[Any], grid: FileGrid) -> None:
    """Write voxels on the grid of an input.

    A NIfTI input's own affines, codes, voxel sizes and units are kept bit by bit; for other inputs
    sform and qform say the same. The same voxels give the same bytes.

    Args:
        path: Not there yet; gzipped if it ends in ``.gz``.
        voxels: (z, y, x) along the file's own axes, in the type to write.
        grid: The input's.

    Raises:
        OSError: The file cannot be written.
    """
    header = nifti_header_of(voxels, grid)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("xb"))
        stream: Any = file
        if path.name.lower().endswith(".gz"):
            stream = stack.enter_context(_gzip_file(file, "wb"))
        stream.write(header.binaryblock)
        stream.write(bytes(int(header["vox_offset"]) - int(header["sizeof_hdr"])))
        for plane in voxels:
            stream.write(np.ascontiguousarray(plane).data)


def nifti_header_of(voxels: npt.NDArray[Any], grid: FileGrid) -> Any:
    """Return the header of voxels on the grid of an input."""
    source = grid.source.header if isinstance(grid.source, NiftiSource) else None
    header: Any = (nibabel.Nifti1Header if source is None else type(source))()  # type: ignore[no-untyped-call]
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape[::-1])
    if source is None:
        header.set_xyzt_units("mm")
        header.set_qform(grid.geometry.affine_ras, code="scanner", strip_shears=True)
        header.set_sform(grid.geometry.affine_ras, code="scanner")
    else:
        for field in _GEOMETRY_FIELDS:
            header[field] = source[field]
    header.set_slope_inter(1, 0)
    header["vox_offset"] = type(header).single_vox_offset
    header["magic"] = type(header).single_magic
    header["descrip"] = b"ctseg"
    return header


def _gzip_file(file: BinaryIO, mode: str) -> gzip.GzipFile:
    """Return a gzip stream over a file; what it writes has neither name nor time in it."""
    return _GZIP_FILE(filename="", mode=mode, compresslevel=COMPRESS_LEVEL, fileobj=file, mtime=0)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[_Stream]:
    """Open a file, through gzip if it is gzip; translate everything that can go wrong while it is read."""
    try:
        with open_regular(path) as file:
            is_gzip = file.peek(2)[:2] == GZIP_MAGIC  # type: ignore[attr-defined]
            yield GzipContent(file) if is_gzip else file
    except DAMAGED as error:
        raise InputError(
            f"{path.name}: expected a whole file, found damaged or missing data ({error or type(error).__name__}): "
            "copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(f"{path.name}: does not fit into memory: use a machine with more") from error


def _read_start(stream: _Stream, path: Path, reader: str) -> _Start:
    """Read the header, and refuse what no voxels could mend."""
    header = _read_header(stream, path)
    shape, dtype = _shape_and_dtype(header, path)
    try:
        grid, spacing_mm = (
            itk_grid(header, shape, path, reader) if "ITK" in reader else nibabel_grid(header, shape, path, reader)
        )
    except ValueError as error:
        raise InputError(f"{path.name}: {error}: mend its affine (sform, qform)") from error
    size = math.prod(shape) * dtype.itemsize
    if size > path.stat().st_size * (DEFLATE_MOST if isinstance(stream, GzipContent) else 1):
        raise InputError(
            f"{path.name}: expected {size} bytes of voxels, shape {shape[::-1]}, found a file of "
            f"{path.stat().st_size} bytes: it was cut off, copy it again"
        )
    scaling = _itk_scaling(header) if "ITK" in reader else _nibabel_scaling(header, path)
    return _Start(header, shape, dtype, scaling, grid, spacing_mm)


def _read_header(stream: _Stream, path: Path) -> Any:
    start = stream.read(4)
    if not start:
        raise InputError(f"{path.name}: expected a NIfTI file, found an empty one: copy it again")
    sizes = {int.from_bytes(start, order) for order in ("little", "big")}
    size = next((size for size in _HEADER_CLASSES if size in sizes), None)
    if size is None:
        raise InputError(f"{path.name}: expected a NIfTI file, found something else: convert it, or take it away")
    block = start + stream.read(size - 4)
    if len(block) < size:
        raise EOFError(f"{len(block)} of {size} bytes of the header")
    header = _HEADER_CLASSES[size](block, check=False)
    if not 1 <= int(header["dim"][0]) <= 7:  # nibabel takes the byte order from it
        order = "<" if int.from_bytes(start, "little") == size else ">"
        count = int(_HEADER_CLASSES[size](block, endianness=order, check=False)["dim"][0])
        raise InputError(
            f"{path.name}: expected 3 dimensions, found dim[0] = {count}: convert the scan to NIfTI again, or mend the "
            "field dim"
        )
    magic = bytes(header["magic"].item())[:3]
    if magic != _SINGLE_FILE_MAGIC[size]:
        what = {b"": "an Analyze file", b"ni1": "half of a pair", b"ni2": "half of a pair"}.get(magic, "no NIfTI file")
        raise InputError(
            f"{path.name}: expected NIfTI in one file (magic {_SINGLE_FILE_MAGIC[size].decode()}), found magic "
            f"{magic!r}, {what}: convert the scan to .nii.gz again, or mend the field magic"
        )
    _check_offset(header, path)
    return header


def _check_offset(header: Any, path: Path) -> None:
    offset, first = float(header["vox_offset"]), int(type(header).single_vox_offset)
    if not (first <= offset < 1 << 31 and offset.is_integer()):
        raise InputError(
            f"{path.name}: expected voxels from byte {first} on, found vox_offset {offset:g}: convert the scan to "
            "NIfTI again, or mend the field vox_offset"
        )


def _shape_and_dtype(header: Any, path: Path) -> tuple[Shape3, "np.dtype[Any]"]:
    dims = header["dim"].tolist()
    sizes = dims[1 : 1 + dims[0]]
    if len(sizes) < 3 or any(size != 1 for size in sizes[3:]):
        raise InputError(f"{path.name}: expected a 3-D volume, found shape {tuple(sizes)}: give one volume per file")
    if min(sizes) < 1:
        raise InputError(f"{path.name}: expected at least one voxel along each axis, found shape {tuple(sizes)}")
    x, y, z = sizes[:3]
    return (z, y, x), _dtype(header, path)


def _dtype(header: Any, path: Path) -> "np.dtype[Any]":
    code = int(header["datatype"])
    if name := _SEVERAL_NUMBERS.get(code):
        raise InputError(
            f"{path.name}: expected one number per voxel (CT in HU), found data type {name}: "
            "this is a colour or complex image, take it away"
        )
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
        is_usable = dtype.kind in "iuf" and dtype.itemsize <= 8
    except (HeaderDataError, KeyError):
        is_usable = False
    if not is_usable:
        raise InputError(
            f"{path.name}: expected integers or floating point of at most 8 bytes, found datatype {code}, which is "
            "unknown or none of these: convert the scan to NIfTI again, or mend the field datatype"
        )
    return dtype


def _read_voxels(stream: _Stream, start: _Start) -> npt.NDArray[Any]:
    header, dtype = start.header, start.dtype
    left = int(header["vox_offset"]) - int(header["sizeof_hdr"])
    while left:
        skipped = len(stream.read(min(left, CHUNK_BYTES)))
        if not skipped:
            raise EOFError("no voxels")
        left -= skipped
    voxels = np.empty(start.shape, dtype)
    target = memoryview(voxels).cast("B")  # type: ignore[arg-type]
    done = 0
    while done < len(target):
        count = stream.readinto(target[done : done + CHUNK_BYTES])  # type: ignore[union-attr]
        if not count:
            raise EOFError(f"{done} of {len(target)} bytes of voxels")
        done += count
    if isinstance(stream, GzipContent):
        stream.finish_stream()
    if not dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return voxels


def _scaled(voxels: npt.NDArray[Any], scaling: _Scaling, *, through_float32: bool) -> npt.NDArray[Any]:
    """Apply slope and intercept in float64, plane by plane; types wider than 4 bytes become float32."""
    if scaling is None and voxels.dtype.itemsize <= 4 and voxels.dtype.kind in "iu":
        return voxels
    if scaling is None and voxels.dtype == np.float32:
        return voxels
    slope, intercept = scaling or (1.0, 0.0)
    result = np.empty(voxels.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for plane, target in zip(voxels, result, strict=True):
            if through_float32 and voxels.dtype.kind in "iu":
                plane = plane.astype(np.float32)
            wide = plane.astype(np.float64)
            if scaling is not None:
                wide *= slope
                wide += intercept
            target[...] = wide
    return result


def _itk_scaling(header: Any) -> _Scaling:
    """Slope and intercept as ITK applies them; None: voxels are taken as they are."""
    slope, intercept = (finite(header[name]) for name in ("scl_slope", "scl_inter"))
    slope = slope if abs(slope) >= np.finfo(np.float64).eps else 1.0
    return None if (slope, intercept) == (1.0, 0.0) else (slope, intercept)


def _nibabel_scaling(header: Any, path: Path) -> _Scaling:
    """Slope and intercept as nibabel applies them; None: voxels are taken as they are."""
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise InputError(f"{path.name}: {error}: mend the fields scl_slope and scl_inter") from error
    if slope is None:
        return None
    return None if (slope, intercept) == (1.0, 0.0) else (float(slope), float(intercept))
