"""The box of labels in a label map, widened by a margin: what a crop of a scan is cut to."""

import math
from collections.abc import Collection

import numpy as np

from ctseg.arrays import LabelMap, Spacing

BoxSlices = tuple[slice, slice, slice]
"""Along (z, y, x), half open."""


def box_of_labels(labels: LabelMap, values: Collection[int], margin_mm: float, spacing_mm: Spacing) -> BoxSlices | None:
    """Return the smallest box that holds all voxels of some labels, each side widened, cut to the volume.

    Args:
        labels: (z, y, x).
        values: The labels that count.
        margin_mm: By how much each side is widened: ``ceil(margin_mm / spacing)`` voxels.
        spacing_mm: Along (z, y, x).

    Returns:
        The box; None where no voxel has one of the labels.
    """
    wanted = np.zeros(max(int(labels.max(initial=0)), *values) + 1, dtype=bool)
    wanted[list(values)] = True
    planes, rows, columns = (np.zeros(size, dtype=bool) for size in labels.shape)
    for z, plane in enumerate(labels):
        found = wanted[plane]
        planes[z] = found.any()
        if planes[z]:
            rows |= found.any(axis=1)
            columns |= found.any(axis=0)
    if not planes.any():
        return None
    box = []
    for line, spacing in zip((planes, rows, columns), spacing_mm, strict=True):
        margin = math.ceil(margin_mm / spacing)
        where = np.flatnonzero(line)
        box.append(slice(max(0, int(where[0]) - margin), min(len(line), int(where[-1]) + 1 + margin)))
    return (box[0], box[1], box[2])
