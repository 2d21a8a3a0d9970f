"""Where the voxels of a NIfTI file lie: the rules of ITK and those of nibabel, which disagree about the same header."""

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError

from ctseg.arrays import Shape3, Spacing
from ctseg.errors import InputError
from ctseg.files.geometry import RAS_FROM_LPS, SHEAR_TOLERANCE, Geometry
from ctseg.files.grid import FileGrid, NiftiSource, reorientation_of

_MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_SILENT = logging.Logger("silent")
_SILENT.addHandler(logging.NullHandler())


def itk_grid(header: Any, shape: Shape3, path: Path, reader: str) -> tuple[FileGrid, Spacing]:
    """The grid as ITK's ``NiftiImageIO`` sees it.

    The sform counts if its axes are orthogonal and there is no qform, or it is the scanner's frame
    (code 1); else the qform does. The spacing always is pixdim. ITK may also prefer an sform of another
    code that equals the qform within 1e-4; the noise of its float32 singular vectors decides, and a
    choice between equals moves no voxel.

    Source:
        ITK 5.4's ``NiftiImageIO::SetImageIOOrientationFromNIfTI``.
    """
    unit_mm = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    spacing = np.array(_voxel_sizes(header, path)) * unit_mm
    qform_code, sform_code = (max(0, int(header[name])) for name in ("qform_code", "sform_code"))
    sform = np.array([header["srow_x"], header["srow_y"], header["srow_z"]], dtype=np.float64)
    if sform_code > 0 and (qform_code == 0 or sform_code == 1) and _is_orthogonal(sform[:, :3]):
        matrix = sform
    elif qform_code > 0:
        matrix = _itk_qform(header)
    elif sform_code > 0:
        raise ValueError(
            f"expected axes at right angles, which reader {reader} of the model needs, found a sheared or singular "
            f"sform {sform[:, :3].round(4).tolist()} and no qform"
        )
    else:
        matrix = RAS_FROM_LPS @ np.eye(3, 4)
    direction = matrix[:, :3] / np.linalg.norm(matrix[:, :3], axis=0)
    direction = direction * np.sign(spacing)
    spacing = np.abs(spacing)
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = matrix[:, 3] * unit_mm
    x, y, z = spacing.tolist()
    geometry = Geometry(shape, affine)
    grid = FileGrid(geometry, (z, y, x), reorientation_of(geometry, reader, direction), NiftiSource(header))
    return grid, grid.reorientation.apply_to_spacing(grid.spacing_mm)


def nibabel_grid(header: Any, shape: Shape3, path: Path, reader: str) -> tuple[FileGrid, Spacing]:
    """The grid as nibabel sees it: the sform if its code is set, else the qform, else a centred guess."""
    _voxel_sizes(header, path)
    if unit := _UNIT_NAMES.get(int(header["xyzt_units"]) & 7):
        raise InputError(
            f"{path.name}: expected voxel sizes in millimetres, found xyzt_units {int(header['xyzt_units'])} ({unit}), "
            f"which reader {reader} of the model takes for millimetres: write sizes in millimetres, and xyzt_units 2"
        )
    fixed = header.copy()
    try:
        fixed.check_fix(logger=_SILENT, error_level=40)
    except (HeaderDataError, KeyError) as error:
        raise InputError(f"{path.name}: {error}: mend that field, or convert the scan to NIfTI again") from error
    try:
        affine = fixed.get_best_affine()
        geometry = Geometry(shape, affine)
        fixed.set_data_dtype(np.uint8)
        fixed.set_data_shape(shape[::-1])
        empty: Any = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = empty(np.broadcast_to(np.uint8(0), shape[::-1]), affine, fixed)
        if reader.endswith("WithReorient"):
            image = image.as_reoriented(io_orientation(affine))  # rounds the voxel size anew
    except HeaderDataError as error:
        raise ValueError(str(error)) from error
    x, y, z = (float(size) for size in image.header.get_zooms())
    file_x, file_y, file_z = (float(size) for size in fixed.get_zooms())
    grid = FileGrid(geometry, (file_z, file_y, file_x), reorientation_of(geometry, reader), NiftiSource(header))
    return grid, (z, y, x)


def finite(value: Any) -> float:
    """A header's number; what is not finite counts as 0, as in ITK."""
    number = float(value)
    return number if np.isfinite(number) else 0.0


def _is_orthogonal(linear: npt.NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(linear, axis=0)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        return False
    direction = linear / lengths
    return bool(np.abs(direction @ direction.T - np.eye(3)).max() <= SHEAR_TOLERANCE)


def _itk_qform(header: Any) -> npt.NDArray[np.float64]:
    """(3, 4): unit axes and offset of the qform, rounded to the header's precision as ITK does."""
    b, c, d = (finite(header[f"quatern_{name}"]) for name in "bcd")
    a = 1.0 - (b * b + c * c + d * d)
    if a < 1e-7:
        scale = 1.0 / np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b * scale, c * scale, d * scale
    else:
        a = np.sqrt(a)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    sizes = [size if size > 0 else 1.0 for size in header["pixdim"][1:4].tolist()]
    if float(header["pixdim"][0]) < 0:
        sizes[2] = -sizes[2]
    precision = header["srow_x"].dtype.newbyteorder("=")
    matrix = np.empty((3, 4))
    matrix[:, :3] = (rotation * sizes).astype(precision)
    matrix[:, 3] = [finite(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return matrix


def _voxel_sizes(header: Any, path: Path) -> list[float]:
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if not all(np.isfinite(size) and size != 0 for size in sizes):
        raise InputError(
            f"{path.name}: expected a voxel size over 0 mm along each axis, found {sizes}: mend the field pixdim"
        )
    return sizes
