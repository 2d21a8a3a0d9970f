"""What is odd about a scan or its label map, by its numbers: hints for a person, no label depends on them.

Where the limits come from: ``docs/measurements/2026-11-28-warnings.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Spacing

SAMPLED_VOXELS = 1_000_000
"""Of each channel at most about so many are looked at, evenly spread."""

_NARROWEST_HU = 100.0
"""The noise of a CT alone spans more."""
_TISSUE_HU = (-200.0, 200.0)
"""Fat, soft tissue, blood and contrast; not lungs, not compact bone."""
_COMPACT_BONE_HU = 700.0
_MOST_COMPACT_BONE = 0.4
"""Voxels of compact bone and metal for each of tissue; in CT of people at most 0.1, shifted by 1024 at least 0.6."""
_LOWEST_AIR_HU = -1200.0
_LEAST_ABOVE_AIR, _MOST_BELOW_AIR = 0.05, 0.01
"""Shares of the voxels above ``_TISSUE_HU[0]``, and of those below ``_LOWEST_AIR_HU`` that are no padding."""
_CUT_OFF_SHARE = 0.005
"""A window cuts off more voxels than the largest number of a scanner does."""
_SHIFTED = "is the intercept of the scanner, often -1024, missing or added twice?"
_FAR = 2.0
"""A volume is far outside when it is this many times smaller than the least, or larger than the largest."""

_RING_PIXELS = (-2.5, -0.5), (1.0, 3.0)
"""From where to where the two rings lie on both sides of the circle that a slice holds."""
_SMALLEST_CIRCLE = 64

_Ends = tuple[float, float]


@dataclass(frozen=True)
class CutLabel:
    """Where a label, or a region, reaches the edge of what was scanned.

    Attributes:
        ends_mm2: Area on the first and the last plane along (z, y, x).
        circle_mm2: Area along the circle beyond which a scanner has padded the slices.
    """

    ends_mm2: tuple[_Ends, _Ends, _Ends]
    circle_mm2: float = 0.0

    @property
    def area_mm2(self) -> float:
        """All of it."""
        return sum(map(sum, self.ends_mm2)) + self.circle_mm2


class UnusualVolume(NamedTuple):
    """A volume far outside those of a training set.

    Attributes:
        volume_ml: What was found.
        least_ml: Of the training set.
        largest_ml: Likewise.
    """

    volume_ml: float
    least_ml: float
    largest_ml: float


@dataclass(frozen=True)
class TrainingIntensities:
    """Foreground intensities of the training set.

    Attributes:
        mean: Of all.
        low: Half a per cent lies below.
        high: Half a per cent lies above.
    """

    mean: float
    low: float
    high: float

    @property
    def are_hu(self) -> bool:
        """Whether they can be; else the training set had no HU either."""
        return self.high - self.low >= _NARROWEST_HU / 5 and self.mean < _COMPACT_BONE_HU


def why_no_hu(voxels: npt.NDArray[Any], training: TrainingIntensities | None = None) -> str:
    """Return why the voxels of a channel can hardly be HU, in words; empty: they can.

    A scan that is cropped to the inside of a body, or has no air or no bone, is none of these.

    Args:
        voxels: (z, y, x), finite.
        training: Of the training set, for the same channel; None: nothing is known of one, and no window is looked for
            that was applied.
    """
    if training is not None and not training.are_hu:
        return ""
    step = max(1, int(np.ceil((voxels.size / SAMPLED_VOXELS) ** (1 / 3))))
    sample = voxels[::step, ::step, ::step]
    lowest, highest = float(sample.min()), float(sample.max())
    if highest - lowest < _NARROWEST_HU or lowest >= 0:  # of few voxels, so far
        lowest, highest = float(voxels.min()), float(voxels.max())
    told = f"values from {lowest:g} to {highest:g}"
    if highest - lowest < _NARROWEST_HU:
        return f"{told}, too narrow for HU: was the scan normalised?"
    if lowest >= 0 and highest <= 255:
        return f"{told}: a picture of 8 bits, no HU"
    if lowest >= 0:
        return f"{told}, none below 0, where HU have fat and air: {_SHIFTED}"
    shifted = _why_shifted(sample, told)
    return shifted if shifted or training is None else _why_cut_off(sample, training)


def _why_shifted(sample: npt.NDArray[Any], told: str) -> str:
    low, high = _TISSUE_HU
    above = np.count_nonzero(sample > low)
    bone = np.count_nonzero(sample > _COMPACT_BONE_HU)
    tissue = above - np.count_nonzero(sample >= high)
    if bone > _MOST_COMPACT_BONE * tissue:
        return f"{told}, more above {_COMPACT_BONE_HU:g} than bone and metal have: {_SHIFTED}"
    below = np.count_nonzero(sample < _LOWEST_AIR_HU)
    if above < _LEAST_ABOVE_AIR * sample.size and below > _MOST_BELOW_AIR * sample.size:
        below -= np.count_nonzero(sample == sample.min())  # may be padding
        if below > _MOST_BELOW_AIR * sample.size:
            return f"{told}, most below {low:g}, less than air in a body has: {_SHIFTED}"
    return ""


def _why_cut_off(sample: npt.NDArray[Any], training: TrainingIntensities) -> str:
    for end, inside, where in (
        (sample.max(), sample.max() < training.high, "above"),
        (sample.min(), sample.min() > training.low, "below"),
    ):
        if inside and np.count_nonzero(sample == end) > _CUT_OFF_SHARE * sample.size:
            return (
                f"cut off {where} {end:g}, while the training set goes from {training.low:g} to {training.high:g}: "
                "was a window applied?"
            )
    return ""


def cut_labels(
    labels: npt.NDArray[Any],
    named_values: Mapping[str, tuple[int, ...]],
    spacing_mm: Spacing,
    *,
    voxels: npt.NDArray[Any] | None = None,
) -> Mapping[str, CutLabel]:
    """Return the labels that reach the edge of what was scanned, the largest areas first.

    The edge is the first and last plane of each axis that has more than one, and the circle that a slice holds, where
    a scanner has filled everything beyond it with one number.

    Args:
        labels: (z, y, x).
        named_values: For each label or region, the values in the label map that belong to it.
        spacing_mm: Between voxel centres along (z, y, x).
        voxels: (z, y, x), a channel of the scan; None: no circle is looked for.
    """
    highest = max(value for values in named_values.values() for value in values)
    z_mm, y_mm, x_mm = spacing_mm
    face_mm2 = (y_mm * x_mm, z_mm * x_mm, z_mm * y_mm)
    ends = np.zeros((3, 2, highest + 1))
    for axis in range(3):
        for end in (0, -1):
            if labels.shape[axis] > 1:
                ends[axis, end] = _counts(np.moveaxis(labels, axis, 0)[end], highest) * face_mm2[axis]
    ring = np.zeros(highest + 1)
    if voxels is not None and (circle := _inside_of_circle(voxels)) is not None:
        (first, last), (y, x) = _RING_PIXELS[0], circle
        ring = _counts(labels[:, y, x], highest) * (z_mm * (y_mm + x_mm) / 2 / (last - first))
    found = {}
    for name, values in named_values.items():
        on_planes = ends[:, :, list(values)].sum(axis=2)
        by_axis = [(float(first), float(last)) for first, last in on_planes]
        cut = CutLabel((by_axis[0], by_axis[1], by_axis[2]), float(ring[list(values)].sum()))
        if cut.area_mm2:
            found[name] = cut
    return dict(sorted(found.items(), key=lambda item: -item[1].area_mm2))


def _counts(labels: npt.NDArray[Any], highest: int) -> npt.NDArray[Any]:
    return np.bincount(labels.ravel(), minlength=highest + 1)[: highest + 1]


def _inside_of_circle(voxels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Return rows and columns just inside the circle that a slice holds, if all just outside of it is one number."""
    planes, rows, columns = voxels.shape
    if rows != columns or rows < _SMALLEST_CIRCLE:
        return None
    along = np.arange(rows) - (rows - 1) / 2
    from_circle = np.hypot(along[:, None], along) - rows / 2
    (y_inside, x_inside), (y, x) = (
        np.nonzero((from_circle >= first) & (from_circle < last)) for first, last in _RING_PIXELS
    )
    padding = voxels[planes // 2, y[0], x[0]]
    if (voxels[planes // 2, y, x] != padding).any() or (voxels[:, y, x] != padding).any():
        return None
    return None if (voxels[:, y_inside, x_inside] == padding).all() else (y_inside, x_inside)


def unusual_volumes(
    volumes_ml: Mapping[str, float], training_ml: Mapping[str, tuple[float, float, float]]
) -> Mapping[str, UnusualVolume]:
    """Return the volumes that are less than half the least of the training set, or more than twice the largest.

    Args:
        volumes_ml: What was found, by the label's name.
        training_ml: Least, median and largest volume in the training set, of labels of which they are known.
    """
    return {
        name: UnusualVolume(volume, least, largest)
        for name, volume in volumes_ml.items()
        if name in training_ml
        for least, _, largest in (training_ml[name],)
        if volume * _FAR < least or volume > largest * _FAR
    }
