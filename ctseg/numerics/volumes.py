"""How large what was found is."""

from collections.abc import Mapping
from math import floor, log10
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Spacing
from ctseg.compiled.parallel import run_parallel

_DECIMALS, _DIGITS = 3, 6


def volumes_ml(
    labels: npt.NDArray[Any],
    named_values: Mapping[str, tuple[int, ...]],
    spacing_mm: Spacing,
) -> Mapping[str, float]:
    """Return the volume of each label by its name, in millilitres; regions hold their parts.

    They are rounded to a cubic millimetre, or to six digits where that is finer: what was found is never 0.

    Args:
        labels: (z, y, x); no value above the highest named one counts.
        named_values: For each label or region, the values in the label map that belong to it.
        spacing_mm: Between voxel centres along (z, y, x).
    """
    highest = max(value for values in named_values.values() for value in values)
    counts = np.zeros((len(labels), highest + 1), np.int64)

    def count(first: int, last: int) -> None:
        for z in range(first, last):
            counts[z] = np.bincount(labels[z].ravel(), minlength=highest + 1)[: highest + 1]

    run_parallel(count, len(labels))
    voxels, voxel_ml = counts.sum(axis=0), float(np.prod(spacing_mm)) / 1000
    return {name: _rounded(int(voxels[list(values)].sum()) * voxel_ml) for name, values in named_values.items()}


def _rounded(volume_ml: float) -> float:
    return volume_ml and round(volume_ml, max(_DECIMALS, _DIGITS - 1 - floor(log10(volume_ml))))
