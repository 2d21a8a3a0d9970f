"""A reader of contours by the plain definition: a pixel is inside if a line from its centre crosses an odd number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def pixels_inside(contours: Sequence[npt.NDArray[Any]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centres lie in an odd number of contours; lines run down the columns.

    Args:
        contours: Each (points, 2): row and column, pixel centres at whole numbers.
        shape: Rows and columns.
    """
    crossings = np.zeros(shape, int)
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    for points in contours:
        for (row, column), (next_row, next_column) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crossed = (columns > column) != (columns > next_column)
            at = row + (next_row - row) * (columns[crossed] - column) / (next_column - column)
            crossings[:, crossed] += rows[:, None] < at
    return crossings % 2 == 1
