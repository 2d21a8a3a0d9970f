"""The compiled loops that resample label maps.

Units, threads and rounding: see :mod:`ctseg.compiled.declaring`.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import numpy as np

from ctseg.compiled.declaring import array, boolean, f8, i2, i8, kernel, read_only

_HALF_SPLITTER = np.float32(8193)
"""2^13 + 1: what Dekker's splitting of a float32 takes to leave as many bits as a float16 has."""


@kernel(read_only(i2, 1), i2, read_only(f8, 1), read_only(f8, 1), read_only(f8, 1), returns=f8)
def score_in_float64(labels, label, z, y, x):  # type: ignore[no-untyped-def]  # noqa: D103
    # SciPy's zoom: a product for each corner, summed corner by corner; scikit-image clips the sum to 1
    score = 0.0
    for corner in range(8):
        if labels[corner] == label:
            score += z[corner >> 2] * y[(corner >> 1) & 1] * x[corner & 1]
    return min(score, 1.0)


@kernel(read_only(i2, 1), i2, read_only(f8, 1), read_only(f8, 1), read_only(f8, 1), returns=f8)
def score_in_float16(labels, label, z, y, x):  # type: ignore[no-untyped-def]  # noqa: D103
    # torch's interpolation of 0 and 1000 in float32, axis by axis, stored as float16
    score = np.float32(0)
    for a in range(2):
        plane = np.float32(0)
        for b in range(2):
            row = np.float32(0)
            for c in range(2):
                if labels[4 * a + 2 * b + c] == label:
                    row += np.float32(x[c]) * np.float32(1000)
            plane += np.float32(y[b]) * row
        score += np.float32(z[a]) * plane
    scaled = score * _HALF_SPLITTER
    return np.float64(scaled - (scaled - score))


_AXIS = (read_only(i8, 2), read_only(f8, 2), read_only(i8, 1))


@kernel(read_only(i2, 3, "A"), array(i2, 3, "A"), *_AXIS, *_AXIS, *_AXIS, boolean, i8, i8)
def resample_label_planes(  # type: ignore[no-untyped-def]  # noqa: D417
    source,
    target,
    z_taps,
    z_weights,
    z_nearest,
    y_taps,
    y_weights,
    y_nearest,
    x_taps,
    x_weights,
    x_nearest,
    by_torch,
    first,
    last,
):
    """Give each voxel the label with the largest interpolated share; a unit is a target plane.

    Args:
        source: (z, y, x) labels, any strides.
        target: (z, y, x), any strides; written.
        z_taps: (target planes, 2): the two source planes of each; ``z_weights``: their weights; ``z_nearest``: the
            nearest source plane. Likewise ``y_…`` and ``x_…``.
        by_torch: Whether shares are float16, and the smallest label wins a tie; else they are float64, and the nearest
            voxel's label wins a tie that it takes part in.
        first: First unit.
        last: One past the last unit.
    """
    labels = np.empty(8, np.int16)
    for k in range(first, last):
        for j in range(target.shape[1]):
            for i in range(target.shape[2]):
                here = source[z_taps[k, 0], y_taps[j, 0], x_taps[i, 0]]
                is_uniform = True
                for corner in range(8):
                    label = source[z_taps[k, corner >> 2], y_taps[j, (corner >> 1) & 1], x_taps[i, corner & 1]]
                    labels[corner] = label
                    is_uniform &= label == here
                if is_uniform:
                    target[k, j, i] = here
                    continue
                best = -1.0
                winner = here
                for corner in range(8):
                    label = labels[corner]
                    if by_torch:
                        score = score_in_float16(labels, label, z_weights[k], y_weights[j], x_weights[i])
                    else:
                        score = score_in_float64(labels, label, z_weights[k], y_weights[j], x_weights[i])
                    if score > best or (score == best and label < winner):
                        best, winner = score, label
                if not by_torch:
                    nearest = source[z_nearest[k], y_nearest[j], x_nearest[i]]
                    if nearest != winner and best == score_in_float64(
                        labels, nearest, z_weights[k], y_weights[j], x_weights[i]
                    ):
                        winner = nearest
                target[k, j, i] = winner
