"""How much memory a case of a recipe will take, from the headers of its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ctseg.files.volume import VolumeHeader
from ctseg.model_spec import ModelSpec
from ctseg.predict.estimate import (
    MemoryEstimate,
    WindowLoad,
    estimate_memory,
    is_restored_by_planes,
    network_run_bytes,
    prepared_bytes,
)
from ctseg.predict.preparations import preparation_key
from ctseg.recipe import CascadeStep, CropStep, EnsembleStep, ModelStep, Recipe, Step, UnionStep, models_of

_LABEL = 2
"""Bytes of a voxel of a label map at most."""


def estimate_recipe(
    header: VolumeHeader,
    recipe: Recipe,
    specs: Mapping[str, ModelSpec],
    loads: Mapping[str, WindowLoad],
    *,
    saves_probabilities: bool = False,
) -> MemoryEstimate:
    """Estimate the memory that segmenting a case takes.

    A crop may be as large as the scan: where it will lie is not known before the labels are found.

    Args:
        header: What the files say.
        recipe: What is done.
        specs: Of the members.
        loads: How their windows are run.
        saves_probabilities: Whether probabilities are written.

    Raises:
        InputError: The scan would have no voxel at a network's spacing.
    """
    estimator = _Estimator(header, specs, loads, saves_probabilities)
    largest = max((estimator.alone(name) for name in specs), key=lambda estimate: estimate.peak_bytes)
    return replace(largest, peak_bytes=estimator.peak(recipe.step) + estimator.prepared_ahead(recipe.step))


@dataclass(frozen=True)
class _Estimator:
    header: VolumeHeader
    specs: Mapping[str, ModelSpec]
    loads: Mapping[str, WindowLoad]
    saves_probabilities: bool

    def alone(self, name: str) -> MemoryEstimate:
        """Estimate one member by itself."""
        return estimate_memory(
            self.header, self.specs[name], self.loads[name], saves_probabilities=self.saves_probabilities
        )

    @property
    def labels(self) -> int:
        """What a label map takes on the grid of the scan."""
        return _LABEL * prod(self.header.geometry.shape)

    def peak(self, step: Step) -> int:
        """Return what a step takes, the scan itself included."""
        match step:
            case ModelStep():
                return self.alone(step.model).peak_bytes
            case CascadeStep():
                return max(self.alone(step.previous).peak_bytes, self.alone(step.model).peak_bytes)
            case EnsembleStep():
                return self._ensemble(step)
            case CropStep():
                return max(self.peak(step.finder), self.peak(step.inside) + self.header.voxel_bytes + self.labels)
            case UnionStep():
                return max(self.peak(part.step) for part in step.parts) + self.labels

    def prepared_ahead(self, step: Step) -> int:
        """Return what prepared scans take that wait for their network, or are kept for another one."""
        keys = {preparation_key(self.specs[name]): name for name in models_of(step)}
        sizes = sorted(prepared_bytes(self.header, self.specs[name]) for name in keys.values())
        return sum(sizes[1:])

    def _ensemble(self, step: EnsembleStep) -> int:
        names = [member.model for member in step.members]
        peaks = [self.alone(name).peak_bytes for name in names]
        parts = [network_run_bytes(self.header, self.specs[name], self.loads[name]) for name in names]
        largest = max(range(len(names)), key=peaks.__getitem__)
        first = max(self.peak(member) for member in step.members)
        others = sum(part for index, part in enumerate(parts) if index != largest)
        spec = self.specs[names[0]]
        sides = self.header.geometry.shape
        mean = 4 * spec.num_heads * prod(sides)
        if self._has_common_planes(names):
            mean //= min(sides)  # a plane at a time
        return max(first, peaks[largest] + others + mean)

    def _has_common_planes(self, names: Sequence[str]) -> bool:
        specs = [self.specs[name] for name in names]
        return len({spec.transpose_forward for spec in specs}) == 1 and all(
            is_restored_by_planes(self.header, spec) for spec in specs
        )
