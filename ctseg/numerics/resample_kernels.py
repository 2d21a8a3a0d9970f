"""The compiled loop that resamples along an axis.

Units, threads and rounding: see :mod:`ctseg.compiled.declaring`.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import numpy as np

from ctseg.compiled.declaring import array, boolean, f4, f8, i8, kernel, read_only

BLOCK = 64
"""Lines that :func:`resize_axis` works on at once: far rows are read in long runs, the scratch stays in the cache."""
SPLINE_PAD = 12
"""Voxels that SciPy repeats at both ends before its spline filter."""

_POLE = 3.0**0.5 - 2.0
_CAUSAL_TERMS = 32


@kernel(
    read_only(f4, 3, "A"),
    array(f4, 3, "A"),
    read_only(i8, 2),
    read_only(f8, 2),
    boolean,
    boolean,
    read_only(f4, 1),
    read_only(f4, 1),
    i8,
    i8,
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
