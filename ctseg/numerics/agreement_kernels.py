"""The compiled loop that counts how far folds agree.

Units, threads and rounding: see :mod:`ctseg.compiled.declaring`.
"""

# mypy: disable-error-code="attr-defined,no-untyped-call,call-overload"

import numpy as np

from ctseg.compiled.declaring import array, boolean, f4, f8, i8, kernel, read_only


@kernel(read_only(f4, 4, "A"), i8, boolean, f4, array(f8, 3), i8, i8)
def count_agreement(slab, heads, regions, threshold, sums, first, last):  # type: ignore[no-untyped-def]  # noqa: D417
    """Sum votes over all voxels, and over those that the ensemble gives to a head; a unit is a plane.

    Args:
        slab: (heads + voted heads, planes, y, x): blended logits, and shares of folds behind them.
        heads: How many there are.
        regions: Whether a voxel may belong to several heads: those above the threshold; else to the highest one.
        threshold: The largest logit of a region that leaves the voxel out.
        sums: (planes, 3, voted heads): votes, votes where the ensemble has the head, and its voxels; written.
    """
    voted = slab.shape[0] - heads
    begin = heads - voted
    rows, columns = slab.shape[2], slab.shape[3]
    best = np.empty(columns, np.float32)
    index = np.empty(columns, np.int64)
    for plane in range(first, last):
        sums[plane] = 0.0
        for j in range(rows):
            if not regions:
                for i in range(columns):
                    best[i] = slab[0, plane, j, i]
                    index[i] = 0
                for head in range(1, heads):
                    for i in range(columns):
                        if slab[head, plane, j, i] > best[i]:
                            best[i] = slab[head, plane, j, i]
                            index[i] = head
            for vote in range(voted):
                total = 0.0
                inside = 0.0
                voxels = 0.0
                for i in range(columns):
                    share = np.float64(slab[heads + vote, plane, j, i])
                    total += share
                    has = slab[begin + vote, plane, j, i] > threshold if regions else index[i] == begin + vote
                    if has:
                        inside += share
                        voxels += 1.0
                sums[plane, 0, vote] += total
                sums[plane, 1, vote] += inside
                sums[plane, 2, vote] += voxels
