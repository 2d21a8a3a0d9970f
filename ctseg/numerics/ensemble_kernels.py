"""The compiled loops that average the probabilities of several networks.

Units, threads and rounding: see :mod:`ctseg.compiled.declaring`.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import math

import numpy as np

from ctseg.compiled.declaring import array, boolean, f4, i8, kernel, read_only, u2, u8
from ctseg.numerics.restore_kernels import interpolate_row

ROWS_PER_UNIT = 8
"""Target rows in one unit of these kernels; their scratch stays in the cache."""

_SOURCE = (read_only(f4, 4, "A"), read_only(f4, 3))
_AXIS = (read_only(i8, 1), read_only(i8, 1), read_only(f4, 1))
_COLUMNS = (read_only(u8, 1), read_only(u8, 1), read_only(f4, 1), boolean)


@kernel(*_SOURCE, array(f4, 3, "C"), *_AXIS, *_AXIS, *_COLUMNS, boolean, boolean, i8, i8)
def add_probabilities(  # type: ignore[no-untyped-def]  # noqa: D417
    slab, before, total, z0, z1, z_weight, y0, y1, y_weight, x0, x1, x_weight, x_same, regions, is_first, first, last
):
    """Resample the logits of one target plane, turn them into probabilities, and add them; a unit is some rows.

    Args:
        total: (heads, target rows, target columns). Written: overwritten by the first network, else added to.
        regions: Whether heads are regions (sigmoid) or labels (softmax).
        is_first: Whether the network is the first one.

    The other arguments are those of :func:`ctseg.numerics.restore_kernels.label_planes`, of one plane.
    """
    heads, rows, columns = total.shape
    line = np.empty(slab.shape[3], dtype=np.float32)
    pair = np.empty((2, columns), dtype=np.float32)
    values = np.empty((heads, ROWS_PER_UNIT, columns), dtype=np.float32)
    largest = np.empty(columns, dtype=np.float32)
    sums = np.empty(columns, dtype=np.float32)
    one = np.float32(1)
    for unit in range(first, last):
        begin = unit * ROWS_PER_UNIT
        count = min(ROWS_PER_UNIT, rows - begin)
        for head in range(heads):
            held0 = -1
            held1 = -1
            for r in range(count):
                s0, s1, w = y0[begin + r], y1[begin + r], y_weight[begin + r]
                if held0 != s0:
                    if held1 == s0:
                        pair[0] = pair[1]
                    else:
                        interpolate_row(
                            slab, before, head, z0[0], z1[0], z_weight[0], s0, x0, x1, x_weight, x_same, line, pair[0]
                        )
                    held0 = s0
                if w != 0 and held1 != s1:
                    interpolate_row(
                        slab, before, head, z0[0], z1[0], z_weight[0], s1, x0, x1, x_weight, x_same, line, pair[1]
                    )
                    held1 = s1
                a, b = pair[0], pair[1]
                if w == 0:
                    b = a
                row = values[head, r]
                for i in range(columns):
                    row[i] = a[i] + w * (b[i] - a[i])
        for r in range(count):
            if regions:
                for head in range(heads):
                    row = values[head, r]
                    for i in range(columns):
                        row[i] = one / (one + np.float32(math.exp(-row[i])))
            else:
                for i in range(columns):
                    largest[i] = values[0, r, i]
                    sums[i] = 0
                for head in range(1, heads):
                    row = values[head, r]
                    for i in range(columns):
                        largest[i] = max(largest[i], row[i])
                for head in range(heads):
                    row = values[head, r]
                    for i in range(columns):
                        row[i] = np.float32(math.exp(row[i] - largest[i]))
                        sums[i] += row[i]
                for head in range(heads):
                    row = values[head, r]
                    for i in range(columns):
                        row[i] /= sums[i]
            for head in range(heads):
                row, target = values[head, r], total[head, begin + r]
                if is_first:
                    for i in range(columns):
                        target[i] = row[i]
                else:
                    for i in range(columns):
                        target[i] += row[i]


@kernel(array(f4, 3, "A"), array(u2, 2, "C"), f4, boolean, i8, i8)
def decide_mean(total, indices, count, regions, first, last):  # type: ignore[no-untyped-def]
    """Divide summed probabilities in place, and decide the label of each voxel; a unit is a row.

    Args:
        total: (heads, rows, columns). Written: divided by ``count``.
        indices: (rows, columns). Written: the index of the highest head, the lowest of several; with ``regions`` one
            more than the last head above a half, else 0.
        count: How many networks there are.
        regions: Whether heads are regions.
        first: First unit.
        last: One past the last unit.
    """
    heads, _, columns = total.shape
    half = np.float32(0.5)
    best = np.empty(columns, dtype=np.float32)
    winner = np.empty(columns, dtype=np.int32)
    for r in range(first, last):
        winner[:] = 0
        for head in range(heads):
            row = total[head, r]
            number = np.int32(head + 1) if regions else np.int32(head)
            for i in range(columns):
                row[i] /= count
            if regions:
                for i in range(columns):
                    winner[i] = number if row[i] > half else winner[i]
            elif head == 0:
                for i in range(columns):
                    best[i] = row[i]
            else:
                for i in range(columns):
                    higher = row[i] > best[i]
                    best[i] = row[i] if higher else best[i]
                    winner[i] = number if higher else winner[i]
        for i in range(columns):
            indices[r, i] = winner[i]
