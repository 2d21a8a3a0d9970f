"""The compiled loops that resample logits and decide labels.

Units, threads and rounding: see :mod:`ctseg.compiled.declaring`.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import numpy as np

from ctseg.compiled.declaring import array, boolean, f4, i8, kernel, read_only, u2, u8

ROWS_PER_UNIT = 32
"""Target rows in one unit of these kernels; their scratch stays in the cache."""


@kernel(
    read_only(f4, 4, "A"),
    read_only(f4, 3),
    i8,
    i8,
    i8,
    f4,
    i8,
    read_only(u8, 1),
    read_only(u8, 1),
    read_only(f4, 1),
    boolean,
    array(f4, 1, "C"),
    array(f4, 1, "C"),
)
def interpolate_row(  # type: ignore[no-untyped-def]  # noqa: D103
    slab, before, head, below, above, z_weight, row, x0, x1, x_weight, x_same, line, target
):
    columns = slab.shape[3]
    if below < 0:
        for i in range(columns):
            line[i] = before[head, row, i]
    else:
        for i in range(columns):
            line[i] = slab[below, head, row, i]
    if z_weight != 0:
        for i in range(columns):
            line[i] += z_weight * (slab[above, head, row, i] - line[i])
    if x_same:
        for i in range(columns):
            target[i] = line[i]
    else:
        for i in range(len(x_weight)):
            value = line[x0[i]]
            target[i] = value + x_weight[i] * (line[x1[i]] - value)


_SOURCE = (read_only(f4, 4, "A"), read_only(f4, 3))
_AXIS = (read_only(i8, 1), read_only(i8, 1), read_only(f4, 1))
_COLUMNS = (read_only(u8, 1), read_only(u8, 1), read_only(f4, 1), boolean)


@kernel(*_SOURCE, array(u2, 3, "C"), *_AXIS, *_AXIS, *_COLUMNS, boolean, f4, i8, i8)
def label_planes(  # type: ignore[no-untyped-def]  # noqa: D417
    slab, before, labels, z0, z1, z_weight, y0, y1, y_weight, x0, x1, x_weight, x_same, regions, threshold, first, last
):
    """Resample logits linearly and decide the label of each voxel, in one pass.

    Args:
        slab: (planes, heads, rows, columns), any strides.
        before: (heads, rows, columns): the plane before the slab, read where ``z0`` is -1.
        labels: (target planes, target rows, target columns). Written: the index of the highest head, the
            lowest of several; with ``regions`` one more than the last head above ``threshold``, else 0.
        z0: For each target plane the slab's plane below it; ``z1``: the one above; ``z_weight``: the share
            of the latter. Likewise ``y0``, ``y1``, ``y_weight`` and ``x0``, ``x1``, ``x_weight``.
        x_same: Whether columns stay as they are.
        regions: Whether heads are regions.
        threshold: Logit above which a voxel belongs to a region.
        first: First unit; a unit is ``ROWS_PER_UNIT`` rows of one target plane.
        last: One past the last unit.
    """
    heads, source_columns = slab.shape[1], slab.shape[3]
    rows, columns = labels.shape[1], labels.shape[2]
    bands = (rows + ROWS_PER_UNIT - 1) // ROWS_PER_UNIT
    line = np.empty(source_columns, dtype=np.float32)
    pair = np.empty((2, columns), dtype=np.float32)
    best = np.empty((ROWS_PER_UNIT, columns), dtype=np.float32)
    winner = np.empty((ROWS_PER_UNIT, columns), dtype=np.int32)
    for unit in range(first, last):
        k = unit // bands
        begin = (unit % bands) * ROWS_PER_UNIT
        count = min(ROWS_PER_UNIT, rows - begin)
        winner[:] = 0
        for head in range(heads):
            # as narrow as a float32, so that the loops below handle as many at once
            number = np.int32(head + 1) if regions else np.int32(head)
            held0 = -1
            held1 = -1
            for r in range(count):
                s0, s1, w = y0[begin + r], y1[begin + r], y_weight[begin + r]
                if held0 != s0:
                    if held1 == s0:
                        pair[0] = pair[1]
                    else:
                        interpolate_row(
                            slab, before, head, z0[k], z1[k], z_weight[k], s0, x0, x1, x_weight, x_same, line, pair[0]
                        )
                    held0 = s0
                if w != 0 and held1 != s1:
                    interpolate_row(
                        slab, before, head, z0[k], z1[k], z_weight[k], s1, x0, x1, x_weight, x_same, line, pair[1]
                    )
                    held1 = s1
                a, b = pair[0], pair[1]
                top, index = best[r], winner[r]
                if w == 0:
                    b = a
                if regions:
                    for i in range(columns):
                        value = a[i] + w * (b[i] - a[i])
                        index[i] = number if value > threshold else index[i]
                elif head == 0:
                    for i in range(columns):
                        top[i] = a[i] + w * (b[i] - a[i])
                else:
                    for i in range(columns):
                        value = a[i] + w * (b[i] - a[i])
                        higher = value > top[i]
                        top[i] = value if higher else top[i]
                        index[i] = number if higher else index[i]
        for r in range(count):
            for i in range(columns):
                labels[k, begin + r, i] = winner[r, i]


@kernel(*_SOURCE, array(f4, 4, "C"), *_AXIS, *_AXIS, *_COLUMNS, i8, i8)
def resample_planes(  # type: ignore[no-untyped-def]  # noqa: D417
    slab, before, logits, z0, z1, z_weight, y0, y1, y_weight, x0, x1, x_weight, x_same, first, last
):
    """Resample logits linearly; a unit is one head of one target plane.

    Args:
        logits: (heads, target planes, target rows, target columns). Written.

    The other arguments are those of :func:`label_planes`.
    """
    heads = logits.shape[0]
    rows, columns = logits.shape[2], logits.shape[3]
    line = np.empty(slab.shape[3], dtype=np.float32)
    pair = np.empty((2, columns), dtype=np.float32)
    for unit in range(first, last):
        k, head = unit // heads, unit % heads
        held0 = -1
        held1 = -1
        for r in range(rows):
            s0, s1, w = y0[r], y1[r], y_weight[r]
            if held0 != s0:
                if held1 == s0:
                    pair[0] = pair[1]
                else:
                    interpolate_row(
                        slab, before, head, z0[k], z1[k], z_weight[k], s0, x0, x1, x_weight, x_same, line, pair[0]
                    )
                held0 = s0
            if w != 0 and held1 != s1:
                interpolate_row(
                    slab, before, head, z0[k], z1[k], z_weight[k], s1, x0, x1, x_weight, x_same, line, pair[1]
                )
                held1 = s1
            a, b = pair[0], pair[1]
            if w == 0:
                b = a
            for i in range(columns):
                logits[head, k, r, i] = a[i] + w * (b[i] - a[i])
