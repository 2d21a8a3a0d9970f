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
    preparing_bytes,
)
from ctseg.predict.preparations import models_on_whole, preparation_key, steps_on_whole
from ctseg.recipe import CascadeStep, CropStep, EnsembleStep, ModelStep, Recipe, Step, UnionStep, steps_within

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
    return replace(largest, peak_bytes=estimator.peak(recipe.step) + estimator.ahead(recipe.step))


@dataclass(frozen=True)
class _Estimator:
    header: VolumeHeader
    specs: Mapping[str, ModelSpec]
    loads: Mapping[str, WindowLoad]
    saves_probabilities: bool

    def alone(self, name: str, *, saves_probabilities: bool | None = None) -> MemoryEstimate:
        """Estimate one member by itself."""
        saves = self.saves_probabilities if saves_probabilities is None else saves_probabilities
        return estimate_memory(self.header, self.specs[name], self.loads[name], saves_probabilities=saves)

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

    def ahead(self, step: Step) -> int:
        """Return what is held for later steps: prepared scans, one of them in the making, and label maps."""
        if isinstance(step, CropStep):
            return max(self.ahead(step.finder), self.ahead(step.inside))
        if isinstance(step, EnsembleStep) and all(isinstance(member, ModelStep) for member in step.members):
            return 0  # all are prepared before the first one runs, and are counted there
        inside = max((self.ahead(inner) for inner in steps_within(step)), default=0)
        inside += self.labels * sum(uses > 1 for uses in steps_on_whole(step).values())
        specs = [self.specs[name] for name in models_on_whole(step) if self.specs[name].previous_stage is None]
        each = list({preparation_key(spec): spec for spec in specs}.values())
        if len(each) == 1:
            return inside
        sizes = sorted(prepared_bytes(self.header, spec) for spec in each)
        return inside + max(preparing_bytes(self.header, spec) for spec in each) + sum(sizes[1:-1])

    def _ensemble(self, step: EnsembleStep) -> int:
        names = [member.model for member in step.members]
        firsts = [self.alone(member.previous).peak_bytes for member in step.members if isinstance(member, CascadeStep)]
        heads, sides = self.specs[names[0]].num_heads, self.header.geometry.shape
        mean = 4 * heads * prod(sides)
        if self._has_common_planes(names):
            return max(*firsts, self._in_step(names) + mean // min(sides), 0)  # a plane at a time
        # one after the other, and what each gives is added to the mean
        peaks = (self.alone(name, saves_probabilities=True).peak_bytes for name in names)
        prepared = sum(sorted(prepared_bytes(self.header, self.specs[name]) for name in names)[1:])
        return max(*firsts, max(peaks) + prepared + mean, 0)

    def _in_step(self, names: Sequence[str]) -> int:
        loads = {name: self.loads[name].shared(len(names) - 1) for name in names}
        peaks = [estimate_memory(self.header, self.specs[name], loads[name]).peak_bytes for name in names]
        parts = [network_run_bytes(self.header, self.specs[name], loads[name]) for name in names]
        largest = max(range(len(names)), key=peaks.__getitem__)
        return peaks[largest] + sum(part for index, part in enumerate(parts) if index != largest)

    def _has_common_planes(self, names: Sequence[str]) -> bool:
        specs = [self.specs[name] for name in names]
        return len({spec.transpose_forward for spec in specs}) == 1 and all(
            is_restored_by_planes(self.header, spec) for spec in specs
        )
