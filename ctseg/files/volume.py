"""A scan in memory: reading it as nnU-Net's readers do, and writing labels onto its grid."""

import contextlib
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Affine, Spacing
from ctseg.errors import InputError, OutputError
from ctseg.files.geometry import Geometry
from ctseg.files.grid import FileGrid, Scan, reorientation_of
from ctseg.files.itk import ITK_READ_ENDINGS, ITK_WRITE_ENDINGS, read_itk_file, write_itk_file
from ctseg.files.nifti import NIFTI_ENDINGS, read_nifti, write_nifti
from ctseg.model_spec import Reader

READ_ENDINGS = (*NIFTI_ENDINGS, *ITK_READ_ENDINGS)
"""Of files that can be read; case does not matter."""
WRITE_ENDINGS = (*NIFTI_ENDINGS, *ITK_WRITE_ENDINGS)
"""Of files that can be written."""
SAME_GRID_TOLERANCE_MM = 0.05
"""Furthest that two channels' voxels may lie apart: the rounding of headers, not a shift of the patient."""

_READERS = get_args(Reader)


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
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing
    geometry: Geometry
    grid: FileGrid

    def __post_init__(self) -> None:
        if self.voxels.ndim != 4 or self.voxels.shape[1:] != self.geometry.shape:
            raise ValueError(f"expected voxels (channels, {self.geometry.shape}), found {self.voxels.shape}")

    def on_file_axes(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of labels (z, y, x), given on this volume's axes, along the axes of the input."""
        return self.grid.reorientation.undo(labels)


def read_volume(files: Sequence[Path], reader: str) -> Volume:
    """Read the channels of one case as one of nnU-Net's readers does.

    NIfTI needs no more than nibabel, under all four readers' rules.

    Args:
        files: One file per channel, in order.
        reader: ``SimpleITKIO``, ``SimpleITKIOWithReorient``, ``NibabelIO`` or ``NibabelIOWithReorient``.

    Returns:
        The scan. Its voxels are C-contiguous only where nothing was turned.

    Raises:
        InputError: A file cannot be used (see :func:`ctseg.files.nifti.read_nifti`), has voxels that are not
            finite, or the files do not lie on one grid.
        SetupError: A file needs SimpleITK, which is not installed.

    Source:
        nnU-Net's ``imageio`` package.
    """
    _check_reader(reader)
    if not files:
        raise ValueError("expected a file for each channel, found none")
    first = _read_scan(files[0], reader)
    if len(files) == 1:
        return Volume(first.voxels[None], first.spacing_mm, first.geometry, first.grid)
    scans = [first]
    for file in files[1:]:
        scan = _read_scan(file, reader)
        _check_same_grid(files[0], first, file, scan)
        scans.append(scan)
    dtypes = {scan.voxels.dtype for scan in scans}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    voxels = np.stack([scan.voxels.astype(dtype, copy=False) for scan in scans])
    return Volume(voxels, first.spacing_mm, first.geometry, first.grid)


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
    _check_finite(voxels, "array")
    grid = FileGrid(geometry, geometry.spacing_mm, reorientation_of(geometry, reader))
    spacing_mm = grid.reorientation.apply_to_spacing(grid.spacing_mm)
    return Volume(grid.reorientation.apply(voxels), spacing_mm, geometry.reoriented(grid.reorientation), grid)


def write_label_map(path: Path, labels: npt.NDArray[Any], volume: Volume) -> None:
    """Write labels onto the grid of the input, so that they open in the same place.

    The file is whole or not there at all: an older file of the name stays until the new one is safe
    on the disk.

    Args:
        path: Ends in one of :data:`WRITE_ENDINGS`.
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
    ending = ending_of(path, WRITE_ENDINGS)
    if ending is None:
        raise OutputError(f"{path}: label maps are written as {', '.join(WRITE_ENDINGS)}")

    def write(temporary: Path) -> None:
        if ending in ITK_WRITE_ENDINGS:
            write_itk_file(temporary, np.ascontiguousarray(written), volume.grid)
            return
        with temporary.open("xb") as file:
            write_nifti(file, written, volume.grid, compress=ending.endswith(".gz"))

    _put_in_place(path, ending, write)


def ending_of(path: Path, endings: Sequence[str] = READ_ENDINGS) -> str | None:
    """Return which of the endings a file's name has, whatever its case; None: none of them."""
    name = path.name.lower()
    return next((ending for ending in endings if name.endswith(ending)), None)


def _read_scan(file: Path, reader: str) -> Scan:
    ending = ending_of(file)
    if ending is None:
        raise InputError(f"{file.name}: expected a scan in one of {', '.join(READ_ENDINGS)}: convert it")
    scan = read_nifti(file, reader) if ending in NIFTI_ENDINGS else read_itk_file(file, reader)
    _check_finite(scan.voxels, file.name)
    return scan


def _check_reader(reader: str) -> None:
    if reader not in _READERS:
        raise ValueError(f"expected one of nnU-Net's readers {_READERS}, found {reader!r}")


def _check_finite(voxels: npt.NDArray[Any], name: str) -> None:
    # minimum and maximum carry NaN and infinity along, and need no memory
    if voxels.dtype.kind != "f" or (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
        return
    nans, infinities = int(np.isnan(voxels).sum()), int(np.isinf(voxels).sum())
    raise InputError(
        f"{name}: expected a finite number in every voxel, found {nans} NaN and {infinities} infinite in "
        f"{voxels.size}: replace them, for CT by -1024 outside the field of view"
    )


def _check_same_grid(first_file: Path, first: Scan, file: Path, scan: Scan) -> None:
    """Refuse channels that do not lie on each other; nnU-Net only warns about some of these."""
    one, other = first.geometry, scan.geometry
    what = f"{file.name}: expected the grid of {first_file.name}, found"
    todo = "resample one channel onto the other"
    if one.shape != other.shape:
        raise InputError(f"{what} {other.shape} voxels (z, y, x) instead of {one.shape}: {todo}")
    if one.distance_mm(other) > SAME_GRID_TOLERANCE_MM:
        raise InputError(f"{what} voxels up to {one.distance_mm(other):.3g} mm away from theirs: {todo}")
    if not np.allclose(first.spacing_mm, scan.spacing_mm):
        raise InputError(f"{what} a voxel size (z, y, x) of {scan.spacing_mm} instead of {first.spacing_mm} mm: {todo}")


def _put_in_place(path: Path, ending: str, write: Callable[[Path], None]) -> None:
    """Write beside ``path`` under a hidden name, and rename once the data are on the disk."""
    temporary = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex[:12]}.tmp{ending}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds no such file
            temporary.unlink(missing_ok=True)
