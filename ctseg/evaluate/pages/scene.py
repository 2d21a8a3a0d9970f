"""What a viewer in a page is given: a scan and its labels, small enough for a page, where they lie in the patient.

Voxels go in blocks of whole numbers of voxels, so that millimetres stay what they are. A block of the scan is its mean,
in steps of 8 bits; a block of labels is what most of it is, and no label is lost.
"""

import base64
import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from ctseg.arrays import Shape3
from ctseg.files.geometry import Geometry, closest_ras_by_itk

MOST_VOXELS: Shape3 = (200, 256, 256)
"""Of a scan in a page, along (z, y, x): up, to the front and to the right."""
CT_HU = (-1024.0, 1016.0)
"""What 8 bits of a CT in a page can say: steps of 8 HU; below and above counts as these."""
_FINE = 1.5
"""Times the least spacing up to which voxels along an axis count as fine."""
_WHOLE_BLOCK = 27
"""Voxels of a block up to which all are counted; of larger ones every second, third, … along each axis."""


@dataclass(frozen=True, eq=False)
class SceneVolume:
    """Voxels of a page.

    Attributes:
        voxels: (z, y, x), along axes nearest to RAS+.
        geometry: Where they lie.
        slope: What a step of ``voxels`` is worth.
        intercept: What 0 is worth.
    """

    voxels: npt.NDArray[Any]
    geometry: Geometry
    slope: float = 1.0
    intercept: float = 0.0

    def base64(self) -> str:
        """Return a packed NIfTI file for a viewer, as text."""
        header = nibabel.Nifti1Header()
        header.set_data_dtype(self.voxels.dtype)
        header.set_data_shape(self.voxels.shape[::-1])
        header.set_sform(self.geometry.affine_ras, code=1)
        z, y, x = self.geometry.spacing_mm
        header["pixdim"][1:4] = x, y, z
        header.set_xyzt_units("mm")
        header["scl_slope"], header["scl_inter"], header["vox_offset"] = self.slope, self.intercept, 352
        content = header.binaryblock + bytes(4) + np.ascontiguousarray(self.voxels).tobytes()
        return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode("ascii")


def scene_of_scan(
    voxels: npt.NDArray[Any], geometry: Geometry, *, range_of_values: tuple[float, float] = CT_HU
) -> SceneVolume:
    """Return a scan for a page: at most :data:`MOST_VOXELS`, 8 bits.

    Args:
        voxels: (z, y, x), any real type.
        geometry: Where they lie.
        range_of_values: What 0 and 255 are worth.
    """
    turn = closest_ras_by_itk(geometry.direction_ras)
    turned, there = turn.apply(voxels), geometry.reoriented(turn)
    factors = _factors(there.shape)
    low, high = range_of_values
    step = (high - low) / 255 or 1.0
    small = np.empty(_small_shape(there.shape, factors), dtype=np.uint8)
    for z in range(small.shape[0]):
        slab = np.clip(turned[z * factors[0] : (z + 1) * factors[0]].astype(np.float32), low, high).mean(axis=0)
        blocks = _padded(slab, factors[1:], mode="edge").reshape(small.shape[1], factors[1], small.shape[2], factors[2])
        small[z] = ((blocks.mean(axis=(1, 3)) - low) / step).round()
    return SceneVolume(small, _small_geometry(there, factors), step, low)


def scene_of_labels(labels: npt.NDArray[Any], geometry: Geometry) -> SceneVolume:
    """Return labels for a page, on the grid of the scan's; every value that is there stays.

    Args:
        labels: (z, y, x), whole numbers; 0 is background.
        geometry: Where they lie.
    """
    turn = closest_ras_by_itk(geometry.direction_ras)
    turned, there = turn.apply(labels), geometry.reoriented(turn)
    factors = _factors(there.shape)
    if factors == (1, 1, 1):
        return SceneVolume(np.ascontiguousarray(turned), there)
    small = np.zeros(_small_shape(there.shape, factors), dtype=labels.dtype)
    found = np.zeros(int(labels.max()) + 1, dtype=bool)
    for z in range(small.shape[0]):
        slab = turned[z * factors[0] : (z + 1) * factors[0]]
        found[np.unique(slab)] = True
        if slab.any():
            small[z] = _most_of_each_block(slab, factors[1:])
    found[0] = False
    found[np.unique(small)] = False
    lost = np.flatnonzero(found)
    if len(lost):
        _keep(lost, turned, small, factors)
    return SceneVolume(small, _small_geometry(there, factors))


def outline_of(scene: SceneVolume, *, beside: int = 0) -> SceneVolume:
    """Return the labels of a page where another value, or the end of the grid, lies beside them; 0 elsewhere.

    Beside means within the planes of the finest voxels: where slices are far apart, what ends between two of them
    would fill bands of the planes on which people look.

    Args:
        scene: Labels.
        beside: A value for background next to them, a dark line by which a bright one is seen on anything.
    """
    labels = np.pad(scene.voxels, 1)
    middle = labels[1:-1, 1:-1, 1:-1]
    is_inside, is_beside = np.ones(middle.shape, dtype=bool), np.zeros(middle.shape, dtype=bool)
    spacing_mm = scene.geometry.spacing_mm
    fine = [axis for axis in range(3) if spacing_mm[axis] <= _FINE * min(spacing_mm)]
    for axis in fine if len(fine) > 1 else range(3):
        for step in (-1, 1):
            neighbour = np.roll(labels, step, axis=axis)[1:-1, 1:-1, 1:-1]
            is_inside &= neighbour == middle
            is_beside |= (neighbour != 0) & (middle == 0)
    outline = np.where(is_inside, 0, middle)
    outline[is_beside] = beside
    return SceneVolume(outline.astype(middle.dtype), scene.geometry)


def renumbered(scene: SceneVolume, values: list[int]) -> SceneVolume:
    """Return labels as places in a list of values, from 1, in the smallest type that holds them and one more.

    Args:
        scene: Labels.
        values: In order; what is not among them becomes 0.
    """
    table = np.zeros(int(scene.voxels.max()) + 1, dtype=np.uint8 if len(values) < 255 else np.uint16)
    for place, value in enumerate(values, start=1):
        if value < len(table):
            table[value] = place
    return SceneVolume(table[scene.voxels], scene.geometry)


def values_in(labels: npt.NDArray[Any]) -> list[int]:
    """Return the values of labels but 0, in order."""
    found = np.zeros(int(labels.max()) + 1, dtype=bool)
    for plane in labels:
        found[np.unique(plane)] = True
    return [int(value) for value in np.flatnonzero(found) if value]


def _factors(shape: Shape3) -> Shape3:
    z, y, x = (math.ceil(size / most) for size, most in zip(shape, MOST_VOXELS, strict=True))
    return z, y, x


def _small_shape(shape: Shape3, factors: Shape3) -> Shape3:
    z, y, x = (math.ceil(size / factor) for size, factor in zip(shape, factors, strict=True))
    return z, y, x


def _small_geometry(geometry: Geometry, factors: Shape3) -> Geometry:
    """Return the grid of blocks: each lies at the middle of its voxels' centres."""
    old_from_new = np.eye(4)
    for axis, factor in enumerate(reversed(factors)):
        old_from_new[axis, axis] = factor
        old_from_new[axis, 3] = (factor - 1) / 2
    return Geometry(_small_shape(geometry.shape, factors), geometry.affine_ras @ old_from_new)


def _padded(plane: npt.NDArray[Any], factors: tuple[int, ...], *, mode: Any) -> npt.NDArray[Any]:
    after = [(0, -size % factor) for size, factor in zip(plane.shape[-2:], factors, strict=True)]
    return np.pad(plane, [(0, 0)] * (plane.ndim - 2) + after, mode=mode)


def _most_of_each_block(slab: npt.NDArray[Any], factors: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the value that most voxels of each block have; among equals one that is not 0."""
    padded = _padded(slab, factors, mode="constant")
    steps = [max(1, math.ceil(count / 3)) if math.prod((len(slab), *factors)) > _WHOLE_BLOCK else 1
             for count in (len(slab), *factors)]  # fmt: skip
    parts = [
        padded[z, y :: factors[0], x :: factors[1]]
        for z in range(0, len(slab), steps[0])
        for y in range(0, factors[0], steps[1])
        for x in range(0, factors[1], steps[2])
    ]
    best: npt.NDArray[Any] = parts[0].copy()
    most = np.zeros(parts[0].shape, dtype=np.int16)
    for part in parts:
        count = np.zeros(part.shape, dtype=np.int16)
        for other in parts:
            count += part == other
        count = 2 * count + (part != 0)
        wins = count > most
        best[wins], most[wins] = part[wins], count[wins]
    return best


def _keep(lost: npt.NDArray[Any], labels: npt.NDArray[Any], small: npt.NDArray[Any], factors: Shape3) -> None:
    """Give each lost value the block that has most of it, or the nearest whose value has others."""
    left = np.bincount(small.ravel(), minlength=int(lost.max()) + 1)
    for value, block in _blocks_of(lost, labels, factors):
        place = next(place for place in _around(block, small.shape) if small[place] == 0 or left[small[place]] > 1)
        left[small[place]] -= 1
        left[value] += 1
        small[place] = value


def _blocks_of(
    lost: npt.NDArray[Any], labels: npt.NDArray[Any], factors: Shape3
) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Yield each lost value with the block that has most of its voxels."""
    counts: dict[int, dict[tuple[int, int, int], int]] = {int(value): {} for value in lost}
    is_lost = np.zeros(int(labels.max()) + 1, dtype=bool)
    is_lost[lost] = True
    for z, plane in enumerate(labels):
        for y, x in np.argwhere(is_lost[plane]).tolist():
            of_value = counts[int(plane[y, x])]
            block = (z // factors[0], y // factors[1], x // factors[2])
            of_value[block] = of_value.get(block, 0) + 1
    for value, of_value in counts.items():
        yield value, max(of_value, key=lambda block: of_value[block])


def _around(block: tuple[int, int, int], shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Yield a block and those around it, nearer ones first, to the end of the grid."""
    for reach in range(max(shape)):
        low = [max(0, at - reach) for at in block]
        high = [min(size, at + reach + 1) for at, size in zip(block, shape, strict=True)]
        near = [
            (z, y, x) for z in range(low[0], high[0]) for y in range(low[1], high[1]) for x in range(low[2], high[2])
        ]
        yield from sorted(near, key=lambda place: math.dist(place, block))
    raise ValueError("expected more blocks than labels")
