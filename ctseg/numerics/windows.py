"""Where windows lie, and the patches cut from them.

All axes are those of the prepared volume: (z, y, x) after ``transpose_forward``. A 2d configuration
is a 3-D one whose patches are one plane deep and whose windows start on every plane.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Patches, Shape3


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
        steps = _steps(size, patch, tile_step_size)
        step = (size - patch) / (steps - 1) if steps > 1 else 0.0
        starts.append(tuple(round(step * i) for i in range(steps)))
    return tuple(starts)


def count_windows(image_size: Shape3, patch_size: tuple[int, ...], tile_step_size: float) -> int:
    """Return how many windows :func:`plan_windows` would lay, without laying them.

    Args:
        image_size: (z, y, x) of the prepared volume.
        patch_size: Of the network; two entries for a 2d configuration.
        tile_step_size: Largest step as a fraction of the patch.
    """
    sides = zip(image_size[-len(patch_size) :], patch_size, strict=True)
    planes = image_size[0] if len(patch_size) == 2 else 1
    return planes * math.prod(_steps(max(size, patch), patch, tile_step_size) for size, patch in sides)


def _steps(size: int, patch: int, tile_step_size: float) -> int:
    return math.ceil((size - patch) / (patch * tile_step_size)) + 1


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
    voxels: npt.NDArray[np.float32],
    plan: WindowPlan,
    first: int,
    count: int,
    *,
    previous: npt.NDArray[np.int16] | None = None,
    values: Sequence[int] = (),
    out: Patches | None = None,
) -> Patches:
    """Cut consecutive windows out of a prepared volume, ready to be sent.

    Args:
        voxels: (channels, z, y, x), the prepared volume of the plan; not changed.
        plan: Where the windows lie.
        first: The first window.
        count: How many windows.
        previous: (z, y, x), labels of the previous stage, where there is one.
        values: Of these labels; each becomes a channel after those of ``voxels``, 1 where the label is and 0 elsewhere.
        out: Where to put them, (count, channels + values, *patch_size), float32; a new array when None.

    Returns:
        (count, channels + values, *patch_size), float32, C-contiguous; ``out`` where it was given.

    Raises:
        ValueError: The volume, ``out`` or the windows do not fit the plan.
    """
    channels = voxels.shape[0]
    if voxels.shape[1:] != plan.image_size or (previous is not None and previous.shape != plan.image_size):
        raise ValueError(f"expected a volume of {plan.image_size} voxels, found {voxels.shape[1:]}")
    total = channels + len(values)
    shape = (count, total, *plan.patch_size)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"expected a float32 buffer of shape {shape}, found {out.dtype} {out.shape}")
    patches = out.reshape(count, total, *plan.patch_size_3d)
    for i in range(count):
        inside: list[slice] = []
        source: list[slice] = []
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
        patch = patches[i][:, inside[0], inside[1], inside[2]]
        patch[:channels] = voxels[:, source[0], source[1], source[2]]
        if previous is not None:
            labels = previous[source[0], source[1], source[2]]
            for channel, value in enumerate(values, start=channels):
                np.equal(labels, value, out=patch[channel], casting="unsafe")
    return out
