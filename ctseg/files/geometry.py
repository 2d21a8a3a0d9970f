"""Where voxels lie in the patient, without the voxels."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Affine, Shape3, Spacing

SHEAR_TOLERANCE = 1e-4
"""Largest cosine between two axes of a grid that still counts as orthogonal; ITK's."""
SINGULAR_TOLERANCE = 1e-6
"""Volume spanned by the three unit vectors along the axes below which they count as lying in one plane."""

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])
"""Turns DICOM's and ITK's frame into RAS+, and back."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in the patient.

    Attributes:
        shape: Voxels along (z, y, x), as arrays are indexed here.
        affine_ras: (4, 4), voxel index (x, y, z, 1), NIfTI's order, to RAS+ in millimetres; read-only.

    Raises:
        ValueError: The shape is not three positive numbers, or the affine is not a finite 4 x 4 matrix
            that ends in 0, 0, 0, 1, or it is singular: an axis without length, or all axes in one plane.
    """

    shape: Shape3
    affine_ras: Affine

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"expected three positive numbers of voxels, found {self.shape}")
        affine = np.array(self.affine_ras, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or affine[3].tolist() != [0, 0, 0, 1]:
            raise ValueError(f"expected a finite 4 x 4 affine that ends in 0, 0, 0, 1, found {_flat(affine)}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not (lengths > 0).all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < SINGULAR_TOLERANCE:
            raise ValueError(f"expected an affine that can be inverted, found the singular {_flat(affine)}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "affine_ras", affine)

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between voxel centres along (z, y, x): the lengths of the affine's columns."""
        x, y, z = np.linalg.norm(self.affine_ras[:3, :3], axis=0).tolist()
        return (z, y, x)

    @property
    def direction_ras(self) -> npt.NDArray[np.float64]:
        """(3, 3), its columns the unit vectors along (x, y, z) in RAS+."""
        linear = self.affine_ras[:3, :3]
        return np.asarray(linear / np.linalg.norm(linear, axis=0), dtype=np.float64)

    @property
    def is_sheared(self) -> bool:
        """Whether two axes are not at right angles."""
        direction = self.direction_ras
        return bool(np.abs(direction.T @ direction - np.eye(3)).max() > SHEAR_TOLERANCE)

    def position_mm(self, index: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return where a voxel's centre lies.

        Args:
            index: (z, y, x), as arrays are indexed here.

        Returns:
            (right, anterior, superior), in millimetres.
        """
        z, y, x = index
        right, anterior, superior, _ = (self.affine_ras @ (x, y, z, 1.0)).tolist()
        return (right, anterior, superior)

    def distance_mm(self, other: "Geometry") -> float:
        """Return how far apart two grids of one shape are: the largest distance of a corner voxel to its twin.

        Raises:
            ValueError: The shapes differ.
        """
        if self.shape != other.shape:
            raise ValueError(f"grids of different shapes have no distance: {self.shape} and {other.shape}")
        ends = [(0, size - 1) for size in reversed(self.shape)]
        corners = np.array([(*corner, 1) for corner in product(*ends)], dtype=np.float64).T
        return float(np.linalg.norm((self.affine_ras - other.affine_ras) @ corners, axis=0).max())

    def reoriented(self, reorientation: "Reorientation") -> "Geometry":
        """Return the grid of ``reorientation.apply(voxels)``: the same places under new indices."""
        old_from_new = np.zeros((4, 4))
        old_from_new[3, 3] = 1
        for axis, (old_axis, flipped) in enumerate(zip(reorientation.axes, reorientation.flipped, strict=True)):
            old_from_new[2 - old_axis, 2 - axis] = -1 if flipped else 1
            if flipped:
                old_from_new[2 - old_axis, 3] = self.shape[old_axis] - 1
        z, y, x = reorientation.axes
        return Geometry((self.shape[z], self.shape[y], self.shape[x]), self.affine_ras @ old_from_new)


@dataclass(frozen=True)
class Reorientation:
    """A change of the order and the directions of three axes; voxels stay where they are in the patient.

    Attributes:
        axes: For each axis of the result, (z, y, x), the axis of the source that it comes from.
        flipped: For each axis of the result, whether it runs against the source's.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        if sorted(self.axes) != [0, 1, 2]:
            raise ValueError(f"expected a permutation of 0, 1, 2, found {self.axes}")

    def apply(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of (…, z, y, x) with new axes."""
        leading = voxels.ndim - 3
        turned = voxels.transpose(*range(leading), *(leading + axis for axis in self.axes))
        return np.asarray(np.flip(turned, tuple(leading + axis for axis in range(3) if self.flipped[axis])))

    def undo(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of (…, z, y, x) with the axes that the source of :meth:`apply` had."""
        leading = voxels.ndim - 3
        turned = np.flip(voxels, tuple(leading + axis for axis in range(3) if self.flipped[axis]))
        return np.asarray(turned.transpose(*range(leading), *(leading + self.axes.index(axis) for axis in range(3))))

    def apply_to_spacing(self, spacing_mm: Spacing) -> Spacing:
        """Return the spacing along the new axes."""
        z, y, x = self.axes
        return (spacing_mm[z], spacing_mm[y], spacing_mm[x])


IDENTITY = Reorientation()
"""The reorientation that changes nothing."""


def closest_ras_by_itk(direction_ras: npt.NDArray[np.float64]) -> Reorientation:
    """Return the reorientation to RAS that ITK's ``DICOMOrient`` chooses.

    The largest direction cosine decides first; among equals the last one does.

    Args:
        direction_ras: (3, 3), its columns the unit vectors along (x, y, z) in RAS+.

    Source:
        ITK's ``DICOMOrientation::DirectionCosinesToOrientation``.
    """
    left = [(abs(direction_ras[world, axis]), world, axis) for world in range(3) for axis in range(3)]
    axes, flipped = [0, 0, 0], [False, False, False]
    while left:
        _, world, axis = max(left)
        axes[2 - world], flipped[2 - world] = 2 - axis, bool(direction_ras[world, axis] < 0)
        left = [entry for entry in left if entry[1] != world and entry[2] != axis]
    return Reorientation((axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2]))


def reorientation_from_nibabel(orientation: npt.NDArray[Any]) -> Reorientation:
    """Translate nibabel's orientation array, (x, y, z) rows of (new axis, direction), to (z, y, x)."""
    axes, flipped = [0, 0, 0], [False, False, False]
    for axis, (new_axis, sign) in enumerate(orientation.tolist()):
        axes[2 - int(new_axis)], flipped[2 - int(new_axis)] = 2 - axis, sign < 0
    return Reorientation((axes[0], axes[1], axes[2]), (flipped[0], flipped[1], flipped[2]))


def _flat(matrix: npt.NDArray[np.float64]) -> str:
    return "[" + "; ".join(" ".join(f"{value:g}" for value in row) for row in np.atleast_2d(matrix)) + "]"
