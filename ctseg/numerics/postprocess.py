"""The post-processing steps of a spec, on the finished label map."""

import numpy as np
from scipy import ndimage

from ctseg.arrays import LabelMap
from ctseg.model_spec import ModelSpec


def apply_postprocessing(labels: LabelMap, spec: ModelSpec) -> LabelMap:
    """Apply the spec's steps in their order.

    Args:
        labels: (z, y, x); not changed.
        spec: The network's contract.

    Returns:
        A label map of the same dtype; ``labels`` itself when the spec has no steps.
    """
    for step in spec.postprocessing:
        labels = keep_largest_component(labels, step.labels)
    return labels


def keep_largest_component(labels: LabelMap, values: tuple[int, ...]) -> LabelMap:
    """Keep the largest connected component of the union of some labels; the rest of them becomes background.

    Voxels that touch by a face, an edge or a corner are connected. Of several largest components all stay.

    Args:
        labels: (z, y, x); not changed.
        values: The labels that are taken together.

    Returns:
        A new label map of the same dtype.

    Source:
        nnU-Net's ``remove_all_but_largest_component_from_segmentation``.
    """
    result: LabelMap = labels.copy()
    chosen = np.zeros(int(labels.max(initial=0)) + 1, dtype=bool)
    chosen[[value for value in values if value < len(chosen)]] = True
    mask = chosen[labels]
    box = ndimage.find_objects(mask.view(np.uint8))
    if not box or box[0] is None:
        return result
    mask = mask[box[0]]
    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    if count > 1:
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        removed = sizes < sizes.max()
        removed[0] = False
        result[box[0]][removed[components]] = 0
    return result
