"""Change voxel spacing exactly as nnU-Net does, faster.

nnU-Net resamples with ``skimage.transform.resize`` (cubic splines for images), slice by slice where
the voxels are anisotropic, or with torch's linear interpolation. All of them are separable: one axis
after the other, each by its own table of source voxels and weights. The tables are made here, in
SciPy's and torch's own arithmetic; :func:`resample` applies them, and :mod:`ctseg.numerics.restore` applies
those of at most two taps together with the decision of the label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ctseg.arrays import Shape3, Spacing, Voxels
from ctseg.compiled.loading import load_kernels
from ctseg.compiled.parallel import run_parallel
from ctseg.errors import InputError
from ctseg.model_spec import NoResampling, Resampling, SplineResampling, TorchResampling

KERNELS = "ctseg.numerics.resample_kernels"

_SPLINE_PAD = 12
"""Voxels that SciPy repeats at both ends before its spline filter in mode ``nearest``."""


@dataclass(frozen=True)
class AxisTable:
    """How one axis is resampled: which source voxels each target voxel reads, and their weights.

    Attributes:
        indices: (target size, taps), int64; taps are 1 (nearest), 2 (linear) or 4 (cubic). Cubic ones count in
            the line that 12 repeated voxels at both ends make longer.
        weights: (target size, taps), float64; each row sums to 1.
        spline: Whether the spline filter comes first.
    """

    indices: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    spline: bool = False


@dataclass(frozen=True)
class ResamplingPlan:
    """How a volume is resampled: one table for each axis, None where the axis stays as it is.

    Attributes:
        source_shape: (z, y, x) before.
        target_shape: (z, y, x) after.
        tables: For (z, y, x).
        slice_axis: The axis of low resolution, whose slices are resampled (and clipped) one by one; None when
            the volume is resampled as a whole.
    """

    source_shape: Shape3
    target_shape: Shape3
    tables: tuple[AxisTable | None, AxisTable | None, AxisTable | None] = field(repr=False)
    slice_axis: int | None = None

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return all(table is None for table in self.tables)

    @property
    def is_linear(self) -> bool:
        """Whether every axis is nearest or linear, so that each plane needs two source planes at most."""
        return all(table is None or table.indices.shape[1] <= 2 for table in self.tables)


def compute_new_shape(shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> Shape3:
    """Return the shape (z, y, x) that keeps a volume's extent at another spacing.

    Raises:
        InputError: An axis would be left with no voxel.

    Source:
        nnU-Net's function of this name; the order of its operations decides the rounding.
    """
    try:
        z, y, x = (
            int(round(old / new * size))  # noqa: RUF046  # NumPy's round gives no int
            for old, new, size in zip(spacing_mm, new_spacing_mm, shape, strict=True)
        )
    except OverflowError as error:
        raise InputError(f"expected a spacing in millimetres, found {tuple(spacing_mm)}: is it right?") from error
    if min(z, y, x) < 1:
        raise InputError(
            f"expected at least one voxel along each axis at {_words(new_spacing_mm)} mm, found shape {(z, y, x)} "
            f"from {tuple(shape)} voxels of {_words(spacing_mm)} mm: is the spacing in the file right?"
        )
    return (z, y, x)


def _words(spacing_mm: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in spacing_mm)})"


def find_slice_axis(
    force_separate_z: bool | None, threshold: float, spacing_mm: Spacing, new_spacing_mm: Spacing
) -> int | None:
    """Return the axis whose slices are resampled one by one, or None.

    Source:
        nnU-Net's ``determine_do_sep_z_and_axis``: the ratio of the coarsest to the finest spacing exceeds the
        threshold, before or after, and one axis alone is the coarsest.
    """

    def coarsest(spacing: Spacing) -> int | None:
        axes = np.where(max(spacing) / np.array(spacing) == 1)[0]
        return int(axes[0]) if len(axes) == 1 else None

    if force_separate_z is not None:
        return coarsest(spacing_mm) if force_separate_z else None
    for spacing in (spacing_mm, new_spacing_mm):
        if max(spacing) / min(spacing) > threshold:
            return coarsest(spacing)
    return None


def plan_resampling(
    resampling: Resampling, shape: Shape3, new_shape: Shape3, spacing_mm: Spacing, new_spacing_mm: Spacing
) -> ResamplingPlan:
    """Work out how nnU-Net would resample.

    Args:
        resampling: The function that the plans name, and its arguments.
        shape: (z, y, x) before.
        new_shape: (z, y, x) after; ignored by ``no_resampling_hack``, which keeps ``shape``.
        spacing_mm: Along (z, y, x) before; with ``new_spacing_mm`` it decides whether slices are separate.
        new_spacing_mm: Along (z, y, x) after.
    """
    if isinstance(resampling, NoResampling) or shape == new_shape:
        return ResamplingPlan(shape, shape, (None, None, None))
    slice_axis = find_slice_axis(
        resampling.force_separate_z, resampling.separate_z_anisotropy_threshold, spacing_mm, new_spacing_mm
    )
    tables: list[AxisTable | None] = []
    for axis, (size, new_size) in enumerate(zip(shape, new_shape, strict=True)):
        if size == new_size:
            # every interpolation gives back the voxels themselves where the grid does not change
            tables.append(None)
        elif isinstance(resampling, SplineResampling):
            tables.append(_spline_table(resampling, size, new_size, across=axis == slice_axis))
        else:
            tables.append(_torch_table(resampling, size, new_size, axis=axis, slice_axis=slice_axis))
    return ResamplingPlan(shape, new_shape, (tables[0], tables[1], tables[2]), slice_axis)


def resample(volume: Voxels, plan: ResamplingPlan, *, out: Voxels | None = None) -> Voxels:
    """Apply a plan.

    Args:
        volume: (z, y, x), any strides; not changed.
        plan: Made for the volume's shape.
        out: Where to put the result, (z, y, x), float32; a new array when None.

    Returns:
        (z, y, x), float32. The volume itself, not a copy, when nothing changes and ``out`` is None. Cubic results
        lie within the range of the volume (of the slice, where slices are separate). Within float32 rounding
        of nnU-Net's result; sums are float64, and float32 between two axes.

    Raises:
        ValueError: The volume or ``out`` does not fit the plan.
    """
    if volume.shape != plan.source_shape or volume.dtype != np.float32:
        raise ValueError(f"expected float32 {plan.source_shape}, found {volume.dtype} {volume.shape}")
    if out is not None and (out.shape != plan.target_shape or out.dtype != np.float32):
        raise ValueError(f"expected a float32 buffer of {plan.target_shape}, found {out.dtype} {out.shape}")
    if plan.is_identity:
        if out is None:
            return volume
        out[...] = volume
        return out
    across = plan.slice_axis
    tables = plan.tables
    order = resampling_order(plan.source_shape, plan.target_shape, across)
    in_plane = [axis for axis in order if axis != across]
    last_in_plane = in_plane[-1] if in_plane else None
    bounds: tuple[Any, Any] | None = None
    if last_in_plane is not None and any(t is not None and t.spline for a, t in enumerate(tables) if a != across):
        others = None if across is None else tuple(a for a in range(3) if a != across)
        bounds = (np.min(volume, axis=others), np.max(volume, axis=others))
    current = volume
    del volume  # where the caller keeps it no longer, its memory is free after the first axis
    for axis in order:
        shape = list(current.shape)
        shape[axis] = plan.target_shape[axis]
        target = out if out is not None and axis == order[-1] else np.empty(shape, dtype=np.float32)
        _resize_axis(current, target, axis, plan, bounds if axis == last_in_plane else None)
        current = target
    return current


def resampling_order(shape: Shape3, new_shape: Shape3, slice_axis: int | None) -> list[int]:
    """Return the axes whose size changes, in the order in which :func:`resample` changes them.

    What shrinks most comes first; slices are finished before anything is done across them.
    """
    changed = [axis for axis in range(3) if shape[axis] != new_shape[axis]]
    return sorted(changed, key=lambda axis: (axis == slice_axis, new_shape[axis] / shape[axis]))


def _resize_axis(
    source: Voxels,
    target: Voxels,
    axis: int,
    plan: ResamplingPlan,
    bounds: tuple[Any, Any] | None,
) -> None:
    """Resample one axis; ``bounds`` are what to clip to, one value or one for each slice."""
    table, slice_axis = plan.tables[axis], plan.slice_axis
    if table is None:
        raise ValueError(f"expected a table for axis {axis}, found none")
    outer = slice_axis if bounds is not None and slice_axis is not None else min(a for a in range(3) if a != axis)
    inner = 3 - axis - outer
    if bounds is None:
        low = high = np.zeros(source.shape[outer], dtype=np.float32)
    else:
        low, high = (np.array(np.broadcast_to(bound, source.shape[outer]), dtype=np.float32) for bound in bounds)
    kernels = load_kernels(KERNELS)
    source_view, target_view = source.transpose(outer, axis, inner), target.transpose(outer, axis, inner)
    blocks = -(-source.shape[inner] // kernels.BLOCK)
    arguments = (source_view, target_view, table.indices, table.weights, table.spline, bounds is not None, low, high)
    run_parallel(lambda first, last: kernels.resize_axis(*arguments, first, last), source.shape[outer] * blocks)


def _spline_table(resampling: SplineResampling, size: int, new_size: int, *, across: bool) -> AxisTable:
    """SciPy's ``zoom`` in grid mode (in a slice or volume) or ``map_coordinates`` (across slices), mode ``nearest``."""
    order = resampling.order_z if across else resampling.order
    if order == 0:
        # exact ties are met at ratio 2: SciPy itself says which voxel it takes
        ramp = np.arange(size, dtype=np.float64)
        if across:
            taken = ndimage.map_coordinates(ramp, [target_centres(size, new_size)], order=0, mode="nearest")
        else:
            taken = ndimage.zoom(ramp, 1 / (size / new_size), order=0, mode="nearest", grid_mode=True)
        return _nearest_table(taken.astype(np.int64))
    centres = target_centres(size, new_size)
    if order == 1:
        return _linear_table(np.clip(centres, 0, size - 1), size)
    centres = centres + _SPLINE_PAD
    below = np.floor(centres)
    y = centres - below
    z = 1 - y
    w1 = (y * y * (y - 2.0) * 3.0 + 4.0) / 6.0
    w2 = (z * z * (z - 2.0) * 3.0 + 4.0) / 6.0
    w0 = z * z * z / 6.0
    weights = np.stack([w0, w1, w2, 1 - w0 - w1 - w2], axis=1)
    indices = below.astype(np.int64)[:, None] + np.arange(-1, 3)
    return AxisTable(np.ascontiguousarray(indices), weights, spline=True)


def _torch_table(
    resampling: TorchResampling, size: int, new_size: int, *, axis: int, slice_axis: int | None
) -> AxisTable:
    """Torch's ``interpolate`` with ``align_corners=False``, whose coordinates are float32.

    Without separate slices nnU-Net's function ignores ``mode`` and is linear.
    """
    if slice_axis is None:
        mode = "linear"
    else:
        mode = resampling.aniso_axis_mode if axis == slice_axis else resampling.mode
    scale = np.float32(size) / np.float32(new_size)
    target = np.arange(new_size, dtype=np.float64)
    # products of float32 numbers are exact in float64, so each line rounds once, as torch's fused operations do
    centres = np.maximum((np.float64(scale) * (target + 0.5) - 0.5).astype(np.float32), np.float32(0))
    if mode == "linear":
        return _linear_table(np.minimum(centres, np.float32(size - 1)), size)
    if mode == "nearest-exact":
        taken = np.floor(centres + np.float32(0.5)).astype(np.int64)
    else:
        taken = np.floor((np.float64(scale) * target).astype(np.float32)).astype(np.int64)
    return _nearest_table(np.minimum(taken, size - 1))


def target_centres(size: int, new_size: int) -> npt.NDArray[np.float64]:
    """Centres of the target voxels, counted in source voxels: the outer faces stay where they are."""
    return (size / new_size) * (np.arange(new_size, dtype=np.float64) + 0.5) - 0.5


def _nearest_table(taken: npt.NDArray[np.int64]) -> AxisTable:
    return AxisTable(np.ascontiguousarray(taken[:, None]), np.ones((len(taken), 1)))


def _linear_table(centres: npt.NDArray[Any], size: int) -> AxisTable:
    below = np.floor(centres)
    share: npt.NDArray[np.float64] = (centres - below).astype(np.float64)
    indices = below.astype(np.int64)[:, None] + np.arange(2)
    return AxisTable(np.minimum(indices, size - 1), np.stack([1 - share, share], axis=1))
