"""Change the voxel spacing of a label map as nnU-Net does, voxel by voxel the same.

nnU-Net resamples the indicator of each label by itself and lets the largest share win. Here the eight voxels around a
target voxel are enough: a label that none of them has, has no share.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Shape3, Spacing
from ctseg.compiled.loading import load_kernels
from ctseg.compiled.parallel import run_parallel
from ctseg.model_spec import NoResampling, SegResampling, SplineResampling, SplineSegResampling, TorchResampling
from ctseg.numerics.resample import ResamplingPlan, plan_resampling, target_centres

KERNELS = "ctseg.numerics.label_kernels"


def resample_labels(
    labels: npt.NDArray[np.int16],
    resampling: SegResampling,
    new_shape: Shape3,
    spacing_mm: Spacing,
    new_spacing_mm: Spacing,
) -> npt.NDArray[np.int16]:
    """Resample a label map.

    Args:
        labels: (z, y, x), any strides; not changed.
        resampling: The function that the plans name for label maps, and its arguments.
        new_shape: (z, y, x) after; ignored by ``no_resampling_hack``.
        spacing_mm: Along (z, y, x) before; with ``new_spacing_mm`` it decides whether slices are separate.
        new_spacing_mm: Along (z, y, x) after.

    Returns:
        (z, y, x); the input itself where the grid stays as it is.

    Source:
        nnU-Net's ``resample_data_or_seg_to_shape`` with batchgenerators' ``resize_segmentation`` of 0.25.4 and later,
        and ``resample_torch_fornnunet``, both with ``is_seg``. For torch, voxels whose two largest shares are the same
        float16 may get the other of the two labels.
    """
    shape: Shape3 = (labels.shape[0], labels.shape[1], labels.shape[2])
    if isinstance(resampling, NoResampling) or shape == new_shape:
        return labels
    by_torch = not isinstance(resampling, SplineSegResampling)
    linear, nearest = (
        plan_resampling(kind, shape, new_shape, spacing_mm, new_spacing_mm) for kind in _as_images(resampling)
    )
    axes = [_axis(linear, nearest, axis, by_torch=by_torch) for axis in range(3)]
    target = np.empty(new_shape, np.int16)
    arguments = [part for axis in axes for part in axis]
    run_parallel(
        partial(load_kernels(KERNELS).resample_label_planes, labels, target, *arguments, by_torch), new_shape[0]
    )
    return target


class _Axis(NamedTuple):
    """How one axis is resampled, as the kernel takes it.

    Attributes:
        taps: (target size, 2) source voxels.
        weights: (target size, 2).
        nearest: (target size,) source voxels.
    """

    taps: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.int64]


def _as_images(
    resampling: SegResampling,
) -> tuple[SplineResampling | TorchResampling, SplineResampling | TorchResampling]:
    """Return how an indicator is resampled, and which voxel counts as the nearest."""
    kept = resampling.model_dump(exclude={"function", "ties"})
    if isinstance(resampling, SplineSegResampling):
        return SplineResampling(**kept), SplineResampling(**{**kept, "order": 0})
    return TorchResampling(**kept), TorchResampling(**kept)


def _axis(linear: ResamplingPlan, nearest: ResamplingPlan, axis: int, *, by_torch: bool) -> _Axis:
    table, table_of_nearest = linear.tables[axis], nearest.tables[axis]
    if table is None or table_of_nearest is None:
        same = np.arange(linear.target_shape[axis], dtype=np.int64)
        return _Axis(np.stack([same, same], axis=1), np.tile([1.0, 0.0], (len(same), 1)), same)
    closest = np.ascontiguousarray(table_of_nearest.indices[:, 0])
    if table.indices.shape[1] == 1:
        return _Axis(np.repeat(table.indices, 2, axis=1), np.tile([1.0, 0.0], (len(closest), 1)), closest)
    if by_torch:
        return _Axis(table.indices, table.weights, closest)
    # ties are exact, so weights have SciPy's own rounding: it takes the outermost voxel twice rather than once
    at = target_centres(linear.source_shape[axis], linear.target_shape[axis])
    below = np.floor(at)
    first = 1 - (at - below)
    taps = below.astype(np.int64)[:, None] + np.arange(2)
    return _Axis(np.clip(taps, 0, linear.source_shape[axis] - 1), np.stack([first, 1 - first], axis=1), closest)
