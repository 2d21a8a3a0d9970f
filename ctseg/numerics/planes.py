"""Slabs of logits, which come in order, as the source of planes on the grid of the scan.

Each target plane needs two source planes at most (nearest or linear, separate slices or not, torch's or
scikit-image's), so a slab and the plane before it are all that has to be held.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Slab
from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.numerics.prepare import PreparationRecord
from ctseg.numerics.resample import AxisTable, ResamplingPlan, plan_resampling

Where = tuple[slice, slice, slice]
"""A box of the grid as read, along (z, y, x)."""


def plan_restoring(spec: ModelSpec, record: PreparationRecord) -> ResamplingPlan:
    """Work out how logits come back to the grid of the crop.

    Args:
        spec: The network's contract.
        record: What was done to the case.

    Raises:
        SpecError: The logits' resampling cannot lead back to the grid of the scan.
    """
    plan = plan_resampling(
        spec.resampling_logits,
        record.network_shape,
        record.cropped_shape,
        record.network_spacing_mm,
        record.spacing_mm,
    )
    if plan.target_shape != record.cropped_shape:
        raise SpecError(
            f"{spec.name}: expected logits that can be brought back to {record.cropped_shape} voxels, found "
            f"{record.network_shape} and {spec.resampling_logits.function}: images and logits of the plans "
            "must be resampled alike"
        )
    return plan


def as_read(planes: Slab, record: PreparationRecord, first: int) -> tuple[Where, Slab]:
    """Return planes of the crop with their axes as read, and where they lie on the grid as read.

    Args:
        planes: (heads, planes, y, x) on the crop's grid, axes transposed as the network has them.
        record: What was done to the case.
        first: The crop's plane that comes first.
    """
    forward, box = record.transpose_forward, list(record.crop_slices)
    begin = box[0].start + first
    box[0] = slice(begin, begin + planes.shape[1])
    backward = (forward.index(0), forward.index(1), forward.index(2))
    return (box[backward[0]], box[backward[1]], box[backward[2]]), planes.transpose(0, *(axis + 1 for axis in backward))


class PlaneFeed:
    """Takes slabs and gives what target planes are made of.

    Args:
        num_heads: Of the logits.
        plan: From the prepared volume to the crop, linear.

    Attributes:
        planes_ready: How many target planes, from the first on, have all their source planes.
    """

    def __init__(self, num_heads: int, plan: ResamplingPlan) -> None:
        self.planes_ready = 0
        self._num_heads = num_heads
        self._shape = plan.source_shape
        self._planes_in = 0
        self._z, self._y, self._x = (_Linear(plan, axis) for axis in range(3))
        self._slab: Slab = np.zeros((0, 0, 0, 0), dtype=np.float32)
        self._before: Slab = np.zeros((0, 0, 0), dtype=np.float32)

    @property
    def is_complete(self) -> bool:
        """Whether every plane of the prepared volume has come."""
        return self._planes_in == self._shape[0]

    @property
    def planes_in(self) -> int:
        """How many planes of the prepared volume have come."""
        return self._planes_in

    def add(self, slab: Slab) -> None:
        """Take the next planes of the prepared volume.

        Args:
            slab: (heads, planes, y, x), float32, any strides; not changed; read until :meth:`release`.

        Raises:
            ValueError: The slab does not fit, or there are more planes than the volume has.
        """
        check_slab(slab, self._planes_in, self._num_heads, self._shape)
        self._slab = slab.swapaxes(0, 1)
        self._planes_in += slab.shape[1]
        if slab.shape[1]:
            self.planes_ready = int(np.searchsorted(self._z.above, self._planes_in))  # above never falls

    def source(self, planes: slice) -> "PlaneSource":
        """Return what target planes come from, those that the slab before has not given."""
        begin = self._planes_in - len(self._slab)
        below, above = self._z.below[planes], self._z.above[planes]
        return PlaneSource(
            slab=self._slab,
            before=self._before,
            z_below=np.where(below < begin, -1, below - begin),
            z_above=np.maximum(above - begin, 0),
            z_weight=self._z.weight[planes],
            y=self._y,
            x_below=self._x.below.astype(np.uint64),
            x_above=self._x.above.astype(np.uint64),
            x=self._x,
        )

    def release(self) -> None:
        """Keep of the slab what later target planes need: all that are ready have been taken."""
        left = self.planes_ready
        if len(self._slab) and left < len(self._z.below) and self._z.below[left] < self._planes_in:
            self._before = np.array(self._slab[-1])
        self._slab = self._slab[:0]


def check_slab(slab: Slab, planes_in: int, num_heads: int, shape: tuple[int, int, int]) -> None:
    """Refuse a slab that cannot be the next one.

    Args:
        slab: (heads, planes, y, x).
        planes_in: How many planes came before.
        num_heads: Of the logits.
        shape: (z, y, x) of the prepared volume.

    Raises:
        ValueError: It does not fit.
    """
    depth, rows, columns = shape
    end = planes_in + slab.shape[1]
    if (slab.shape[0], *slab.shape[2:]) != (num_heads, rows, columns) or slab.dtype != np.float32 or end > depth:
        raise ValueError(
            f"expected float32 slabs of {num_heads} heads and {depth} planes of {(rows, columns)} in all, "
            f"found {slab.dtype} {slab.shape} after {planes_in} planes"
        )


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


class PlaneSource(NamedTuple):
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

    def kernel_arguments(
        self, planes: slice, target: npt.NDArray[Any], rows_of_plane: slice = slice(None)
    ) -> tuple[Any, ...]:
        """Return what ``label_planes`` and its like take first, for some of the target planes and of their rows."""
        z = (self.z_below[planes], self.z_above[planes], self.z_weight[planes])
        rows = (self.y.below[rows_of_plane], self.y.above[rows_of_plane], self.y.weight[rows_of_plane])
        columns = (self.x_below, self.x_above, self.x.weight, self.x.is_same)
        return (self.slab, self.before, target, *z, *rows, *columns)
