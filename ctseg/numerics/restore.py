"""From blended logits to a label map on the grid as read.

Where logits are resampled with at most two source voxels along an axis (nearest or linear, separate slices
or not, torch's or scikit-image's), resampling and the decision of the label are one compiled pass over each
slab, and logits never exist at the resolution of the scan. Cubic logits take the whole volume.
"""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap, Probabilities, Slab
from ctseg.compiled.loading import load_kernels
from ctseg.compiled.parallel import run_parallel
from ctseg.model_spec import ModelSpec
from ctseg.numerics.decide import REGION_THRESHOLD, Decision, values_of_indices
from ctseg.numerics.planes import PlaneFeed, PlaneSource, Where, as_read, check_slab, plan_restoring
from ctseg.numerics.prepare import PreparationRecord
from ctseg.numerics.resample import resample

KERNELS = "ctseg.numerics.restore_kernels"

_log = logging.getLogger(__name__)

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
        self._plan = plan_restoring(spec, record)
        self._values = values_of_indices(spec)
        self._labels: LabelMap = np.zeros(record.shape, dtype=self._values.dtype)
        # where the crop lies in the label map, axes transposed as the logits are
        self._cropped = self._labels.transpose(record.transpose_forward)[record.crop_slices]
        self._planes_in = 0
        self._planes_out = 0
        self._feed = PlaneFeed(spec.num_heads, self._plan) if self._plan.is_linear else None
        self._whole: Slab | None = None
        if self._feed is None:
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
        if self._feed is not None:
            self._feed.add(slab)
            self._restore(self._feed)
        elif self._whole is not None:
            check_slab(slab, self._planes_in, self._spec.num_heads, self._record.network_shape)
            self._whole[:, self._planes_in : self._planes_in + slab.shape[1]] = slab
        self._planes_in += slab.shape[1]

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

    def _restore(self, feed: PlaneFeed) -> None:
        """Restore the target planes whose source planes are all there."""
        planes = slice(self._planes_out, feed.planes_ready)
        source = feed.source(planes)
        self._label(source, planes)
        if self._on_probabilities is not None:
            self._give_probabilities(source, planes, self._on_probabilities)
        self._planes_out = feed.planes_ready
        feed.release()

    def _label(self, source: PlaneSource, planes: slice) -> None:
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

    def _give_probabilities(self, source: PlaneSource, planes: slice, give: Receiver) -> None:
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
        return as_read(logits, self._record, plane)

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
