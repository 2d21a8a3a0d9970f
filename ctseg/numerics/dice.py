"""The Dice coefficient of two masks."""

from typing import Any

import numpy as np
import numpy.typing as npt


def dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return twice the common voxels over the sum of both, 0 to 1; NaN when both masks are empty.

    Source:
        nnU-Net's ``compute_metrics``, which says NaN for two empty masks too.
    """
    return dice_of_counts(int(np.count_nonzero(one & other)), int(np.count_nonzero(one)), int(np.count_nonzero(other)))


def dice_of_counts(common: int, one: int, other: int) -> float:
    """Return the Dice coefficient of counted voxels; NaN when both masks are empty."""
    total = one + other
    return 2 * common / total if total else float("nan")


def dice_of_label(one: npt.NDArray[Any], other: npt.NDArray[Any], values: tuple[int, ...]) -> float:
    """Return the Dice coefficient of one label, or of the union of several, in two label maps."""
    return dice(np.isin(one, values), np.isin(other, values))
