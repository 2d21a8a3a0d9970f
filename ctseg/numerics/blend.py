"""The logits of windows, blended slab by slab.

All axes are those of the prepared volume: (z, y, x) after ``transpose_forward``.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from ctseg.arrays import Slab
from ctseg.compiled.loading import load_kernels
from ctseg.compiled.parallel import run_parallel
from ctseg.errors import InferenceFailedError
from ctseg.numerics.windows import WindowPlan

KERNELS = "ctseg.numerics.blend_kernels"


@lru_cache(maxsize=8)
def gaussian(patch_size: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the weights of a window's voxels: (*patch_size), float32, read-only, at most 10, never 0.

    Source:
        nnU-Net's ``compute_gaussian`` with sigma of an eighth of the patch, scaled to 10, in float32. The
        filter of a single voxel is an outer product, so one axis after the other gives the same bits.
    """
    weights = np.ones((1,) * len(patch_size))
    for axis, size in enumerate(patch_size):
        line = np.zeros(size)
        line[size // 2] = 1
        line = gaussian_filter1d(line, size / 8, mode="constant", cval=0)
        weights = weights * line.reshape([-1 if a == axis else 1 for a in range(len(patch_size))])
    weights /= weights.max() / 10
    result = weights.astype(np.float32)
    result[result == 0] = result[result > 0].min()
    result.flags.writeable = False
    return result


class SlabBlender:
    """Blends the logits of windows, which come in order, into slabs, which leave in order.

    Logits are summed in float32, weighted with the Gaussian, in a ring as deep as the patch. A slab
    leaves as soon as no later window touches it, and its memory is used again: the peak is heads x
    patch depth x plane x 4 bytes.

    Args:
        plan: The windows.
        num_heads: Channels of the logits.
        model: Name of the model, for error messages.

    Source:
        nnU-Net's ``_internal_predict_sliding_window_return_logits``, whose sums these are, in its order,
        in float32: the result has the same bits as nnU-Net's with float32 accumulators.
    """

    def __init__(self, plan: WindowPlan, num_heads: int, *, model: str = "the model") -> None:
        self._plan = plan
        self._model = model
        depth, rows, columns = plan.patch_size_3d
        _, padded_rows, padded_columns = plan.padded_size
        self._gaussian = gaussian(plan.patch_size).reshape(depth, rows, columns)
        self._num_heads = num_heads
        self._ring = np.zeros((depth, num_heads, padded_rows, padded_columns), dtype=np.float32)
        self._starts = tuple(np.array(starts, dtype=np.int64) for starts in plan.starts)
        self._next_window = 0
        self._next_plane = 0
        self._busy = False

    def add(self, logits: npt.NDArray[np.float32]) -> Iterator[Slab]:
        """Add the logits of the next windows and yield the slabs that are finished by them.

        Run the iterator to its end: what it has not reached is not added.

        Args:
            logits: (windows, heads, *patch_size) of the windows that follow those added before, float32;
                any number of windows, perhaps read-only; not kept once the iterator has ended.

        Yields:
            (heads, planes, y, x) of the prepared volume, padding cut off, without gaps from plane 0 on. A view
            into the ring, valid until the iterator goes on.

        Raises:
            ValueError: The shape or dtype is wrong, there are more windows than planned, or the iterator of
                the call before was not run to its end.
            InferenceFailedError: A logit is NaN or infinite.
        """
        expected = (self._num_heads, *self._plan.patch_size)
        if logits.shape[1:] != expected or logits.dtype != np.float32:
            raise ValueError(f"expected float32 logits of shape (n, {expected}), found {logits.dtype} {logits.shape}")
        if self._next_window + len(logits) > len(self._plan):
            raise ValueError(f"expected {len(self._plan)} windows, found {self._next_window + len(logits)}")
        if self._busy:
            raise ValueError("expected the slabs of the call before to be taken, found some left")
        self._busy = True
        return self._add(np.ascontiguousarray(logits).reshape(len(logits), self._num_heads, *self._plan.patch_size_3d))

    def _add(self, logits: npt.NDArray[Any]) -> Iterator[Slab]:
        kernels = load_kernels(KERNELS)
        for window in logits:
            z, y, x = self._plan.start(self._next_window)
            yield from self._finish_until(z)
            units = self._plan.patch_size_3d[0] * self._num_heads
            run_parallel(partial(kernels.add_window, self._ring, window, self._gaussian, z, y, x), units)
            self._next_window += 1
        if self._next_window == len(self._plan):
            yield from self._finish_until(self._plan.padded_size[0])
        self._busy = False

    def _finish_until(self, end: int) -> Iterator[Slab]:
        """Divide and yield the planes of the padded volume before ``end``, and clear them for those that follow."""
        slots = self._ring.shape[0]
        pad_z, pad_y, pad_x = self._plan.pad_before
        depth, rows, columns = self._plan.image_size
        while self._next_plane < end:
            begin = self._next_plane
            # the ring may wrap: two slabs then
            stop = min(end, begin + slots - begin % slots)
            self._divide(begin, stop)
            visible_begin, visible_stop = max(begin, pad_z), min(stop, pad_z + depth)
            if visible_begin < visible_stop:
                slot = visible_begin % slots
                planes = self._ring[slot : slot + visible_stop - visible_begin]
                yield planes[:, :, pad_y : pad_y + rows, pad_x : pad_x + columns].swapaxes(0, 1)
            if self._next_window < len(self._plan):
                self._ring[begin % slots : begin % slots + stop - begin] = 0
            self._next_plane = stop

    def _divide(self, begin: int, stop: int) -> None:
        kernels = load_kernels(KERNELS)
        finite: list[bool] = []
        run_parallel(
            lambda first, last: finite.append(
                kernels.divide_by_weights(self._ring, self._gaussian, *self._starts, begin + first, begin + last)
            ),
            stop - begin,
        )
        if not all(finite):
            raise InferenceFailedError(
                f"{self._model}: expected finite logits, found NaN or infinity near plane {begin} of the prepared "
                "volume: serve the network with a higher precision (fp32), or check the scan's intensities"
            )
