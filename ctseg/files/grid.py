"""What a file says about where its voxels lie, and how a reader turns them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from ctseg.arrays import Spacing
from ctseg.files.geometry import (
    IDENTITY,
    Geometry,
    Reorientation,
    closest_ras_by_itk,
    reorientation_from_nibabel,
)


@dataclass(frozen=True, eq=False)
class FileGrid:
    """The grid of a file, and how the voxels as a reader yields them lie on it.

    Attributes:
        geometry: Of the file's own axes.
        spacing_mm: Along the file's own (z, y, x), in millimetres, to the last bit as the reader has it.
        reorientation: From the file's axes to the reader's.
        nifti_header: What a NIfTI file said, for writing the same again.
    """

    geometry: Geometry
    spacing_mm: Spacing
    reorientation: Reorientation = IDENTITY
    nifti_header: Any = None


@dataclass(frozen=True, eq=False)
class Scan:
    """One file as a reader yields it.

    Attributes:
        voxels: (z, y, x).
        spacing_mm: Along the axes of ``voxels``.
        grid: The file's own.
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing
    grid: FileGrid

    @property
    def geometry(self) -> Geometry:
        """Where the voxels lie, on their own axes."""
        return self.grid.geometry.reoriented(self.grid.reorientation)


def reorientation_of(
    geometry: Geometry, reader: str, direction_ras: npt.NDArray[np.float64] | None = None
) -> Reorientation:
    """Return how one of nnU-Net's readers turns the axes of a file.

    Args:
        geometry: Of the file's own axes.
        reader: nnU-Net's name; those that end in ``WithReorient`` turn to RAS, each in its library's way.
        direction_ras: (3, 3), the unit vectors of the axes as the file says them. From the affine they
            come with a rounding that would decide between axes at exactly 45 degrees.
    """
    if not reader.endswith("WithReorient"):
        return IDENTITY
    if "ITK" in reader:
        return closest_ras_by_itk(geometry.direction_ras if direction_ras is None else direction_ras)
    return reorientation_from_nibabel(io_orientation(geometry.affine_ras))
