"""A scan in memory: reading it as nnU-Net's readers do, and writing labels onto its grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Affine, LabelMap, Spacing
from ctseg.compiled.parallel import run_parallel
from ctseg.errors import InputError, OutputError
from ctseg.files.atomic import replacing
from ctseg.files.formats import WRITE_ENDINGS, ChannelFiles, format_of, read_channel, read_channel_header
from ctseg.files.geometry import Geometry
from ctseg.files.grid import ChannelHeader, ChannelVolume, FileGrid, reorientation_of
from ctseg.model_spec import Reader

SAME_GRID_TOLERANCE_MM = 0.05
"""Furthest that two channels' voxels may lie apart: the rounding of headers, not a shift of the patient."""

_READERS = get_args(Reader)
MAX_LABEL = 2**16 - 1


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan of one or more channels, with axes as a reader yields them.

    Attributes:
        voxels: (channels, z, y, x): integers of at most 4 bytes where the files hold such, else
            float32; finite. ``voxels.astype(np.float32)`` is what nnU-Net's reader returns.
        spacing_mm: Along (z, y, x), in millimetres, to the last bit what nnU-Net's reader returns. Under
            NibabelIO it may differ from ``geometry.spacing_mm``, if the header contradicts itself.
        geometry: Where the voxels lie in the patient.
        grid: The grid of the first file, whose axes may be others.

    Raises:
        ValueError: The voxels do not fit the geometry, or have another type.
        InputError: A voxel is NaN or infinite.
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing
    geometry: Geometry
    grid: FileGrid

    def __post_init__(self) -> None:
        if self.voxels.ndim != 4 or self.voxels.shape[1:] != self.geometry.shape:
            raise ValueError(f"expected voxels (channels, {self.geometry.shape}), found {self.voxels.shape}")
        dtype = self.voxels.dtype
        if dtype != np.float32 and not (dtype.kind in "iu" and dtype.itemsize <= 4):
            raise ValueError(f"expected float32 or integers of at most 4 bytes, found {dtype}")
        for channel, voxels in enumerate(self.voxels):
            if problem := non_finite_problem(voxels):
                raise _NotFiniteError(channel, problem)

    def on_file_axes(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of labels (z, y, x), given on this volume's axes, along the axes of the input."""
        return self.grid.reorientation.undo(labels)


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """What the files of a scan say of it: all of a :class:`Volume` but its voxels.

    Attributes:
        channels: How many there are.
        dtype: Of the voxels.
        spacing_mm: As the volume's.
        geometry: Likewise.
        grid: Likewise.
        reading_bytes: Memory that reading takes at most, the voxels included.
    """

    channels: int
    dtype: "np.dtype[Any]"
    spacing_mm: Spacing
    geometry: Geometry
    grid: FileGrid
    reading_bytes: int

    @property
    def voxel_bytes(self) -> int:
        """Memory that the voxels of all channels take."""
        return self.channels * math.prod(self.geometry.shape) * self.dtype.itemsize


class _NotFiniteError(InputError):
    """A channel has voxels that are NaN or infinite; the doors say which file it came from."""

    def __init__(self, channel: int, problem: str) -> None:
        super().__init__(f"channel {channel}: {problem}")
        self.channel = channel
        self.problem = problem


def read_volume(channels: Sequence[Path | ChannelFiles], reader: str) -> Volume:
    """Read the channels of one case as one of nnU-Net's readers does.

    NIfTI needs no more than nibabel, under all four readers' rules.

    Args:
        channels: Where each channel lies, in order: a file, or all the files of one channel.
        reader: ``SimpleITKIO``, ``SimpleITKIOWithReorient``, ``NibabelIO`` or ``NibabelIOWithReorient``.

    Returns:
        The scan. Its voxels are C-contiguous only where nothing was turned.

    Raises:
        InputError: A file cannot be used (see :func:`ctseg.files.nifti.read_nifti`), has voxels that are not
            finite, or the channels do not lie on one grid.
        SetupError: A file needs SimpleITK, which is not installed.

    Source:
        nnU-Net's ``imageio`` package.
    """
    files = _files_of(channels, reader)
    first = read_channel(files[0], reader)
    others = []
    for other_files in files[1:]:
        other = read_channel(other_files, reader)
        _check_same_grid(files[0], first, other_files, other)
        others.append(other)
    try:
        return Volume(_stacked([first, *others]), first.spacing_mm, first.geometry, first.grid)
    except _NotFiniteError as error:
        raise InputError(f"{files[error.channel].name}: {error.problem}") from error


def read_label_map(path: Path, reader: str, scan: Volume) -> LabelMap:
    """Read a label map that belongs to a scan.

    Args:
        path: The file.
        reader: By which the scan was read.
        scan: The scan, on whose grid it has to lie.

    Returns:
        (z, y, x) on the axes of the scan.

    Raises:
        InputError: The file cannot be read, lies on another grid, or has values that are no labels.
        SetupError: It needs SimpleITK, which is not installed.
    """
    labels = read_volume([path], reader)
    grid, values = labels.grid.geometry, labels.voxels[0]
    if grid.shape == scan.grid.geometry.shape and grid.distance_mm(scan.grid.geometry) <= SAME_GRID_TOLERANCE_MM:
        values = scan.grid.reorientation.apply(labels.on_file_axes(values))  # the files have the same axes
        found = scan.geometry
    else:
        found = labels.geometry
    what = f"{path.name}: expected labels on the grid of the scan, found"
    if found.shape != scan.geometry.shape:
        raise InputError(f"{what} {found.shape} voxels (z, y, x) instead of {scan.geometry.shape}")
    if (away_mm := found.distance_mm(scan.geometry)) > SAME_GRID_TOLERANCE_MM:
        raise InputError(f"{what} voxels up to {away_mm:.3g} mm away from its own")
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest > MAX_LABEL or (values.dtype.kind == "f" and not np.array_equal(values, np.rint(values))):
        raise InputError(
            f"{path.name}: expected whole numbers from 0 to {MAX_LABEL}, found values from {lowest} to {highest}: is "
            "this a label map?"
        )
    read: LabelMap = values.astype(np.uint8 if highest <= 255 else np.uint16)
    return read


def read_volume_header(channels: Sequence[Path | ChannelFiles], reader: str) -> VolumeHeader:
    """Read what the files of one case say of it, without the voxels: what :func:`read_volume` would yield.

    Args:
        channels: See :func:`read_volume`.
        reader: Likewise.

    Raises:
        InputError: As :func:`read_volume`, but for what only the voxels show.
        SetupError: A file needs SimpleITK, which is not installed.
    """
    files = _files_of(channels, reader)
    headers = [read_channel_header(channel, reader) for channel in files]
    first = headers[0]
    for other_files, other in zip(files[1:], headers[1:], strict=True):
        _check_same_grid(files[0], first, other_files, other)
    dtype = _common_dtype([header.dtype for header in headers])
    return VolumeHeader(len(files), dtype, first.spacing_mm, first.geometry, first.grid, _reading_bytes(headers, dtype))


def _files_of(channels: Sequence[Path | ChannelFiles], reader: str) -> list[ChannelFiles]:
    _check_reader(reader)
    if not channels:
        raise ValueError("expected a file for each channel, found none")
    return [channel if isinstance(channel, ChannelFiles) else ChannelFiles((channel,)) for channel in channels]


def _reading_bytes(headers: Sequence[ChannelHeader], dtype: "np.dtype[Any]") -> int:
    """Return the most memory that is held while channels are read one after the other, and then stacked."""
    voxels = math.prod(headers[0].geometry.shape)
    most = held = 0
    for header in headers:
        most = max(most, held + header.reading_bytes)
        held += header.dtype.itemsize * voxels
    if len(headers) == 1:
        return most
    converted = sum(dtype.itemsize for header in headers if header.dtype != dtype)
    return max(most, held + (converted + len(headers) * dtype.itemsize) * voxels)


def _stacked(channels: Sequence[ChannelVolume]) -> npt.NDArray[Any]:
    """Return (channels, z, y, x): a view of one channel; float32 where the channels' types differ."""
    if len(channels) == 1:
        return channels[0].voxels[None]
    dtype = _common_dtype([channel.voxels.dtype for channel in channels])
    return np.stack([channel.voxels.astype(dtype, copy=False) for channel in channels])


def _common_dtype(dtypes: "Sequence[np.dtype[Any]]") -> "np.dtype[Any]":
    return dtypes[0] if len(set(dtypes)) == 1 else np.dtype(np.float32)


def volume_from_array(voxels: npt.NDArray[Any], geometry: Geometry | Affine, reader: str = "SimpleITKIO") -> Volume:
    """Return a volume for voxels that are in memory, as if they had been read from a file.

    Args:
        voxels: (z, y, x), or (channels, z, y, x), real numbers. Not copied where the type allows.
        geometry: The grid, or its affine: voxel index (x, y, z, 1) to RAS+ in millimetres.
        reader: nnU-Net's name of the rule for the orientation; what the model's spec names.

    Raises:
        ValueError: The shapes do not fit, or the affine is singular or not finite.
        InputError: Voxels are not finite.
    """
    _check_reader(reader)
    if voxels.ndim == 3:
        voxels = voxels[None]
    if voxels.ndim != 4 or voxels.dtype.kind not in "biuf":
        raise ValueError(f"expected real voxels (channels, z, y, x), found {voxels.dtype} {voxels.shape}")
    if voxels.dtype.kind == "b":
        voxels = voxels.view(np.uint8)
    elif voxels.dtype.itemsize > 4 or voxels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            voxels = voxels.astype(np.float32, copy=False)
    if not isinstance(geometry, Geometry):
        geometry = Geometry(voxels.shape[1:], geometry)
    grid = FileGrid(geometry, geometry.spacing_mm, reorientation_of(geometry, reader))
    spacing_mm = grid.reorientation.apply_to_spacing(grid.spacing_mm)
    turned = grid.reorientation.apply(voxels)
    try:
        return Volume(turned, spacing_mm, geometry.reoriented(grid.reorientation), grid)
    except _NotFiniteError as error:
        raise InputError(f"array: {error}") from error


def write_label_map(path: Path, labels: npt.NDArray[Any], volume: Volume) -> None:
    """Write labels onto the grid of the input, so that they open in the same place.

    The file is whole or not there at all: an older file of the name stays until the new one is safe
    on the disk.

    Args:
        path: Ends in one of :data:`ctseg.files.formats.WRITE_ENDINGS`.
        labels: (z, y, x) on the axes of ``volume``, integers, none negative; written in the smallest
            unsigned type that holds them.
        volume: The scan that they belong to.

    Raises:
        OutputError: The folder is missing or not writable, the disk is full, or the ending is unknown.
        SetupError: The ending needs SimpleITK, which is not installed.
    """
    if labels.shape != volume.geometry.shape or labels.dtype.kind not in "biu":
        raise ValueError(f"expected integers of shape {volume.geometry.shape}, found {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise ValueError(f"expected no negative labels, found {labels.min()}")
    written = volume.on_file_axes(labels).astype(np.min_scalar_type(int(labels.max())), copy=False)
    write_on_grid(path, written, volume.grid)


def write_on_grid(path: Path, voxels: npt.NDArray[Any], grid: FileGrid) -> None:
    """Write voxels onto the grid of a file, whole or not at all, as :func:`write_label_map` does.

    Args:
        path: Ends in one of :data:`ctseg.files.formats.WRITE_ENDINGS`.
        voxels: (z, y, x) along the file's own axes, in the type to write.
        grid: The file's.

    Raises:
        OutputError: The folder is missing or not writable, the disk is full, or the ending is unknown.
        SetupError: The ending needs SimpleITK, which is not installed.
    """
    entry = format_of(path)
    if entry is None or entry.write_labels is None:
        raise OutputError(f"{path}: label maps are written as {', '.join(WRITE_ENDINGS)}")
    with replacing(path) as temporary:
        entry.write_labels(temporary, voxels, grid)


def _check_reader(reader: str) -> None:
    if reader not in _READERS:
        raise ValueError(f"expected one of nnU-Net's readers {_READERS}, found {reader!r}")


def non_finite_problem(voxels: npt.NDArray[Any]) -> str | None:
    """Return what is wrong with (z, y, x) if a voxel is NaN or infinite, else None."""
    if voxels.dtype.kind != "f":
        return None
    bad: list[int] = []

    def look(first: int, last: int) -> None:
        for z in range(first, last):
            # minimum and maximum carry NaN and infinity along, and need no memory
            if not (np.isfinite(voxels[z].min()) and np.isfinite(voxels[z].max())):
                bad.append(z)

    run_parallel(look, len(voxels))
    if not bad:
        return None
    nans, infinities = (sum(int(count(voxels[z]).sum()) for z in bad) for count in (np.isnan, np.isinf))
    return (
        f"expected a finite number in every voxel, found {nans} NaN and {infinities} infinite in "
        f"{voxels.size}, the first in slice {min(bad)}: replace them, for CT by -1024 outside the field of view"
    )


def _check_same_grid(
    first_files: ChannelFiles,
    first: ChannelVolume | ChannelHeader,
    files: ChannelFiles,
    channel: ChannelVolume | ChannelHeader,
) -> None:
    """Refuse channels that do not lie on each other; nnU-Net only warns about some of these."""
    one, other = first.geometry, channel.geometry
    what = f"{files.name}: expected the grid of {first_files.name}, found"
    todo = "resample one channel onto the other"
    if one.shape != other.shape:
        raise InputError(f"{what} {other.shape} voxels (z, y, x) instead of {one.shape}: {todo}")
    if one.distance_mm(other) > SAME_GRID_TOLERANCE_MM:
        raise InputError(f"{what} voxels up to {one.distance_mm(other):.3g} mm away from theirs: {todo}")
    if not np.allclose(first.spacing_mm, channel.spacing_mm):
        raise InputError(
            f"{what} a voxel size (z, y, x) of {channel.spacing_mm} instead of {first.spacing_mm} mm: {todo}"
        )
