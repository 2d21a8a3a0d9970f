"""NRRD, MetaImage and GIPL files through SimpleITK, which the extra ``itk`` brings."""

import contextlib
import gzip
import importlib
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.errors import InputError, missing_package
from ctseg.files.geometry import RAS_FROM_LPS, Geometry
from ctseg.files.grid import ChannelHeader, ChannelVolume, FileGrid, ItkSource, reorientation_of
from ctseg.files.nifti import DEFLATE_MOST
from ctseg.files.regular import open_regular

_DETACHED_ENDINGS = (".nhdr", ".mhd")
_GIPL_HEADER_BYTES = 256
_IMAGE_IO = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".gipl": "GiplImageIO",
}
_HEADER_LINES, _LINE_BYTES = 1 << 14, 1 << 12
"""Longer is no header of MetaImage or NRRD, names of all slices and all."""
_DATA_FILE = re.compile(rb"\s*(?:ElementDataFile\s*=|data ?file:)\s*(.*?)\s*", re.IGNORECASE)
_DIMENSIONS = re.compile(rb"\s*NDims\s*[=:]\s*(.*?)\s*", re.IGNORECASE)
_NUMBERED = re.compile(rb"(.*)(%0?\d{0,2}d)(\S*)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+\d+)?")


def read_itk_file(path: Path, reader: str) -> ChannelVolume:
    """Read a file as nnU-Net's SimpleITK readers do; for its nibabel readers, by the same rules as theirs.

    Raises:
        InputError: The file cannot be read or is no volume of one number per voxel.
        SetupError: SimpleITK is not installed.
    """
    sitk = require_simpleitk(path)
    with _translated(path):
        image = _opened(path).Execute()
    voxels = sitk.GetArrayFromImage(image)
    grid = _grid_of(image, voxels.dtype, path, reader)
    with np.errstate(over="ignore"):
        voxels = voxels.astype(_yielded_dtype(voxels.dtype), copy=False)
    spacing_mm = grid.reorientation.apply_to_spacing(grid.spacing_mm)
    return ChannelVolume(grid.reorientation.apply(voxels), spacing_mm, grid)


def read_itk_header(path: Path, reader: str) -> ChannelHeader:
    """Read what a file says of its voxels, and not the voxels.

    Raises:
        InputError: As :func:`read_itk_file`, but for what only the voxels show.
        SetupError: SimpleITK is not installed.
    """
    file = _opened(path)
    stored = _dtype_of(file)
    grid, dtype = _grid_of(file, stored, path, reader), _yielded_dtype(stored)
    copied = 0 if dtype == stored else dtype.itemsize
    item_bytes = 2 * stored.itemsize + copied  # ITK's image, its copy as an array, and that in another type
    spacing_mm = grid.reorientation.apply_to_spacing(grid.spacing_mm)
    return ChannelHeader(dtype, spacing_mm, grid, item_bytes * math.prod(grid.geometry.shape))


def _opened(path: Path) -> Any:
    """Return ITK's reader of a file whose information was read and looked at."""
    sitk = require_simpleitk(path)
    try:
        with open_regular(path) as opened:  # ITK opens it by its name: it would wait for a pipe
            size = os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror or error}") from error
    if not size:
        raise InputError(f"{path.name}: expected an image, found an empty file: copy it again")
    if _IMAGE_IO.get(path.suffix.lower()) == "MetaImageIO":
        _check_dimensions(path)
    unreadable = _unreadable_data_file(path)
    if unreadable is not None and not isinstance(unreadable[1], FileNotFoundError):
        raise _misses(path, *unreadable)  # ITK needs not all that a list names, but waits for a pipe
    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    if not path.suffix.islower():  # by itself ITK finds most formats by an ending in small letters
        file.SetImageIO(_IMAGE_IO[path.suffix.lower()])
    with _translated(path):
        file.ReadImageInformation()
    _check_information(file, size, path)
    if _IMAGE_IO.get(path.suffix.lower()) == "MetaImageIO":
        _check_all_slices_are_named(path, file.GetSize())
    return file


def _check_dimensions(path: Path) -> None:
    """Refuse a number of dimensions with which MetaIO would write behind its arrays, or never end."""
    with _header_lines(path) as lines:
        for line in lines:
            if (match := _DIMENSIONS.fullmatch(line)) and match[1] not in (b"1", b"2", b"3", b"4", b"5"):
                raise InputError(
                    f"{path.name}: expected a 3-D volume, found NDims {match[1].decode(errors='replace')}: convert the "
                    "scan again"
                )
            if _DATA_FILE.fullmatch(line):
                return


def _check_all_slices_are_named(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse a list that names too few files: MetaIO leaves whatever was in memory in the place of the others."""
    with _header_lines(path) as lines:
        values = (match[1] for match in map(_DATA_FILE.fullmatch, lines) if match)
        value = next(values, b"")
        if not (value.upper().startswith(b"LIST") or _NUMBERED.fullmatch(value)):
            return
        named = sum(1 for _ in itertools.islice(_names_given(value, lines), shape[2]))
    if named < shape[2]:
        raise InputError(
            f"{path.name}: expected a file for each of {shape[2]} slices, found the names of {named}: convert the scan "
            "again"
        )


def _unreadable_data_file(path: Path) -> tuple[str, OSError] | None:
    """Return the name of the first file that a header gives and that cannot be read, and why."""
    if path.suffix.lower() == ".gipl":
        return None
    for file in _data_files_named_in(path):
        try:
            open_regular(file).close()
        except OSError as error:
            return file.name, error
        except ValueError:  # a zero byte in the name: not one that ITK takes either
            return None
    return None


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translate what ITK raises."""
    try:
        yield
    except MemoryError as error:
        raise InputError(f"{path.name}: does not fit into memory: use a machine with more") from error
    except RuntimeError as error:
        if unreadable := _unreadable_data_file(path):
            raise _misses(path, *unreadable) from error
        why = _last_line(error)
        if why.startswith("Reason: "):  # MetaIO's word for too few bytes is whatever failed last in the process
            why = "voxels are missing"
        raise InputError(
            f"{path.name}: expected a whole {path.suffix} image, found one that ITK cannot read ({why}): copy it again"
        ) from error


def _misses(path: Path, name: str, error: OSError) -> InputError:
    return InputError(
        f"{path.name}: expected its voxels in {name}, which cannot be read ({error.strerror}): copy both files into "
        "one folder, under the names that they had"
    )


def _grid_of(image: Any, dtype: "np.dtype[Any]", path: Path, reader: str) -> FileGrid:
    """Return the grid of an image, or of a file whose information was read.

    A spacing below 0 is the file's; ITK turns the axis round when it reads the image.
    """
    signed = np.array(image.GetSpacing())
    direction = RAS_FROM_LPS @ np.reshape(image.GetDirection(), (3, 3)) * np.where(signed < 0, -1, 1)
    spacing = np.abs(signed).tolist()
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = RAS_FROM_LPS @ image.GetOrigin()
    x, y, z = image.GetSize()
    try:
        geometry = Geometry((z, y, x), affine)
    except ValueError as error:
        raise InputError(f"{path.name}: {error}: repair its directions and spacing") from error
    reorientation = reorientation_of(geometry, reader, direction)
    return FileGrid(geometry, (spacing[2], spacing[1], spacing[0]), reorientation, ItkSource(dtype))


def _yielded_dtype(stored: "np.dtype[Any]") -> "np.dtype[Any]":
    return np.dtype(np.float32) if stored.kind == "f" or stored.itemsize > 4 else stored


def data_files_of(path: Path) -> tuple[Path, ...]:
    """Return the files beside a header of MetaImage or NRRD that hold its voxels; none where it holds them itself.

    Args:
        path: The header's file, or one of another format.

    Returns:
        Those that are there.

    Raises:
        OSError: It cannot be read, or is a pipe or a device.

    Source:
        MetaIO's ``ElementDataFile`` and NRRD's ``data file``: one name, ``LIST`` and names, or a numbered pattern.
    """
    return tuple(dict.fromkeys(itertools.takewhile(os.path.isfile, _data_files_named_in(path))))


def _data_files_named_in(path: Path) -> Iterator[Path]:
    with _header_lines(path) as lines:
        for name in _data_names(lines):
            yield path.parent / os.fsdecode(name)


@contextlib.contextmanager
def _header_lines(path: Path) -> Iterator[Iterator[bytes]]:
    with open_regular(path) as file:
        yield itertools.islice(iter(lambda: file.readline(_LINE_BYTES), b""), _HEADER_LINES)


def _data_names(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the names that a header gives, those of a list from the lines after it."""
    is_nrrd = False
    for line in lines:
        is_nrrd = is_nrrd or line.startswith(b"NRRD")
        if is_nrrd and not line.strip():
            return  # its voxels follow
        if match := _DATA_FILE.fullmatch(line):
            yield from _names_given(match[1], lines)
            return


def _names_given(value: bytes, lines: Iterator[bytes]) -> Iterator[bytes]:
    if value.upper().startswith(b"LIST"):
        yield from (line.strip() for line in lines if line.strip())
    elif numbered := _NUMBERED.fullmatch(value):
        first, last, step = (int(number) for number in numbered.group(4, 5, 6))
        numbers = range(first, last + (1 if step > 0 else -1), step or 1)
        yield from (numbered[1] + numbered[2] % number + numbered[3] for number in numbers)
    elif value and value.upper() != b"LOCAL":
        yield value


def write_itk_file(path: Path, labels: npt.NDArray[Any], grid: FileGrid) -> None:
    """Write a label map on the grid of an input, compressed.

    Args:
        path: Ends in ``.nrrd`` or ``.mha``.
        labels: (z, y, x) along the file's own axes, in the type to write.
        grid: The input's.

    Raises:
        OSError: The file cannot be written.
        SetupError: SimpleITK is not installed.
    """
    sitk = require_simpleitk(path)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin((RAS_FROM_LPS @ grid.geometry.affine_ras[:3, 3]).tolist())
    image.SetDirection((RAS_FROM_LPS @ grid.geometry.direction_ras).ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(_last_line(error)) from error
    if path.suffix.lower() == ".nrrd":
        _check_nrrd(path, labels)


def _check_nrrd(path: Path, labels: npt.NDArray[Any]) -> None:
    """Look whether all voxels arrived: ITK's NRRD writer does not notice that the disk is full at the very end."""
    try:
        written = gzip.decompress(path.read_bytes().partition(b"\n\n")[2])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError("the end is missing; is the disk full?") from error
    if written != labels.tobytes():
        raise OSError("what stands in the file is not what was written")


def _check_information(file: Any, size: int, path: Path) -> None:
    shape, components = file.GetSize(), file.GetNumberOfComponents()
    if len(shape) != 3:
        raise InputError(f"{path.name}: expected a 3-D volume, found shape {shape}: give one volume per file")
    if components != 1:
        raise InputError(
            f"{path.name}: expected one number per voxel (CT in HU), found {components}: "
            "this is a colour or vector image, take it away"
        )
    if min(shape) < 1:
        raise InputError(f"{path.name}: expected at least one voxel along each axis, found shape {shape}")
    if path.suffix.lower() not in _DETACHED_ENDINGS and np.prod(shape, dtype=np.float64) > size * DEFLATE_MOST:
        raise InputError(
            f"{path.name}: expected voxels of shape {shape}, found a file of {size} bytes: "
            "it was cut off, copy it again"
        )
    if path.suffix.lower() == ".gipl":  # ITK reads half a file of this format without a word
        expected = _GIPL_HEADER_BYTES + math.prod(shape) * _dtype_of(file).itemsize
        if size < expected:
            raise InputError(f"{path.name}: expected {expected} bytes, found {size}: it was cut off, copy it again")


def _dtype_of(file: Any) -> "np.dtype[Any]":
    """Return the type of the numbers in a file whose information was read."""
    sitk = importlib.import_module("SimpleITK")
    dtype: np.dtype[Any] = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], file.GetPixelID())).dtype
    return dtype


def require_simpleitk(path: Path) -> Any:
    """Return SimpleITK, which a file needs.

    Raises:
        SetupError: It is not installed.
    """
    return import_simpleitk(f"{path.name}: a {path.suffix} file", extra="itk")


def import_simpleitk(needed_for: str, *, extra: str) -> Any:
    """Return SimpleITK.

    Args:
        needed_for: What cannot be done without it.
        extra: Which of ctseg's extras brings it.

    Raises:
        SetupError: It is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise missing_package("SimpleITK", needed_for=needed_for, extra=extra) from error
    return SimpleITK


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
