"""Whether numbers are numbers."""

import numpy as np
import numpy.typing as npt


def all_finite(values: npt.NDArray[np.float32]) -> bool:
    """Return whether no value is NaN or infinite.

    Reads the memory once and takes none: one product with itself is finite only if every value is, and only where it
    is not are they looked at one by one, since the squares of large values overflow.

    Args:
        values: C-contiguous, any shape.
    """
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(flat).all())
