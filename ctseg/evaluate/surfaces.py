"""How far the surfaces of two masks lie apart: DeepMind's definition, which tools of the same names do not share.

A surface element lies at each corner point of the voxel grid whose eight voxels are not all inside or all outside. Its
area is that of the triangles that marching cubes puts there. A percentile, a mean or a share counts areas, not
elements: what is found does not hang on how the grid cuts the surface. Distances go from an element to the nearest one
of the other surface, in millimetres.

Source:
    github.com/google-deepmind/surface-distance (Apache-2.0), whose areas are :data:`_AREAS`; Nikolov et al.,
    J Med Internet Res 23 (2021) e26151.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from ctseg.arrays import Spacing

DEFINITION = (
    "surface-distance 0.1 (DeepMind): elements of 2x2x2 neighbourhoods weighted by their area; hd95_mm: the larger of "
    "both directions' 95th percentiles; assd_mm: mean over both surfaces; nsd: share of both within the tolerance"
)
"""Named in every report: HD95 of the same masks is 1.5 mm by one tool and 3.0 mm by another."""
PERCENT = 95

_NORMALS = np.array([(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)], np.float64)
_AREAS = (
    "0000000 0000001 0000001 0000040 0000001 0000400 0000002 0004003 0000001 0000002 0000400 0004003 0000040 0004003 "
    "0004003 0008000 0000001 0040000 0000002 0400003 0000002 4000003 0000003 0000006 0000002 0040001 0000401 0020204 "
    "0000041 0020024 0004004 0004003 0000001 0000002 0040000 0400003 0000002 0000401 0040001 0020204 0000002 0000003 "
    "4000003 0000006 0000041 0004004 0020024 0004003 0000040 0400003 0400003 0800000 0000041 0000224 0400004 0400003 "
    "0000041 0400004 0000224 0400003 0000080 0000041 0000041 0000040 0000001 0000002 0000002 0000041 0040000 4000003 "
    "0040001 0020024 0000002 0000003 0000401 0004004 0400003 0000006 0020204 0004003 0000400 4000003 0000401 0000224 "
    "4000003 8000000 4000004 4000003 0000401 4000004 0000800 0000401 0000224 4000003 0000401 0000400 0000002 0000003 "
    "0040001 0400004 0040001 4000004 0080000 0040001 0000003 0000004 4000004 0000003 0400004 0000003 0040001 0000002 "
    "0004003 0000006 0020204 0400003 0020024 4000003 0040001 0040000 0004004 0000003 0000401 0000002 0000041 0000002 "
    "0000002 0000001 "
)
"""For each neighbourhood, as its eight voxels' bits say, eighths of each normal; the inverse has the same areas."""
_WEIGHTS = np.array([[int(digit) for digit in word] for word in _AREAS.split()], np.float64) / 8
_INSIDE = 255


@dataclass(frozen=True)
class SurfaceScores:
    """How far two surfaces lie apart.

    Attributes:
        hd95_mm: 95th percentile of the distances by area, the larger of both directions.
        assd_mm: Mean of the distances over the area of both surfaces.
        nsd: Share of the area of both that lies within each tolerance of the other.
    """

    hd95_mm: float
    assd_mm: float
    nsd: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Surface:
    """Elements of a surface.

    Attributes:
        points: Where they lie, as flat indices into the corner points of the box, in ascending order.
        areas: In square millimetres.
    """

    points: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float64]


def element_areas(spacing_mm: Spacing) -> npt.NDArray[np.float64]:
    """Return the area of the surface element of each of the 256 neighbourhoods, in square millimetres."""
    z, y, x = spacing_mm
    half = _WEIGHTS @ np.linalg.norm(_NORMALS * (y * x, z * x, z * y), axis=1)
    return np.concatenate([half, half[::-1]])


def surface_scores(
    one: npt.NDArray[np.bool_],
    other: npt.NDArray[np.bool_],
    spacing_mm: Spacing,
    tolerances_mm: Sequence[float],
    ignored: npt.NDArray[np.bool_] | None = None,
) -> SurfaceScores:
    """Compare the surfaces of two masks.

    Args:
        one: (z, y, x), which may be cut to the box of both masks: outside of it lies nothing.
        other: Likewise.
        spacing_mm: Along (z, y, x).
        tolerances_mm: Of the normalised surface Dice.
        ignored: Voxels of which nothing is known: elements that touch one are left out of both surfaces.

    Returns:
        NaN where neither mask has a voxel that is not ignored, or where elements that touch no ignored voxel are
        missing on either side; where one mask alone has voxels, infinite distances and a surface Dice of 0.
    """
    known = np.True_ if ignored is None else ~ignored
    empty = [not (mask & known).any() for mask in (one, other)]
    if all(empty):
        return SurfaceScores(math.nan, math.nan, (math.nan,) * len(tolerances_mm))
    if any(empty):
        return SurfaceScores(math.inf, math.inf, (0.0,) * len(tolerances_mm))
    areas = element_areas(spacing_mm)
    touched = None if ignored is None else _codes(ignored) != 0
    surfaces = [_surface(mask, areas, touched) for mask in (one, other)]
    if any(not len(surface.points) for surface in surfaces):
        return SurfaceScores(math.nan, math.nan, (math.nan,) * len(tolerances_mm))
    corners = tuple(size + 1 for size in one.shape)
    there = _distances(surfaces[0], surfaces[1], corners, spacing_mm)
    back = _distances(surfaces[1], surfaces[0], corners, spacing_mm)
    area = surfaces[0].areas.sum() + surfaces[1].areas.sum()
    within = [
        surfaces[0].areas[there <= tolerance].sum() + surfaces[1].areas[back <= tolerance].sum()
        for tolerance in tolerances_mm
    ]
    return SurfaceScores(
        hd95_mm=max(_percentile(there, surfaces[0].areas), _percentile(back, surfaces[1].areas)),
        assd_mm=float((there @ surfaces[0].areas + back @ surfaces[1].areas) / area),
        nsd=tuple(float(share / area) for share in within),
    )


def _surface(
    mask: npt.NDArray[np.bool_], areas: npt.NDArray[np.float64], left_out: npt.NDArray[np.bool_] | None
) -> _Surface:
    codes = _codes(mask)
    is_element = (codes != 0) & (codes != _INSIDE)
    if left_out is not None:
        is_element &= ~left_out
    points = np.flatnonzero(is_element)
    return _Surface(points, areas[codes.ravel()[points]])


def _codes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return for each corner point which of its eight voxels are inside, as bits; the last voxel is the lowest bit."""
    codes = np.zeros(tuple(size + 1 for size in mask.shape), np.uint8)
    bits = mask.view(np.uint8)
    z, y, x = mask.shape
    for shift in range(8):
        dz, dy, dx = shift >> 2 & 1, shift >> 1 & 1, shift & 1
        codes[dz : dz + z, dy : dy + y, dx : dx + x] |= bits << shift
    return codes


def _distances(
    start: _Surface, goal: _Surface, corners: tuple[int, ...], spacing_mm: Spacing
) -> npt.NDArray[np.float64]:
    """Return the distance of each element to the nearest one of another surface, in millimetres."""
    distances = np.zeros(len(start.points))
    # elements that both surfaces have are at no distance, and are most where a label map is good
    nearest = np.minimum(np.searchsorted(goal.points, start.points), len(goal.points) - 1)
    apart = np.flatnonzero(goal.points[nearest] != start.points)
    if len(apart):
        ends, begins = (np.stack(np.unravel_index(p, corners), axis=1) for p in (goal.points, start.points[apart]))
        _, nearest = cKDTree(ends * spacing_mm, balanced_tree=False).query(begins * spacing_mm)
        # from whole steps, so that three voxels of 1 mm are 3 mm wherever they lie
        distances[apart] = np.linalg.norm((begins - ends[nearest]) * spacing_mm, axis=1)
    return distances


def _percentile(distances: npt.NDArray[np.float64], areas: npt.NDArray[np.float64]) -> float:
    """Return the distance that so many percent of the area do not exceed."""
    order = np.lexsort((areas, distances))
    covered = np.cumsum(areas[order])
    place = np.searchsorted(covered / areas.sum(), PERCENT / 100)
    return float(distances[order][min(int(place), len(distances) - 1)])
