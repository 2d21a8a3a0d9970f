"""How the intensities of a channel are spread: exact where they are small integers, in fine bins else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.train.overview_document import BINS, Histogram, Percentiles

CT_RANGE_HU = (-1024.0, 3072.0)
"""Of histograms of CT: what 12 bits hold."""
_FINE = 1 << 16


@dataclass(frozen=True)
class Spread:
    """How often each intensity occurs.

    Attributes:
        values: Ascending; the middles of bins where intensities are no integers of at most 2 bytes.
        counts: How many voxels have each; none is 0.
        ends: The least and the most, exactly.
        mean: Of all voxels.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    ends: tuple[float, float]
    mean: float

    def at(self, share: float) -> float:
        """Return the intensity below or at which a share of all voxels lies."""
        place = int(np.searchsorted(np.cumsum(self.counts), share * self.counts.sum()))
        low, high = self.ends
        return float(min(high, max(low, self.values[min(place, len(self.values) - 1)])))

    @property
    def percentiles(self) -> Percentiles:
        """The percentiles that nnU-Net's fingerprint has."""
        return Percentiles(
            minimum=self.ends[0],
            percentile_00_5=self.at(0.005),
            median=self.at(0.5),
            percentile_99_5=self.at(0.995),
            maximum=self.ends[1],
            mean=self.mean,
        )

    def histogram(self, low: float, high: float) -> Histogram:
        """Return the counts in bins; what lies outside goes into the outermost ones."""
        width = (high - low) / BINS or 1.0
        bins = np.clip(((self.values - low) / width).astype(np.int64), 0, BINS - 1)
        counts = np.bincount(bins, weights=self.counts, minlength=BINS).astype(np.int64)
        return Histogram(low=low, high=high, counts=tuple(counts.tolist()))


def spread_of(voxels: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> Spread | None:
    """Return how the finite intensities of a channel are spread; None where there are none.

    Memory is that of a slice.

    Args:
        voxels: (z, y, x).
        mask: Which voxels count; None: all.
    """

    def planes(look: Callable[[NDArray[Any]], None]) -> None:
        for z, plane in enumerate(voxels):
            chosen = plane.ravel() if mask is None else plane[mask[z]]
            if chosen.dtype.kind == "f":
                chosen = chosen[np.isfinite(chosen)]
            if chosen.size:
                look(chosen)

    lows: list[float] = []
    highs: list[float] = []
    sums: list[tuple[float, int]] = []

    def measure(chosen: NDArray[Any]) -> None:
        lows.append(float(chosen.min()))
        highs.append(float(chosen.max()))
        sums.append((float(chosen.sum(dtype=np.float64)), chosen.size))

    planes(measure)
    if not lows:
        return None
    low, high = min(lows), max(highs)
    is_exact = voxels.dtype.kind in "iub" and high - low < _FINE
    width = 1.0 if is_exact else (high - low) / _FINE or 1.0
    counts = np.zeros(_FINE, np.int64)

    def count(chosen: NDArray[Any]) -> None:
        if is_exact:
            places = chosen.astype(np.int64) - int(low)
        else:
            places = np.minimum(((chosen.astype(np.float64) - low) / width).astype(np.int64), _FINE - 1)
        found = np.bincount(places)
        counts[: len(found)] += found

    planes(count)
    there = np.flatnonzero(counts)
    total = sum(size for _, size in sums)
    return Spread(
        values=np.asarray(low + (there + (0.0 if is_exact else 0.5)) * width, dtype=np.float64),
        counts=counts[there],
        ends=(low, high),
        mean=sum(part for part, _ in sums) / total,
    )


def merged(histograms: "list[Histogram]", low: float, high: float) -> Histogram:
    """Return histograms of whatever ranges as one, each case with the weight of its voxels.

    Args:
        histograms: To be put together.
        low: Where the first bin begins.
        high: Where the last one ends.
    """
    edges = np.linspace(low, high, BINS + 1)
    total = np.zeros(BINS)
    for histogram in histograms:
        own = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
        # within a bin voxels are spread evenly
        below = np.interp(edges, own, np.concatenate([[0], np.cumsum(histogram.counts)]))
        below[0], below[-1] = 0, sum(histogram.counts)
        total += np.diff(below)
    return Histogram(low=low, high=high, counts=tuple(total.round().astype(np.int64).tolist()))
