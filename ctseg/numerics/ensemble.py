"""nnU-Net's ensemble of configurations: labels from the mean of several networks' probabilities.

Probabilities are averaged on the grid of the scan, plane by plane: what a member still has to give is its own slab of
logits, and of the mean only the rows exist that are being decided. Members whose logits are cubic, or whose axes are
transposed in another way, have no common planes: their mean is taken over the whole volume.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap, Probabilities, Slab
from ctseg.compiled.loading import load_kernels
from ctseg.compiled.parallel import run_parallel
from ctseg.model_spec import ModelSpec
from ctseg.numerics.decide import look_up, values_of_indices
from ctseg.numerics.planes import PlaneFeed, PlaneSource, as_read, plan_restoring
from ctseg.numerics.prepare import PreparationRecord
from ctseg.numerics.restore import Receiver

KERNELS = "ctseg.numerics.ensemble_kernels"

_ROWS_AT_ONCE = 64
"""Rows of a plane whose probabilities exist at once, where nobody takes those of the whole plane."""

EnsembleMember = tuple[ModelSpec, PreparationRecord]


def have_common_planes(members: Sequence[EnsembleMember]) -> bool:
    """Whether an ensemble's mean can be taken plane by plane."""
    first = members[0][1].transpose_forward
    return all(record.transpose_forward == first and plan_restoring(spec, record).is_linear for spec, record in members)


class PlaneMean:
    """Labels from slabs of several members, each in order; :meth:`next_member` says whose is needed.

    Args:
        members: In the order in which probabilities are summed; with common planes.
        on_probabilities: See :class:`LabelRestorer`; here labels are decided by them.

    Source:
        nnU-Net's ``average_probabilities`` and ``convert_probabilities_to_segmentation``.
    """

    def __init__(self, members: Sequence[EnsembleMember], *, on_probabilities: Receiver | None = None) -> None:
        self._spec, self._record = members[0]
        self._on_probabilities = on_probabilities
        self._feeds = [PlaneFeed(spec.num_heads, plan_restoring(spec, record)) for spec, record in members]
        self._values = values_of_indices(self._spec)
        self._labels: LabelMap = np.zeros(self._record.shape, dtype=self._values.dtype)
        self._cropped = self._labels.transpose(self._record.transpose_forward)[self._record.crop_slices]
        rows, columns = self._record.cropped_shape[1:]
        self._rows_at_once = rows if on_probabilities is not None else min(rows, _ROWS_AT_ONCE)
        self._total = np.empty(self._spec.num_heads * self._rows_at_once * columns, dtype=np.float32)
        self._indices = np.empty((rows, columns), dtype=np.uint16)
        self._planes_out = 0

    def next_member(self) -> int | None:
        """Return the index of the member whose next slab is needed; None: all is decided.

        The slab that it gave before is read no more.
        """
        if self._planes_out == self._record.cropped_shape[0]:
            return None
        lagging = min(range(len(self._feeds)), key=lambda index: self._feeds[index].planes_ready)
        self._feeds[lagging].release()
        return lagging

    def add(self, member: int, slab: Slab) -> None:
        """Add a member's next planes.

        Args:
            member: What :meth:`next_member` returned.
            slab: (heads, planes, y, x), float32, any strides; not changed; read until the member is next again.

        Raises:
            ValueError: The slab does not fit the member.
        """
        self._feeds[member].add(slab)
        ready = min(feed.planes_ready for feed in self._feeds)
        for plane in range(self._planes_out, ready):
            self._decide(plane)
        self._planes_out = max(ready, self._planes_out)

    def finish(self) -> LabelMap:
        """Return the label map; see :meth:`LabelRestorer.finish`.

        Raises:
            ValueError: Planes are missing.
        """
        if self._planes_out != self._record.cropped_shape[0]:
            raise ValueError(f"expected {self._record.cropped_shape[0]} planes, found {self._planes_out}")
        return self._labels

    def _decide(self, plane: int) -> None:
        rows, columns = self._indices.shape
        sources = [feed.source(slice(plane, plane + 1)) for feed in self._feeds]
        for first in range(0, rows, self._rows_at_once):
            band = slice(first, min(rows, first + self._rows_at_once))
            shape = (self._spec.num_heads, band.stop - band.start, columns)
            total = self._total[: prod(shape)].reshape(shape)
            self._add_up(total, sources, band)
            _decide_plane(total, self._indices[band], len(sources), regions=self._spec.has_regions)
            if self._on_probabilities is not None:  # the band is the whole plane
                self._on_probabilities(*as_read(total[:, None], self._record, plane))
        self._cropped[plane] = self._values[self._indices]

    def _add_up(self, total: Probabilities, sources: Sequence[PlaneSource], band: slice) -> None:
        """Write the sum of all members' probabilities of some rows of a plane, (heads, rows, columns)."""
        kernels = load_kernels(KERNELS)
        units = -(-total.shape[1] // kernels.ROWS_PER_UNIT)
        for index, source in enumerate(sources):
            arguments = source.kernel_arguments(slice(0, 1), total, band)
            run_parallel(partial(kernels.add_probabilities, *arguments, self._spec.has_regions, index == 0), units)


def mean_of_whole(total: Probabilities, count: int, spec: ModelSpec) -> LabelMap:
    """Divide summed probabilities in place, and decide labels.

    Args:
        total: (heads, z, y, x) on the grid of the scan, float32. Written.
        count: How many members there are.
        spec: Of any of them: labels or regions.

    Returns:
        (z, y, x).
    """
    indices = np.empty(total.shape[1:], dtype=np.uint16)
    for plane in range(total.shape[1]):
        _decide_plane(total[:, plane], indices[plane], count, regions=spec.has_regions)
    return look_up(values_of_indices(spec), indices)


def _decide_plane(
    total: npt.NDArray[np.float32], indices: npt.NDArray[np.uint16], count: int, *, regions: bool
) -> None:
    """Divide the summed probabilities of a plane, (heads, rows, columns), and decide it."""
    kernels = load_kernels(KERNELS)
    run_parallel(partial(kernels.decide_mean, total, indices, np.float32(count), regions), len(indices))
