"""Label maps of files as a data set needs them: whole numbers, consecutive, on the grid of their image; no torch."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctseg.files.dataset_cases import DatasetProblem
from ctseg.files.geometry import Geometry
from ctseg.files.grid import ChannelVolume
from ctseg.train.dicom_labels import LabelValues, values_of_label
from ctseg.train.scans import geometry_problems, label_problems

logger = logging.getLogger(__name__)

_NEARLY_WHOLE = 1e-3
"""How far from a whole number a value stored as float may be: scaled integers are off by rounding."""
_SAME_PLACE_VOXELS = 0.1
"""How far from those of its image the voxels of a label map may lie, of the shortest side of a voxel."""


@dataclass(frozen=True)
class LabelMapRules:
    """How label maps of files become those of a data set.

    Attributes:
        values: Value to write by the value in the files; empty: as they are.
        resample: Whether label maps on another grid are resampled onto that of their image; otherwise they are refused.
    """

    values: Mapping[int, int] = field(default_factory=dict)
    resample: bool = False


@dataclass(frozen=True)
class Renumbered:
    """Labels with consecutive values.

    Attributes:
        labels: New values by name.
        regions_class_order: New values; None where there are no regions.
        values: New value by the former one; empty where nothing has changed.
    """

    labels: LabelValues
    regions_class_order: tuple[int, ...] | None
    values: Mapping[int, int]


def renumbered(labels: LabelValues, regions_class_order: Sequence[int] | None = None) -> Renumbered:
    """Give labels consecutive values in the order of those that they have; ``ignore`` comes last, as nnU-Net needs it.

    Args:
        labels: Values by name, background among them.
        regions_class_order: What each region writes.
    """
    ignored = set(values_of_label(labels["ignore"])) if "ignore" in labels else set()
    former = sorted({v for value in labels.values() for v in values_of_label(value)}, key=lambda v: (v in ignored, v))
    new = {value: i for i, value in enumerate(former)}
    order = None if regions_class_order is None else tuple(new.get(value, value) for value in regions_class_order)
    if all(value == other for value, other in new.items()):
        return Renumbered(labels, order, {})
    return Renumbered(
        {n: new[v] if isinstance(v, int) else [new[one] for one in v] for n, v in labels.items()}, order, new
    )


def placed_labels(
    label: ChannelVolume, image: ChannelVolume | None, declared: set[int], rules: LabelMapRules, *, case: str
) -> tuple[NDArray[Any] | None, list[DatasetProblem]]:
    """Return the labels of a case with the values of the data set, on the grid of the image.

    Args:
        label: As its file has it.
        image: That it belongs to; None: it cannot be read, and only the values are looked at.
        declared: The values of the data set.
        rules: What may be changed.
        case: Name of the case.

    Returns:
        (z, y, x), integers, and what is wrong; None, where anything is.
    """
    voxels, stored = _whole_numbers(label)
    problems = label_problems(voxels, set(rules.values) or declared, case=case, stored=stored)
    if image is not None:
        problems += _placement_problems(label, image, rules, case=case)
    if problems or image is None:
        return None, problems
    if not _in_one_place(label.geometry, image.geometry):
        voxels, problems = _resampled(voxels, label.geometry, image.geometry, case=case)
    if rules.values and not problems:
        former = np.array(sorted(rules.values))  # values may be huge, so that no table has a place for each
        voxels = np.array([rules.values[value] for value in former.tolist()], np.uint16)[former.searchsorted(voxels)]
    return (None, problems) if problems else (voxels, [])


def _whole_numbers(label: ChannelVolume) -> tuple[NDArray[Any], "np.dtype[Any]"]:
    """Return labels and their type in the file; float label maps of whole numbers become integers."""
    voxels = label.voxels
    if voxels.dtype.kind == "f" and np.isfinite(voxels).all():
        whole = np.rint(voxels)
        if np.abs(voxels - whole).max(initial=0) <= _NEARLY_WHOLE:
            return whole.astype(np.int64), np.dtype(np.int64)
    return voxels, label.stored_dtype


def _in_one_place(one: Geometry, other: Geometry) -> bool:
    return one.shape == other.shape and one.distance_mm(other) <= _SAME_PLACE_VOXELS * min(one.spacing_mm)


def _placement_problems(
    label: ChannelVolume, image: ChannelVolume, rules: LabelMapRules, *, case: str
) -> list[DatasetProblem]:
    differences = geometry_problems(image, label, case=case)
    if not differences:
        return []
    if _in_one_place(label.geometry, image.geometry):
        away_mm = label.geometry.distance_mm(image.geometry)
        logger.warning(
            "case %s: the header of the label map differs by %.3g mm, under a tenth of a voxel: taken as that of the "
            "image",
            case,
            away_mm,
        )
        return []
    if _says_nothing(label.geometry):
        text = (
            "the header of the label map says nothing of where it lies (voxels of 1 mm, the first at 0, 0, 0), and the "
            "image lies elsewhere: write label maps with the header of their image"
        )
        return [DatasetProblem(case, "no_geometry", f"case {case}: {text}")]
    if rules.resample:
        return []
    start = f"case {case}: "
    listed = "; ".join(problem.message.removeprefix(start) for problem in differences)
    return [DatasetProblem(case, "grid", f"{start}the label map lies on another grid than the image: {listed}")]


def _says_nothing(geometry: Geometry) -> bool:
    """Whether a header is that of an array without one, as nibabel (RAS) or SimpleITK (LPS) write it."""
    return any(np.allclose(geometry.affine_ras, np.diag([sign, sign, 1.0, 1.0])) for sign in (1.0, -1.0))


def _resampled(
    labels: NDArray[Any], source: Geometry, target: Geometry, *, case: str
) -> tuple[NDArray[Any], list[DatasetProblem]]:
    """Resample the labels of a case; nothing of them within the image is a problem, a part outside a warning."""
    made = labels_on_grid(labels, source, target)
    if not labels.any():
        return made, []
    outside = _outside(labels, source, target)
    if outside == np.count_nonzero(labels):
        text = "no labelled voxel lies within the image: are both of one scan, in one frame of reference?"
        return made, [DatasetProblem(case, "grid", f"case {case}: {text}")]
    if outside:
        logger.warning("case %s: %d labelled voxels lie outside the image and are left out", case, outside)
    if gone := sorted(set(np.unique(labels).tolist()) - set(np.unique(made).tolist()) - {0}):
        logger.warning("case %s: labels %s are too small for the grid of the image, and gone", case, gone)
    logger.info("case %s: labels resampled from %s to %s voxels (z, y, x)", case, _by(source.shape), _by(target.shape))
    return made, []


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _outside(labels: NDArray[Any], source: Geometry, target: Geometry) -> int:
    """Return how many labelled voxels have their centre outside another grid."""
    matrix, offset = _index_from(source, target)
    where = np.argwhere(labels) @ matrix.T + offset
    inside = np.logical_and(where >= -0.5, where <= np.array(target.shape) - 0.5).all(axis=1)
    return int((~inside).sum())


def _index_from(grid: Geometry, other: Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return matrix and offset that turn an index (z, y, x) of one grid into one of another."""
    change = np.linalg.inv(other.affine_ras) @ grid.affine_ras
    return change[:3, :3][::-1, ::-1].copy(), change[:3, 3][::-1].copy()


def labels_on_grid(labels: NDArray[Any], source: Geometry, target: Geometry) -> NDArray[np.uint16]:
    """Resample a label map onto another grid of the same patient, turned and shifted as it may be.

    The indicator of each label is interpolated linearly at the centre of each voxel, and the largest share wins, the
    lower label where two are equal. Outside the label map everything is background.

    Args:
        labels: (z, y, x) on the source grid, none negative.
        source: Where they lie.
        target: Where they are wanted.

    Returns:
        (z, y, x) on the target grid.

    Source:
        As nnU-Net resamples label maps (``resize_segmentation`` of order 1), for grids that do not share their faces.
    """
    made = np.zeros(target.shape, np.uint16)
    best = np.zeros(target.shape, np.float32)
    rest = np.ones(target.shape, np.float32)
    matrix, offset = _index_from(target, source)
    back, back_offset = _index_from(source, target)
    for value, box in enumerate(ndimage.find_objects(labels.astype(np.int32, copy=False)), start=1):
        if box is None:
            continue
        # one voxel more, from which the indicator falls to 0
        low = np.maximum([part.start - 1 for part in box], 0)
        high = np.minimum([part.stop + 1 for part in box], labels.shape)
        corners = np.array(list(product(*zip(low - 1, high, strict=True)))) @ back.T + back_offset
        first = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, target.shape)
        last = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, target.shape)
        if (last <= first).any():
            continue
        part = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        indicator = (labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == value).astype(np.float32)
        share = ndimage.affine_transform(
            indicator, matrix, matrix @ first + offset - low, tuple(last - first), order=1, mode="nearest"
        )
        wins = share > best[part]
        best[part][wins] = share[wins]
        made[part][wins] = value
        rest[part] -= share
    made[best <= rest + _ROUNDING] = 0
    made[~_within(target, source)] = 0
    return made


_ROUNDING = 1e-6
"""Of shares in float32: what is equal goes to the background."""


def _within(grid: Geometry, other: Geometry) -> NDArray[np.bool_]:
    """Return which voxels of a grid have their centre within another."""
    matrix, offset = _index_from(grid, other)
    inside = np.ones(grid.shape, bool)
    axes = [np.arange(size, dtype=np.float64) for size in grid.shape]
    for row, start, size in zip(matrix, offset, other.shape, strict=True):
        index = start + sum(
            (factor * axis).reshape([-1 if i == position else 1 for i in range(3)])
            for position, (factor, axis) in enumerate(zip(row, axes, strict=True))
        )
        inside &= np.logical_and(index >= -0.5, index <= size - 0.5)
    return inside
