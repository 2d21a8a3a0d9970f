"""Which flips test-time mirroring averages over."""

from collections.abc import Sequence
from itertools import combinations


def mirror_subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all subsets of the mirror axes, the empty one (no flip) first.

    Source:
        nnU-Net's ``_internal_maybe_mirror_and_predict``.
    """
    return [subset for size in range(len(axes) + 1) for subset in combinations(sorted(axes), size)]
