"""Votes of folds behind the logits: for each head but the background's, the share of folds that give it a voxel.

The network counts them (:class:`ctseg.model_spec.Votes`). Once they are here they are further channels of the logits,
so that what flips, averages and blends the one does so with the other.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Logits
from ctseg.model_spec import ModelSpec


def voted_heads(spec: ModelSpec) -> range:
    """Return the heads whose votes are looked at: all regions, or all labels but the background."""
    return range(0 if spec.has_regions else 1, spec.num_heads)


def num_channels(spec: ModelSpec, *, votes: bool) -> int:
    """Return how many channels an answer has: the heads, and behind them the votes where they are asked for."""
    return spec.num_heads + (len(voted_heads(spec)) if votes else 0)


def logits_and_votes(logits: npt.NDArray[Any], counts: npt.NDArray[np.uint8], spec: ModelSpec) -> Logits:
    """Put votes behind logits.

    Args:
        logits: (batch, heads, *spatial), of any float type.
        counts: (batch, heads, *spatial): for each head how many folds give the voxel to it.
        spec: The network's contract, which has votes.

    Returns:
        (batch, heads + voted heads, *spatial), float32, a new array: the logits, and the shares of folds from 0 to 1.

    Raises:
        ValueError: The spec has no votes.
    """
    if spec.votes is None:
        raise ValueError(f"{spec.name}: expected a network whose folds vote")
    heads = spec.num_heads
    answer = np.empty((len(logits), num_channels(spec, votes=True), *logits.shape[2:]), np.float32)
    answer[:, :heads] = logits
    np.divide(counts[:, voted_heads(spec).start :], np.float32(spec.votes.folds), out=answer[:, heads:])
    return answer
