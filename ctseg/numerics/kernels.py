"""The compiled loops: resample along an axis, blend windows, turn logits into labels.

Only :func:`ctseg.compiled.loading.load_kernels` imports this module, because numba is slow to import. Every
kernel has one signature, compiled when the module is first imported and cached after that; releases
the interpreter lock; and works on a range of units, so that the caller splits them over threads.
Arithmetic is never reordered or contracted (no fast-math): where nnU-Net rounds, these round.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from ctseg.compiled.loading import copy_shipped_kernels, find_cache_home

_log = logging.getLogger(__name__)

BLOCK = 64
"""Lines that :func:`resize_axis` works on at once: far rows are read in long runs, the scratch stays in the cache."""
SPLINE_PAD = 12
"""Voxels that SciPy repeats at both ends before its spline filter."""
ROWS_PER_UNIT = 32
"""Target rows in one unit of the restoring kernels; their scratch stays in the cache."""

_POLE = 3.0**0.5 - 2.0
_CAUSAL_TERMS = 32
_CACHE = True


def _choose_cache() -> bool:
    source = Path(__file__)
    try:
        home = find_cache_home(source)
    except OSError as error:
        _log.warning("%s; they are compiled again in every process: set NUMBA_CACHE_DIR", error)
        return False
    if home is not None:
        from numba.core.caching import _CacheLocator

        numba.config.CACHE_DIR = str(home)
        copy_shipped_kernels(source, home / _CacheLocator.get_suitable_cache_subpath(str(source)))
    return True


def _kernel(*arguments: Any, returns: Any = types.void) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    signature = returns(*arguments)
    return numba.njit(signature, nogil=True, cache=_CACHE, error_model="numpy")  # type: ignore[no-any-return]


def _read_only(dtype: Any, ndim: int, layout: str = "C") -> Any:
    return types.Array(dtype, ndim, layout, readonly=True)


_CACHE_DIR_BEFORE = numba.config.CACHE_DIR
_CACHE = _choose_cache()

_f4, _f8, _i8, _u8 = types.float32, types.float64, types.int64, types.uint64


@_kernel(
    _read_only(_f4, 3, "A"),
    types.Array(_f4, 3, "A"),
    _read_only(_i8, 2),
    _read_only(_f8, 2),
    types.boolean,
    types.boolean,
    _read_only(_f4, 1),
    _read_only(_f4, 1),
    _i8,
    _i8,
)
def resize_axis(source, target, indices, weights, spline, clip, low, high, first, last):  # type: ignore[no-untyped-def]  # noqa: D417
    """Resample the middle axis of (outer, n, inner) to that of (outer, m, inner).

    Args:
        source: (outer, n, inner), any strides.
        target: (outer, m, inner), any strides; written.
        indices: (m, taps) source voxels of each target voxel (1, 2 or 4 taps); counted in the padded
            line when ``spline``.
        weights: (m, taps).
        spline: Whether to pad with 12 edge voxels and apply the cubic spline filter first, as SciPy does.
        clip: Whether to clip to ``low`` and ``high`` (one value for each outer index).
        first: First unit; a unit is a block of ``BLOCK`` lines.
        last: One past the last unit.
    """
    n = source.shape[1]
    m, taps = indices.shape
    inner = source.shape[2]
    blocks = (inner + BLOCK - 1) // BLOCK
    pad = SPLINE_PAD if spline else 0
    length = n + 2 * pad
    line = np.zeros((length, BLOCK), dtype=np.float64)
    inside = line[pad : pad + n]
    for unit in range(first, last):
        o = unit // blocks
        begin = (unit % blocks) * BLOCK
        width = min(BLOCK, inner - begin)
        # views whose indices start at 0: an index that could be negative would keep loops from being vectorised
        read = source[o, :, begin : begin + width]
        written = target[o, :, begin : begin + width]
        for i in range(n):
            for j in range(width):
                inside[i, j] = read[i, j]
        if spline:
            for i in range(pad):
                line[i] = inside[0]
                line[pad + n + i] = inside[n - 1]
            for i in range(length):
                for j in range(BLOCK):
                    line[i, j] *= 6.0
            # the half-sample symmetric start of SciPy's filter; what is left out is below 1e-14 of the line
            power = _POLE
            start = line[0].copy()
            for i in range(min(length, _CAUSAL_TERMS)):
                for j in range(BLOCK):
                    start[j] += power * line[i, j]
                power *= _POLE
            line[0] = start
            for i in range(1, length):
                for j in range(BLOCK):
                    line[i, j] += _POLE * line[i - 1, j]
            for j in range(BLOCK):
                line[length - 1, j] *= _POLE / (_POLE - 1.0)
            for i in range(length - 2, -1, -1):
                for j in range(BLOCK):
                    line[i, j] = _POLE * (line[i + 1, j] - line[i, j])
        for k in range(m):
            if taps == 4:
                i = indices[k, 0]
                w0, w1, w2, w3 = weights[k, 0], weights[k, 1], weights[k, 2], weights[k, 3]
                a, b, c, d = line[i], line[i + 1], line[i + 2], line[i + 3]
                for j in range(width):
                    written[k, j] = np.float32(w0 * a[j] + w1 * b[j] + w2 * c[j] + w3 * d[j])
            elif taps == 2:
                w0, w1 = weights[k, 0], weights[k, 1]
                a, b = line[indices[k, 0]], line[indices[k, 1]]
                for j in range(width):
                    written[k, j] = np.float32(w0 * a[j] + w1 * b[j])
            else:
                a = line[indices[k, 0]]
                for j in range(width):
                    written[k, j] = np.float32(a[j])
            if clip:
                for j in range(width):
                    written[k, j] = min(max(written[k, j], low[o]), high[o])


@_kernel(types.Array(_f4, 4, "C"), _read_only(_f4, 4), _read_only(_f4, 3), _i8, _i8, _i8, _i8, _i8)
def add_window(ring, logits, gaussian, plane, y, x, first, last):  # type: ignore[no-untyped-def]  # noqa: D417
    """Add the weighted logits of a window to the ring; a unit is one head of one plane.

    Args:
        ring: (slots, heads, y, x); plane p of the volume lies in slot p modulo slots. Changed.
        logits: (heads, *patch).
        gaussian: (*patch).
        plane: First plane of the window in the volume.
        y: First row of the window.
        x: First column of the window.
    """
    heads = logits.shape[0]
    for unit in range(first, last):
        z, head = unit // heads, unit % heads
        slot = (plane + z) % ring.shape[0]
        for j in range(logits.shape[2]):
            sums = ring[slot, head, y + j, x : x + logits.shape[3]]
            values = logits[head, z, j]
            weights = gaussian[z, j]
            for i in range(len(values)):
                sums[i] += values[i] * weights[i]


@_kernel(types.Array(_f4, 4, "C"), _read_only(types.uint16, 4), _read_only(_f4, 3), _i8, _i8, _i8, _i8, _i8)
def add_half_window(ring, logits, gaussian, plane, y, x, first, last):  # type: ignore[no-untyped-def]
    """Add a window whose logits are float16, given as their bits; else as :func:`add_window`."""
    heads = logits.shape[0]
    scale = np.float32(2.0**112)
    bits = np.empty(logits.shape[3], dtype=np.uint32)
    numbers = bits.view(np.float32)
    for unit in range(first, last):
        z, head = unit // heads, unit % heads
        slot = (plane + z) % ring.shape[0]
        for j in range(logits.shape[2]):
            sums = ring[slot, head, y + j, x : x + logits.shape[3]]
            values = logits[head, z, j]
            weights = gaussian[z, j]
            for i in range(len(values)):
                bits[i] = (values[i] & 0x7FFF) << 13
            # exact for zero, subnormal and normal numbers: a multiplication moves the exponent
            for i in range(len(values)):
                numbers[i] *= scale
            for i in range(len(values)):
                sign = (values[i] & 0x8000) << 16
                infinite = 0x7F800000 if (values[i] & 0x7C00) == 0x7C00 else 0
                bits[i] |= sign | infinite
            for i in range(len(values)):
                sums[i] += numbers[i] * weights[i]


@_kernel(
    types.Array(_f4, 4, "C"),
    _read_only(_f4, 3),
    _read_only(_i8, 1),
    _read_only(_i8, 1),
    _read_only(_i8, 1),
    _i8,
    _i8,
    returns=types.boolean,
)
def divide_by_weights(ring, gaussian, z_starts, y_starts, x_starts, first, last):  # type: ignore[no-untyped-def]  # noqa: D417
    """Divide finished planes by the sum of the weights that their windows had; a unit is one plane of the volume.

    The weights are summed again in the order of the windows, so that they round as the logits did.

    Args:
        ring: As in :func:`add_window`. Changed.
        gaussian: (*patch).
        z_starts: First planes of all windows; likewise ``y_starts`` and ``x_starts``.

    Returns:
        Whether every logit is finite.
    """
    slots, heads, rows, columns = ring.shape
    weights = np.empty((rows, columns), dtype=np.float32)
    bad = 0
    for plane in range(first, last):
        weights[:] = np.float32(0)
        for z in z_starts:
            if z <= plane < z + gaussian.shape[0]:
                for y in y_starts:
                    for x in x_starts:
                        for j in range(gaussian.shape[1]):
                            sums = weights[y + j, x : x + gaussian.shape[2]]
                            values = gaussian[plane - z, j]
                            for i in range(len(values)):
                                sums[i] += values[i]
        for head in range(heads):
            for j in range(rows):
                line = ring[plane % slots, head, j]
                bits = line.view(np.uint32)
                weight = weights[j]
                for i in range(columns):
                    line[i] /= weight[i]
                for i in range(columns):
                    bad |= 1 if (bits[i] & 0x7F800000) == 0x7F800000 else 0
    return bad == 0


@_kernel(
    _read_only(_f4, 4, "A"),
    _read_only(_f4, 3),
    _i8,
    _i8,
    _i8,
    _f4,
    _i8,
    _read_only(_u8, 1),
    _read_only(_u8, 1),
    _read_only(_f4, 1),
    types.boolean,
    types.Array(_f4, 1, "C"),
    types.Array(_f4, 1, "C"),
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


_SOURCE = (_read_only(_f4, 4, "A"), _read_only(_f4, 3))
_AXIS = (_read_only(_i8, 1), _read_only(_i8, 1), _read_only(_f4, 1))
_COLUMNS = (_read_only(_u8, 1), _read_only(_u8, 1), _read_only(_f4, 1), types.boolean)


@_kernel(*_SOURCE, types.Array(types.uint16, 3, "C"), *_AXIS, *_AXIS, *_COLUMNS, types.boolean, _f4, _i8, _i8)
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


@_kernel(*_SOURCE, types.Array(_f4, 4, "C"), *_AXIS, *_AXIS, *_COLUMNS, _i8, _i8)
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


numba.config.CACHE_DIR = _CACHE_DIR_BEFORE
