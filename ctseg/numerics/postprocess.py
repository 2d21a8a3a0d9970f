"""The post-processing steps of a spec or an ensemble, on the finished label map."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ctseg.arrays import LabelMap
from ctseg.model_spec import KeepLargest
from ctseg.numerics.decide import look_up


def apply_postprocessing(labels: LabelMap, steps: Sequence[KeepLargest]) -> LabelMap:
    """Apply steps in their order.

    Args:
        labels: (z, y, x); not changed.
        steps: Of a spec or an ensemble.

    Returns:
        A label map of the same dtype; ``labels`` itself when there are no steps.
    """
    for groups in _at_once([step.labels for step in steps]):
        labels = keep_largest_components(labels, groups)
    return labels


def keep_largest_components(labels: LabelMap, groups: Sequence[tuple[int, ...]]) -> LabelMap:
    """Keep the largest connected component of each group of labels; the rest of them becomes background.

    Voxels that touch by a face, an edge or a corner are connected. Of several largest components all stay.

    Args:
        labels: (z, y, x); not changed.
        groups: Labels that are taken together; no label is in two groups. However many there are, the label
            map is gone through once.

    Returns:
        A new label map of the same dtype.

    Source:
        nnU-Net's ``remove_all_but_largest_component_from_segmentation``, called for one group after the other.
    """
    result: LabelMap = labels.copy()
    of_label = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.min_scalar_type(len(groups)))
    for number, values in enumerate(groups, 1):
        of_label[[value for value in values if value < len(of_label)]] = number
    grouped = look_up(of_label, labels)
    box = ndimage.find_objects((grouped != 0).view(np.uint8))
    if not box or box[0] is None:
        return result
    _remove_smaller(np.ascontiguousarray(grouped[box[0]]), len(groups), result[box[0]])
    return result


def _remove_smaller(grouped: npt.NDArray[np.unsignedinteger], groups: int, result: LabelMap) -> None:
    """Set to 0 in ``result`` what is not the largest component of its group; 0 is no group."""
    components, count = _components(grouped)
    sizes = np.zeros(count + 1, dtype=np.int64)
    group_of = np.zeros(count + 1, dtype=grouped.dtype)
    # plane by plane, because NumPy makes indices of 8 bytes
    for plane, groups_there in zip(components, grouped, strict=True):
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
        group_of[plane] = groups_there
    largest = np.zeros(groups + 1, dtype=np.int64)
    np.maximum.at(largest, group_of, sizes)
    removed = sizes < largest[group_of]
    removed[0] = False
    if removed.any():
        for plane, target in zip(components, result, strict=True):
            target[removed[plane]] = 0


def _components(grouped: npt.NDArray[np.unsignedinteger]) -> tuple[npt.NDArray[Any], int]:
    """Return the number of the component of each voxel, 0 for background, and how many components there are."""
    import cc3d  # only models with steps need it

    # cc3d makes its table too small for a few voxels in a row, such as 1 0 1
    padded = np.pad(grouped, [(0, int(side == 1)) for side in grouped.shape]) if 1 in grouped.shape else grouped
    components, count = cc3d.connected_components(padded, connectivity=26, return_N=True)
    depth, height, width = grouped.shape
    return components[:depth, :height, :width], int(count)


def _at_once(steps: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Join steps that follow each other and have no label in common: one does not see what another removes."""
    joined: list[tuple[int, ...]] = []
    for values in steps:
        if joined and set(values) & {value for group in joined for value in group}:
            yield joined
            joined = []
        joined.append(values)
    if joined:
        yield joined
