"""From blended logits to a label map on the grid as read.

Where logits are resampled with at most two source voxels along an axis (nearest or linear, separate slices
or not, torch's or scikit-image's), resampling and the decision of the label are one compiled pass over each
slab, and logits never exist at the resolution of the scan. Cubic logits take the whole volume.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap, Probabilities, Slab
from ctseg.compiled.loading import load_kernels
from ctseg.compiled.parallel import run_parallel
from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.numerics.decide import REGION_THRESHOLD, Decision, values_of_indices
from ctseg.numerics.prepare import PreparationRecord
from ctseg.numerics.resample import AxisTable, ResamplingPlan, plan_resampling, resample

KERNELS = "ctseg.numerics.restore_kernels"

_log = logging.getLogger(__name__)

Where = tuple[slice, slice, slice]
"""A box of the grid as read, along (z, y, x)."""

Receiver = Callable[[Where, Probabilities], object]
"""Takes a finished part of the probabilities."""

_PLANES_AT_ONCE = 8
"""Target planes of one call of the labelling kernel."""


def probabilities_outside_crop(spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Return the probability of each head outside the crop: (heads,), background for labels, zeros for regions.

    Source:
        nnU-Net's ``revert_cropping_on_probabilities``.
    """
    outside = np.zeros(spec.num_heads, dtype=np.float32)
    if not spec.has_regions:
        outside[0] = 1
    return outside


class LabelRestorer:
    """Turns slabs of logits, which come in order, into a label map.

    Args:
        spec: The network's contract.
        record: What was done to the case.
        on_probabilities: Called with each finished part of the probabilities: the box of the grid as read, and
            (heads, z, y, x) of that box, float32, in memory that is used again after the call. The boxes do
            not overlap and together fill the crop; what lies outside of it is
            :func:`probabilities_outside_crop`. Labels are decided by logits all the same.

    Raises:
        SpecError: The logits' resampling cannot lead back to the grid of the scan.

    Source:
        nnU-Net's ``convert_predicted_logits_to_segmentation_with_correct_shape`` on float32 logits.
        Interpolation is float32 here and float64 there, so voxels whose two best heads differ by less
        than float32 rounding may get the other of the two.
    """

    def __init__(
        self,
        spec: ModelSpec,
        record: PreparationRecord,
        *,
        on_probabilities: Receiver | None = None,
    ) -> None:
        self._spec = spec
        self._record = record
        self._on_probabilities = on_probabilities
        self._plan = plan_resampling(
            spec.resampling_logits,
            record.network_shape,
            record.cropped_shape,
            record.network_spacing_mm,
            record.spacing_mm,
        )
        if self._plan.target_shape != record.cropped_shape:
            raise SpecError(
                f"{spec.name}: expected logits that can be brought back to {record.cropped_shape} voxels, found "
                f"{record.network_shape} and {spec.resampling_logits.function}: images and logits of the plans "
                "must be resampled alike"
            )
        self._values = values_of_indices(spec)
        self._labels: LabelMap = np.zeros(record.shape, dtype=self._values.dtype)
        # where the crop lies in the label map, axes transposed as the logits are
        self._cropped = self._labels.transpose(record.transpose_forward)[record.crop_slices]
        self._planes_in = 0
        self._planes_out = 0
        self._before: Slab = np.zeros((0, 0, 0), dtype=np.float32)
        self._axes = [_Linear(self._plan, axis) for axis in range(3)] if self._plan.is_linear else []
        self._whole: Slab | None = None
        if not self._plan.is_linear:
            _log.info(
                "%s: cubic logits cannot be restored slab by slab: all %d heads of the case are kept until its end",
                spec.name,
                spec.num_heads,
            )
            self._whole = np.empty((spec.num_heads, *record.network_shape), dtype=np.float32)

    def add(self, slab: Slab) -> None:
        """Add the next planes of the prepared volume.

        Args:
            slab: (heads, planes, y, x), float32, any strides; not changed, not kept.

        Raises:
            ValueError: The slab does not fit the record, or there are more planes than the volume has.
        """
        heads, (depth, rows, columns) = self._spec.num_heads, self._record.network_shape
        end = self._planes_in + slab.shape[1]
        if (slab.shape[0], *slab.shape[2:]) != (heads, rows, columns) or slab.dtype != np.float32 or end > depth:
            raise ValueError(
                f"expected float32 slabs of {heads} heads and {depth} planes of {(rows, columns)} in all, "
                f"found {slab.dtype} {slab.shape} after {self._planes_in} planes"
            )
        if self._whole is not None:
            self._whole[:, self._planes_in : end] = slab
            self._planes_in = end
            return
        if slab.shape[1] == 0:
            return
        self._restore(slab.swapaxes(0, 1))
        self._planes_in = end

    def finish(self) -> LabelMap:
        """Return the label map once every plane has been added.

        Returns:
            (z, y, x) on the grid as read, background outside the crop; uint8, or uint16 where a value needs it.

        Raises:
            ValueError: Planes are missing.
        """
        if self._planes_in != self._record.network_shape[0]:
            raise ValueError(f"expected {self._record.network_shape[0]} planes, found {self._planes_in}")
        if self._whole is not None:
            self._restore_whole(self._whole)
            self._whole = None
        return self._labels

    def _restore(self, slab: Slab) -> None:
        """Restore the target planes whose source planes are all there; ``slab`` has axes (planes, heads, y, x)."""
        begin, end = self._planes_in, self._planes_in + len(slab)
        z, y, x = self._axes
        last = int(np.searchsorted(z.above, end))  # above never falls
        planes = slice(self._planes_out, last)
        source = _Source(
            slab=slab,
            before=self._before,
            z_below=np.where(z.below[planes] < begin, -1, z.below[planes] - begin),
            z_above=np.maximum(z.above[planes] - begin, 0),
            z_weight=z.weight[planes],
            y=y,
            x_below=x.below.astype(np.uint64),
            x_above=x.above.astype(np.uint64),
            x=x,
        )
        self._label(source, planes)
        if self._on_probabilities is not None:
            self._give_probabilities(source, planes, self._on_probabilities)
        self._planes_out = last
        if last < len(z.below) and z.below[last] < end:
            self._before = np.array(slab[-1])

    def _label(self, source: "_Source", planes: slice) -> None:
        kernels = load_kernels(KERNELS)
        rows, columns = self._plan.target_shape[1:]
        bands = -(-rows // kernels.ROWS_PER_UNIT)
        regions = self._spec.has_regions
        # a few planes at a time, so that what the kernel writes is small and still in the cache when it is copied
        indices = np.empty((min(_PLANES_AT_ONCE, len(source.z_below)), rows, columns), dtype=np.uint16)
        for first in range(0, len(source.z_below), _PLANES_AT_ONCE):
            part = slice(first, first + _PLANES_AT_ONCE)
            found = indices[: len(source.z_below[part])]
            target = self._cropped[planes][part]
            arguments = source.kernel_arguments(part, found)
            run_parallel(partial(kernels.label_planes, *arguments, regions, REGION_THRESHOLD), len(found) * bands)
            target[...] = self._values[found] if regions else found

    def _give_probabilities(self, source: "_Source", planes: slice, give: Receiver) -> None:
        kernels = load_kernels(KERNELS)
        heads, (rows, columns) = self._spec.num_heads, self._plan.target_shape[1:]
        logits = np.empty((heads, 1, rows, columns), dtype=np.float32)
        for offset in range(planes.stop - planes.start):
            arguments = source.kernel_arguments(slice(offset, offset + 1), logits)
            run_parallel(partial(kernels.resample_planes, *arguments), heads)
            give(*self._probabilities(logits, planes.start + offset))

    def _probabilities(self, logits: Slab, plane: int) -> tuple[Where, Probabilities]:
        """Turn logits (heads, planes, y, x) on the crop's grid into probabilities, in place, and say where they lie."""
        if self._spec.has_regions:
            np.negative(logits, out=logits)
            with np.errstate(over="ignore"):  # far below 0 the exponential is infinite and the probability 0
                np.exp(logits, out=logits)
            logits += 1
            np.reciprocal(logits, out=logits)
        else:
            logits -= logits.max(axis=0)
            np.exp(logits, out=logits)
            logits /= logits.sum(axis=0)
        forward, backward = self._record.transpose_forward, self._spec.transpose_backward
        box = list(self._record.crop_slices)
        begin = box[0].start + plane
        box[0] = slice(begin, begin + logits.shape[1])
        where = (box[forward.index(0)], box[forward.index(1)], box[forward.index(2)])
        return where, logits.transpose(0, *(axis + 1 for axis in backward))

    def _restore_whole(self, whole: Slab) -> None:
        """Resample and decide head by head."""
        decision = Decision(self._spec, self._plan.target_shape)
        kept = None
        if self._on_probabilities is not None:
            kept = np.empty((len(whole), *self._plan.target_shape), dtype=np.float32)
        for head, volume in enumerate(whole):
            decision.add(resample(volume, self._plan, out=None if kept is None else kept[head]))
        self._cropped[...] = decision.labels
        if kept is not None and self._on_probabilities is not None:
            for plane in range(kept.shape[1]):
                self._on_probabilities(*self._probabilities(kept[:, plane : plane + 1], plane))


class _Linear:
    """One axis of a plan of at most two taps, as the restoring kernels take it."""

    def __init__(self, plan: ResamplingPlan, axis: int) -> None:
        table: AxisTable | None = plan.tables[axis]
        self.is_same = table is None
        if table is None:
            self.below = np.arange(plan.target_shape[axis], dtype=np.int64)
            self.above = self.below
            self.weight = np.zeros(len(self.below), dtype=np.float32)
            return
        self.below = np.ascontiguousarray(table.indices[:, 0])
        if table.indices.shape[1] == 1:
            self.above = self.below
            self.weight = np.zeros(len(self.below), dtype=np.float32)
        else:
            self.weight = table.weights[:, 1].astype(np.float32)
            self.above = np.where(self.weight > 0, table.indices[:, 1], self.below)


class _Source(NamedTuple):
    """Where the target planes of one slab come from, as the restoring kernels take it.

    Attributes:
        slab: (planes, heads, y, x).
        before: (heads, y, x): the plane before the slab, read where ``z_below`` is -1.
        z_below: For each target plane, the slab's plane below it.
        z_above: Likewise, the one above.
        z_weight: Likewise, the share of the one above.
        y: The rows.
        x_below: As ``x`` has it, unsigned.
        x_above: As ``x`` has it, unsigned.
        x: The columns.
    """

    slab: Slab
    before: Slab
    z_below: npt.NDArray[np.int64]
    z_above: npt.NDArray[np.int64]
    z_weight: npt.NDArray[np.float32]
    y: _Linear
    x_below: npt.NDArray[np.uint64]
    x_above: npt.NDArray[np.uint64]
    x: _Linear

    def kernel_arguments(self, planes: slice, target: npt.NDArray[Any]) -> tuple[Any, ...]:
        """Return what ``label_planes`` and ``resample_planes`` take first, for some of the target planes."""
        z = (self.z_below[planes], self.z_above[planes], self.z_weight[planes])
        rows = (self.y.below, self.y.above, self.y.weight)
        columns = (self.x_below, self.x_above, self.x.weight, self.x.is_same)
        return (self.slab, self.before, target, *z, *rows, *columns)
