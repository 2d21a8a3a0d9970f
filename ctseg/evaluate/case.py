"""One label map against its reference: both are read and counted once, whatever the number of labels."""

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from ctseg.compiled.parallel import run_parallel
from ctseg.errors import InputError
from ctseg.evaluate.compared_labels import ComparedLabels, labels_of_values
from ctseg.evaluate.evaluation import LabelScores
from ctseg.evaluate.surfaces import SurfaceScores, surface_scores
from ctseg.files.formats import ChannelFiles, read_channel
from ctseg.files.geometry import Geometry
from ctseg.files.identity import printable
from ctseg.files.volume import MAX_LABEL, SAME_GRID_TOLERANCE_MM
from ctseg.numerics.dice import dice_of_counts

MAX_FOUND = 1000
"""Most values that are taken as labels where nothing names any."""


@dataclass(frozen=True)
class ComparedCase:
    """What a case scores.

    Attributes:
        scores: By the label's name.
        voxels: That count: those with the ignore label in the reference do not.
        unnamed: Values in either file that no label has.
    """

    scores: Mapping[str, LabelScores]
    voxels: int
    unnamed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Maps:
    """Both label maps in small numbers: 0 is the background, then come the values, the ignore label, and what is none.

    Attributes:
        values: Those that count, in ascending order; the first one is 1 in the maps.
        prediction: (z, y, x).
        reference: Likewise.
        counts: (in the label map, in the reference): voxels of each pair.
        unnamed: Values that are none of these.
    """

    values: tuple[int, ...]
    prediction: npt.NDArray[Any]
    reference: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    unnamed: tuple[int, ...]

    @property
    def ignored(self) -> int:
        """What the ignore label is in the maps; in no voxel where there is none."""
        return len(self.values) + 1


def compare_case(
    case: str,
    prediction: Path,
    reference: Path,
    labels: ComparedLabels | None,
    tolerances_mm: Sequence[float],
    *,
    surfaces: Executor,
) -> ComparedCase:
    """Compare a label map with its reference.

    Args:
        case: Its name, for errors, on one line.
        prediction: The label map.
        reference: The reference.
        labels: What is compared; None takes every value that either file has.
        tolerances_mm: Of the normalised surface Dice.
        surfaces: Compares the surfaces of one label each.

    Raises:
        InputError: A file cannot be read or is no label map, or the two do not lie on one grid.
        SetupError: A file needs a package that is not installed.
    """
    reader = (labels or ComparedLabels({"": (1,)})).reader
    reference_volume = read_channel(ChannelFiles((reference,)), reader)
    geometry, spacing_mm = reference_volume.geometry, reference_volume.spacing_mm
    arrays = [_whole_numbers(case, reference, reference_volume.voxels)]
    del reference_volume
    volume = read_channel(ChannelFiles((prediction,)), reader)
    _require_one_grid(case, volume.geometry, geometry)
    arrays.append(_whole_numbers(case, prediction, volume.voxels))
    del volume
    if labels is None:
        labels = _labels_found(case, arrays)
    maps = _maps(arrays.pop(), arrays.pop(), labels)
    boxes = _boxes(maps)
    scores = [
        surfaces.submit(
            _surface_scores, maps, values, boxes, spacing_mm, tolerances_mm, labels.ignore_label is not None
        )
        for values in labels.values.values()
    ]
    voxel_ml = math.prod(spacing_mm) / 1000
    voxels = int(maps.counts[:, : maps.ignored].sum() + maps.counts[:, maps.ignored + 1 :].sum())
    return ComparedCase(
        {
            name: label_scores(*_tp_fp_fn(maps, values), voxels, voxel_ml, score.result())
            for (name, values), score in zip(labels.values.items(), scores, strict=True)
        },
        voxels,
        maps.unnamed,
    )


def label_scores(tp: int, fp: int, fn: int, voxels: int, voxel_ml: float, surface: SurfaceScores) -> LabelScores:
    """Return what a label scores, from its counts.

    Args:
        tp: Voxels that both have.
        fp: Voxels that the label map alone has.
        fn: Voxels that the reference alone has.
        voxels: All that count.
        voxel_ml: Volume of one.
        surface: What its surfaces score.

    Source:
        nnU-Net's ``compute_metrics``.
    """
    either = tp + fp + fn
    return LabelScores(
        dice=dice_of_counts(tp, tp + fp, tp + fn),
        iou=tp / either if either else math.nan,
        tp=tp,
        fp=fp,
        fn=fn,
        tn=voxels - either,
        n_pred=fp + tp,
        n_ref=fn + tp,
        hd95_mm=surface.hd95_mm,
        assd_mm=surface.assd_mm,
        nsd=surface.nsd,
        volume_ml=(tp + fp) * voxel_ml,
        reference_volume_ml=(tp + fn) * voxel_ml,
    )


def _require_one_grid(case: str, one: Geometry, other: Geometry) -> None:
    what = f"case {case}: expected the label map on the grid of its reference, found"
    todo = "nnU-Net would compare voxels that do not lie on each other: resample one of them onto the other"
    if one.shape != other.shape:
        raise InputError(f"{what} {one.shape} voxels (z, y, x) instead of {other.shape}: {todo}")
    if (away_mm := one.distance_mm(other)) > SAME_GRID_TOLERANCE_MM:
        shift_mm = ", ".join(f"{mm:.4g}" for mm in one.affine_ras[:3, 3] - other.affine_ras[:3, 3])
        raise InputError(
            f"{what} voxels up to {away_mm:.4g} mm away from its own (first voxel: ({shift_mm}) mm to the right, front "
            f"and top; {SAME_GRID_TOLERANCE_MM} mm are taken as rounding): {todo}"
        )


def _whole_numbers(case: str, path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a label map in the smallest unsigned type; anything but whole numbers is refused."""
    lowest, highest = values.min(), values.max()
    is_whole = values.dtype.kind in "iu" or all(np.array_equal(plane, np.rint(plane)) for plane in values)
    if not (lowest >= 0 and highest <= MAX_LABEL) or not is_whole:  # NaN is neither
        raise InputError(
            f"case {case}: {printable(path.name)}: expected whole numbers from 0 to {MAX_LABEL}, found values from "
            f"{lowest} to {highest}{'' if is_whole else ', not all of them whole'}: is this a label map?"
        )
    return values.astype(np.uint8 if highest <= 255 else np.uint16, copy=False)


def _labels_found(case: str, arrays: Sequence[npt.NDArray[Any]]) -> ComparedLabels:
    there = np.zeros(MAX_LABEL + 1, np.bool_)
    for array in arrays:
        there |= np.bincount(_flat(array), minlength=MAX_LABEL + 1).astype(np.bool_)
    found = [int(value) for value in np.flatnonzero(there) if value]
    if len(found) > MAX_FOUND:
        raise InputError(
            f"case {case}: {len(found)} values are found where nothing names labels: are these label maps? Name the "
            "labels that count",
            settings=("spec", "label_values"),
        )
    return labels_of_values(found or [1])


def _flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.ravel(order="K")


def _maps(prediction: npt.NDArray[Any], reference: npt.NDArray[Any], labels: ComparedLabels) -> _Maps:
    """Turn both maps into small numbers, and count how often each pair occurs, in one pass."""
    values = tuple(sorted({value for group in labels.values.values() for value in group} - {0}))
    size = len(values) + 3
    small = np.full(MAX_LABEL + 1, size - 1, np.uint8 if size <= 256 else np.uint16)
    small[0] = 0
    small[list(values)] = np.arange(1, len(values) + 1)
    small_of_prediction = small.copy()
    if labels.ignore_label is not None:
        small[labels.ignore_label] = len(values) + 1
    maps = [np.empty(array.shape, small.dtype) for array in (prediction, reference)]
    counts = np.zeros(size * size, np.int64)
    lock = threading.Lock()

    def count(first: int, last: int) -> None:
        found = np.zeros(size * size, np.int64)
        for z in range(first, last):
            maps[0][z], maps[1][z] = small_of_prediction[prediction[z]], small[reference[z]]
            pairs = maps[0][z].astype(np.int64)
            pairs *= size
            pairs += maps[1][z]
            found += np.bincount(pairs.ravel(), minlength=size * size)
        with lock:
            np.add(counts, found, out=counts)

    run_parallel(count, len(prediction))
    table = counts.reshape(size, size)
    others: set[int] = set()
    if table[-1].any() or table[:, -1].any():
        for array, map_ in zip((prediction, reference), maps, strict=True):
            others |= {int(value) for value in np.unique(array[map_ == size - 1])}
    return _Maps(values, maps[0], maps[1], table, tuple(sorted(others - {labels.ignore_label})))


def _tp_fp_fn(maps: _Maps, values: Sequence[int]) -> tuple[int, int, int]:
    has = _small_values(maps, values)
    counts = maps.counts[:, np.arange(len(maps.counts)) != maps.ignored]
    in_reference = np.delete(has, maps.ignored)
    tp = counts[has][:, in_reference].sum()
    return int(tp), int(counts[has].sum() - tp), int(counts[:, in_reference].sum() - tp)


def _small_values(maps: _Maps, values: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which of the small numbers belong to a label."""
    has = np.zeros(len(maps.counts), np.bool_)
    has[[maps.values.index(value) + 1 if value else 0 for value in values]] = True
    return has


_Box = tuple[slice, slice, slice]


def _boxes(maps: _Maps) -> Mapping[int, Sequence[_Box]]:
    """Return for each small number the boxes of its voxels in either map."""
    boxes: dict[int, list[_Box]] = {}
    for map_ in (maps.prediction, maps.reference):
        for number, box in enumerate(find_objects(map_, max_label=len(maps.values)), start=1):
            if box is not None:
                boxes.setdefault(number, []).append(box)
    return boxes


def _surface_scores(
    maps: _Maps,
    values: Sequence[int],
    boxes: Mapping[int, Sequence[_Box]],
    spacing_mm: tuple[float, float, float],
    tolerances_mm: Sequence[float],
    has_ignored: bool,
) -> SurfaceScores:
    """Compare the surfaces of one label, in the box of its voxels in both maps."""
    has = _small_values(maps, values)
    found = [box for number in np.flatnonzero(has) for box in boxes.get(int(number), ())]
    if has[0]:  # the background has surfaces, too, where somebody asks for it
        found = [
            (slice(0, maps.reference.shape[0]), slice(0, maps.reference.shape[1]), slice(0, maps.reference.shape[2]))
        ]
    if not found:
        found = [(slice(0, 1), slice(0, 1), slice(0, 1))]
    margin = 1 if has_ignored else 0  # an ignored voxel just outside counts too
    box = tuple(
        slice(max(0, min(one[axis].start for one in found) - margin), max(one[axis].stop for one in found) + margin)
        for axis in range(3)
    )
    prediction, reference = maps.prediction[box], maps.reference[box]
    ignored = reference == maps.ignored if has_ignored else None
    return surface_scores(has[prediction], has[reference], spacing_mm, tolerances_mm, ignored)
