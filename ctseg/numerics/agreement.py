"""How far the folds of a network agree on a case, without a reference.

For each label, with ``v`` the share of folds that give a voxel to it (averaged over flips, and over the windows that
hold the voxel, as logits are) and ``E`` the voxels that the ensemble gives to it:

    agreement = 2 * sum of v in E / (sum of v everywhere + voxels of E)

That is a Dice between what each fold says and what all of them say together. It is 1 where every fold gives the
ensemble's label, and says how far folds agree, not whether they are right: all of them may err alike.
"""

from collections.abc import Mapping

import numpy as np

from ctseg.arrays import Slab
from ctseg.compiled.loading import load_kernels
from ctseg.compiled.parallel import run_parallel
from ctseg.model_spec import ModelSpec
from ctseg.numerics.decide import REGION_THRESHOLD
from ctseg.numerics.votes import num_channels, voted_heads

KERNELS = "ctseg.numerics.agreement_kernels"

_DECIMALS = 4


class FoldAgreement:
    """Adds up votes slab by slab, on the network's grid; no volume is kept.

    Labels are decided there by the blended logits: by the highest one, or for regions by each that is above the
    threshold. Resampling to the scan and post-processing come later.

    Args:
        spec: The network's contract, which has votes.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._sums = np.zeros((3, len(voted_heads(spec))))

    def add(self, slab: Slab) -> None:
        """Add planes; in any order, each once.

        Args:
            slab: (heads + voted heads, planes, y, x), float32, any strides: blended logits, and behind them blended
                votes, see :mod:`ctseg.numerics.votes`; not kept, not changed.

        Raises:
            ValueError: It has another number of channels.
        """
        spec, planes = self._spec, slab.shape[1]
        if len(slab) != (expected := num_channels(spec, votes=True)):
            raise ValueError(f"{spec.name}: expected {expected} channels of logits and votes, found {len(slab)}")
        sums = np.empty((planes, *self._sums.shape))
        kernels = load_kernels(KERNELS)
        run_parallel(
            lambda first, last: kernels.count_agreement(
                slab, spec.num_heads, spec.has_regions, REGION_THRESHOLD, sums, first, last
            ),
            planes,
        )
        for plane in sums:  # in their order, so that how planes came together does not matter
            self._sums += plane

    @property
    def scores(self) -> Mapping[str, float]:
        """The agreement on each label or region by its name, 0 to 1; none for one that no fold gives a voxel to."""
        found = {}
        for head, (votes, inside, voxels) in zip(voted_heads(self._spec), self._sums.T, strict=True):
            if votes + voxels > 0:
                found[self._spec.labels[head].name] = round(
                    min(1.0, 2 * float(inside) / float(votes + voxels)), _DECIMALS
                )
        return found
