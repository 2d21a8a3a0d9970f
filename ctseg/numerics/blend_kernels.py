"""The compiled loops that blend windows.

Units, threads and rounding: see :mod:`ctseg.compiled.declaring`.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import numpy as np

from ctseg.compiled.declaring import array, boolean, f4, i8, kernel, read_only


@kernel(array(f4, 4, "C"), read_only(f4, 4), read_only(f4, 3), i8, i8, i8, i8, i8)
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


@kernel(
    array(f4, 4, "C"),
    read_only(f4, 3),
    read_only(i8, 1),
    read_only(i8, 1),
    read_only(i8, 1),
    i8,
    i8,
    returns=boolean,
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
