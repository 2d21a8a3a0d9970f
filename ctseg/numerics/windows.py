"""Where windows lie, the patches cut from them, and the logits blended slab by slab.

All axes are those of the prepared volume: (z, y, x) after ``transpose_forward``. A 2d configuration
is a 3-D one whose patches are one plane deep and whose windows start on every plane.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from ctseg.compiled.loading import load_kernels, run_parallel
from ctseg.errors import InferenceFailedError
from ctseg.predict.predictor import Patches

Slab = npt.NDArray[np.float32]
"""(heads, planes, y, x): blended logits of consecutive planes of the prepared volume."""

Shape3 = tuple[int, int, int]


def window_starts(
    image_size: Sequence[int], patch_size: Sequence[int], tile_step_size: float
) -> tuple[tuple[int, ...], ...]:
    """Return the first voxel of every window, for each axis.

    Args:
        image_size: Voxels along each axis, not fewer than ``patch_size``.
        patch_size: Voxels of the patch along each axis.
        tile_step_size: Largest step as a fraction of the patch, above 0 and at most 1.

    Raises:
        ValueError: The step is out of range, or the image is smaller than the patch.

    Source:
        nnU-Net's ``compute_steps_for_sliding_window``, with its order of operations.
    """
    if not 0 < tile_step_size <= 1:
        raise ValueError(f"expected a tile_step_size above 0 and at most 1, found {tile_step_size}")
    starts = []
    for size, patch in zip(image_size, patch_size, strict=True):
        if size < patch:
            raise ValueError(f"expected an image as large as the patch {tuple(patch_size)}, found {tuple(image_size)}")
        steps = math.ceil((size - patch) / (patch * tile_step_size)) + 1
        step = (size - patch) / (steps - 1) if steps > 1 else 0.0
        starts.append(tuple(round(step * i) for i in range(steps)))
    return tuple(starts)


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


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one prepared volume, in the order in which they are predicted.

    Windows are counted with the first axis slowest, as nnU-Net does. A volume smaller than the patch is
    padded with zeros on both sides (the odd voxel at the end); nothing but the patches is ever padded.

    Attributes:
        image_size: (z, y, x) of the prepared volume.
        patch_size: Of the network; two entries for a 2d configuration.
        pad_before: Zeros before the first voxel along (z, y, x).
        starts: First voxel of the windows along (z, y, x), counted in the padded volume.
    """

    image_size: Shape3
    patch_size: tuple[int, ...]
    pad_before: Shape3
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def patch_size_3d(self) -> Shape3:
        """The patch along (z, y, x); one plane deep for a 2d configuration."""
        depth, rows, columns = (1, *self.patch_size)[-3:]
        return (depth, rows, columns)

    @property
    def padded_size(self) -> Shape3:
        """Size of the padded volume along (z, y, x)."""
        z, y, x = (max(size, patch) for size, patch in zip(self.image_size, self.patch_size_3d, strict=True))
        return (z, y, x)

    def __len__(self) -> int:
        return math.prod(len(starts) for starts in self.starts)

    def start(self, index: int) -> Shape3:
        """Return the first voxel of a window along (z, y, x), counted in the padded volume.

        Raises:
            ValueError: There is no such window.
        """
        if not 0 <= index < len(self):
            raise ValueError(f"expected a window from 0 to {len(self) - 1}, found {index}")
        rest, ix = divmod(index, len(self.starts[2]))
        iz, iy = divmod(rest, len(self.starts[1]))
        return (self.starts[0][iz], self.starts[1][iy], self.starts[2][ix])


def plan_windows(image_size: Shape3, patch_size: tuple[int, ...], tile_step_size: float = 0.5) -> WindowPlan:
    """Lay windows over a prepared volume.

    Args:
        image_size: (z, y, x) of the prepared volume.
        patch_size: Of the network; with two entries every plane of the first axis has its own windows.
        tile_step_size: Largest step as a fraction of the patch.

    Raises:
        ValueError: The step is out of range.

    Source:
        nnU-Net's ``pad_nd_image`` and ``_internal_get_sliding_window_slicers``.
    """
    patch = (1, *patch_size)[-3:]
    padded = [max(size, side) for size, side in zip(image_size, patch, strict=True)]
    before = [(size - image) // 2 for size, image in zip(padded, image_size, strict=True)]
    if len(patch_size) == 2:
        starts = (tuple(range(image_size[0])), *window_starts(padded[1:], patch_size, tile_step_size))
    else:
        starts = window_starts(padded, patch, tile_step_size)
    return WindowPlan(
        image_size=image_size,
        patch_size=tuple(patch_size),
        pad_before=(before[0], before[1], before[2]),
        starts=(starts[0], starts[1], starts[2]),
    )


def cut_patches(
    voxels: npt.NDArray[np.float32], plan: WindowPlan, first: int, count: int, *, out: Patches | None = None
) -> Patches:
    """Cut consecutive windows out of a prepared volume, ready to be sent.

    Args:
        voxels: (channels, z, y, x), the prepared volume of the plan; not changed.
        plan: Where the windows lie.
        first: The first window.
        count: How many windows.
        out: Where to put them, (count, channels, *patch_size), float32; a new array when None.

    Returns:
        (count, channels, *patch_size), float32, C-contiguous; ``out`` where it was given.

    Raises:
        ValueError: The volume, ``out`` or the windows do not fit the plan.
    """
    channels = voxels.shape[0]
    if voxels.shape[1:] != plan.image_size:
        raise ValueError(f"expected a volume of {plan.image_size} voxels, found {voxels.shape[1:]}")
    shape = (count, channels, *plan.patch_size)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"expected a float32 buffer of shape {shape}, found {out.dtype} {out.shape}")
    patches = out.reshape(count, channels, *plan.patch_size_3d)
    for i in range(count):
        inside, source = [slice(i, i + 1), slice(None)], [slice(None)]
        whole = True
        for start, pad, size, side in zip(
            plan.start(first + i), plan.pad_before, plan.image_size, plan.patch_size_3d, strict=True
        ):
            begin, end = max(start - pad, 0), min(start - pad + side, size)
            source.append(slice(begin, end))
            inside.append(slice(begin - (start - pad), end - (start - pad)))
            whole &= end - begin == side
        if not whole:
            patches[i] = 0
        patches[tuple(inside)] = voxels[tuple(source)]
    return out


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

    @property
    def next_window(self) -> int:
        """The window that :meth:`add` expects first."""
        return self._next_window

    def add(self, logits: npt.NDArray[np.float32] | npt.NDArray[np.float16]) -> Iterator[Slab]:
        """Add the logits of the next windows and yield the slabs that are finished by them.

        Run the iterator to its end: what it has not reached is not added.

        Args:
            logits: (windows, heads, *patch_size) of the windows that follow those added before, float32 or
                float16; any number of windows, perhaps read-only; not kept once the iterator has ended.

        Yields:
            (heads, planes, y, x) of the prepared volume, padding cut off, without gaps from plane 0 on. A view
            into the ring, valid until the iterator goes on.

        Raises:
            ValueError: The shape or dtype is wrong, there are more windows than planned, or the iterator of
                the call before was not run to its end.
            InferenceFailedError: A logit is NaN or infinite.
        """
        expected = (self._num_heads, *self._plan.patch_size)
        if logits.shape[1:] != expected or logits.dtype not in (np.float32, np.float16):
            raise ValueError(f"expected float logits of shape (n, {expected}), found {logits.dtype} {logits.shape}")
        if self._next_window + len(logits) > len(self._plan):
            raise ValueError(f"expected {len(self._plan)} windows, found {self._next_window + len(logits)}")
        if self._busy:
            raise ValueError("expected the slabs of the call before to be taken, found some left")
        self._busy = True
        return self._add(np.ascontiguousarray(logits).reshape(len(logits), self._num_heads, *self._plan.patch_size_3d))

    def _add(self, logits: npt.NDArray[Any]) -> Iterator[Slab]:
        kernels = load_kernels()
        for window in logits:
            z, y, x = self._plan.start(self._next_window)
            yield from self._finish_until(z)
            units = self._plan.patch_size_3d[0] * self._num_heads
            if window.dtype == np.float16:
                kernel, values = kernels.add_half_window, window.view(np.uint16)
            else:
                kernel, values = kernels.add_window, window
            run_parallel(partial(kernel, self._ring, values, self._gaussian, z, y, x), units)
            self._next_window += 1
        if self._next_window == len(self._plan):
            yield from self._finish_until(self._plan.padded_size[0])
        self._busy = False

    def _finish_until(self, end: int) -> Iterator[Slab]:
        """Divide, yield and clear the planes of the padded volume before ``end``."""
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
            self._ring[begin % slots : begin % slots + stop - begin] = 0
            self._next_plane = stop

    def _divide(self, begin: int, stop: int) -> None:
        kernels = load_kernels()
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
