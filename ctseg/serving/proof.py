"""A served model is proven by a random patch: a server can be ready and answer nothing, or NaN.

The serving container's readiness process uses it too: only numpy is loaded.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def random_patches(shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return patches of standard normal numbers, the same at each call.

    Args:
        shape: (patches, channels, z, y, x).
    """
    return np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32)


def is_answer(logits: npt.NDArray[Any]) -> bool:
    """Whether logits are an answer to random patches: numbers, all of them finite."""
    return logits.size > 0 and bool(np.isfinite(logits).all())
