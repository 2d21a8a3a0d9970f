"""Which label a voxel gets from its logits: the one rule, which the fused kernel of ``restore_kernels`` follows too."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.model_spec import ModelSpec

REGION_THRESHOLD = np.float32(1.5 * 2.0**-24)
"""The largest logit whose sigmoid, as torch computes it in float32, is not above 0.5."""


class Decision:
    """Decides head by head, so that the logits of one head at a time suffice.

    Labels: the highest logit wins, the lowest head among equals. Regions: the last head above
    :data:`REGION_THRESHOLD` wins, none gives background.

    Args:
        spec: The network's contract.
        shape: Of the voxels to decide.

    Source:
        nnU-Net's ``convert_logits_to_segmentation``: argmax for labels; for regions, sigmoid above 0.5, written
        in ``regions_class_order``.
    """

    def __init__(self, spec: ModelSpec, shape: tuple[int, ...]) -> None:
        self._regions = spec.has_regions
        self._values = values_of_indices(spec)
        self._indices = np.zeros(shape, dtype=np.uint16)
        self._best: npt.NDArray[np.float32] | None = None
        self._head = 0

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Add the logits of the next head; not kept, not changed."""
        if self._regions:
            self._indices[logits > REGION_THRESHOLD] = self._head + 1
        elif self._best is None:
            self._best = np.array(logits)
        else:
            higher = logits > self._best
            self._indices[higher] = self._head
            np.copyto(self._best, logits, where=higher)
        self._head += 1

    @property
    def labels(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The values of the label map, after every head has been added."""
        return look_up(self._values, self._indices)


def look_up(values: npt.NDArray[np.unsignedinteger], indices: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[Any]:
    """Return ``values[indices]``, plane by plane, because NumPy makes indices of 8 bytes."""
    found = np.empty(indices.shape, values.dtype)
    for plane in range(len(found)):
        found[plane] = values[indices[plane]]
    return found


def values_of_indices(spec: ModelSpec) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Return the value of the label map for each index that a decision can give; uint8 where all fit.

    An index is a head for labels; for regions 0 is background, and one more than the head else.
    """
    values = [0, *spec.written_values] if spec.has_regions else spec.written_values
    return np.array(values, dtype=np.uint8 if max(values) <= 255 else np.uint16)


def labels_of_logits(
    logits: npt.NDArray[np.float32], spec: ModelSpec
) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Turn logits (heads, *spatial) into the values of the label map, (*spatial)."""
    decision = Decision(spec, logits.shape[1:])
    for head in logits:
        decision.add(head)
    return decision.labels
