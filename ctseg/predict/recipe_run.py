"""The steps of a recipe on one scan."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

import numpy as np

from ctseg.arrays import LabelMap, Probabilities
from ctseg.files.probabilities import ProbabilityFile
from ctseg.model_spec import ModelSpec
from ctseg.numerics.box import box_of_labels
from ctseg.numerics.ensemble import PlaneMean, have_common_planes, mean_of_whole
from ctseg.numerics.planes import Where
from ctseg.numerics.postprocess import apply_postprocessing
from ctseg.numerics.restore import LabelRestorer, Receiver, probabilities_outside_crop
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.preparations import Preparations, models_on_whole, steps_on_whole
from ctseg.predict.recipe_agreement import agreement_of_union
from ctseg.predict.segment import (
    CaseContext,
    NetworkRun,
    Scan,
    Segmentation,
    WindowOptions,
    probabilities_receiver,
    segment,
)
from ctseg.recipe import (
    CascadeStep,
    CropStep,
    EnsembleStep,
    ModelStep,
    Recipe,
    Step,
    UnionStep,
    labels_of,
    models_of,
)


@dataclass(frozen=True, eq=False)
class _Labelled:
    """What a step gives: labels, and how far the folds of the networks that gave them agree, by the labels' names."""

    labels: LabelMap
    agreement: Mapping[str, float] = field(default_factory=dict)


class _OnScan:
    """What the steps that see one scan share: prepared scans, and label maps that are needed again.

    Args:
        step: What is done with the scan.
        scan: The scan.
        specs: Of the members, by name.
    """

    def __init__(self, step: Step, scan: Scan, specs: Mapping[str, ModelSpec]) -> None:
        self.scan = scan
        self.prepare = Preparations(scan, [specs[name] for name in models_on_whole(step)])
        self._uses = steps_on_whole(step)
        self._known: dict[Step, _Labelled] = {}

    def labels(self, step: ModelStep | CascadeStep | EnsembleStep, run: Callable[[], _Labelled]) -> _Labelled:
        """Return a step's labels; it is run when they are asked for first."""
        labels = self._known.pop(step, None)
        if labels is None:
            labels = run()
        self._uses[step] -= 1
        if self._uses[step] > 0:
            self._known[step] = labels
        return labels


@dataclass
class RecipeRun:
    """One case of a recipe.

    Attributes:
        queues: Run the members' networks, by name.
        options: How windows are laid and run.
        context: What belongs to the case.
        windows: How many there were so far.
        bytes_sent: Of the tensors so far, repeated requests not counted.
        bytes_received: Likewise.
        warnings: What a person is to know of the case.
    """

    queues: Mapping[str, InferenceQueue]
    options: WindowOptions
    context: CaseContext
    windows: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    warnings: list[str] = field(default_factory=list)

    def segment(self, recipe: Recipe, scan: Scan) -> Segmentation:
        """Segment a scan; see ``CaseSegmenter.segment``."""
        result = self._labels(recipe.step, self._on(recipe.step, scan), self.context.probabilities)
        return Segmentation(
            result.labels, self.windows, self.bytes_sent, self.bytes_received, tuple(self.warnings),
            agreement=result.agreement,
        )  # fmt: skip

    @property
    def _specs(self) -> Mapping[str, ModelSpec]:
        return {name: queue.predictor.spec for name, queue in self.queues.items()}

    def _on(self, step: Step, scan: Scan) -> _OnScan:
        return _OnScan(step, scan, self._specs)

    def _labels(self, step: Step, on: _OnScan, probabilities: ProbabilityFile | None = None) -> _Labelled:
        """Run a step.

        Args:
            step: The step.
            on: What it sees.
            probabilities: Filled, if given; the step is a model, a cascade or an ensemble.
        """
        match step:
            case ModelStep() | CascadeStep():
                return on.labels(step, lambda: self._network(step, on, probabilities))
            case EnsembleStep():
                return on.labels(step, lambda: _Labelled(self._ensemble(step, on, probabilities)))
            case CropStep():
                return self._crop(step, on)
            case UnionStep():
                return self._union(step, on)

    def _network(self, step: ModelStep | CascadeStep, on: _OnScan, probabilities: ProbabilityFile | None) -> _Labelled:
        context = self._after(step, on) if isinstance(step, CascadeStep) else self.context
        result = self._model(step.model, on, replace(context, probabilities=probabilities))
        return _Labelled(result.labels, result.agreement)

    def _model(self, name: str, on: _OnScan, context: CaseContext, *, postprocess: bool = True) -> Segmentation:
        queue = self.queues[name]
        result = segment(on.scan, queue, self.options, context, prepare=on.prepare, postprocess=postprocess)
        self._count(result)
        return result

    def _count(self, result: Segmentation | NetworkRun) -> None:
        self.windows += result.windows
        self.bytes_sent += result.bytes_sent
        self.bytes_received += result.bytes_received

    def _after(self, step: CascadeStep, on: _OnScan) -> CaseContext:
        """Return the context of a cascade's second stage: it gets the labels of the first."""
        context = replace(self.context, probabilities=None)
        previous = self._model(step.previous, on, context, postprocess=step.postprocess_previous)
        return replace(context, previous=previous.labels)

    def _ensemble(self, step: EnsembleStep, on: _OnScan, probabilities: ProbabilityFile | None) -> LabelMap:
        contexts = [
            self._after(member, on) if isinstance(member, CascadeStep) else replace(self.context, probabilities=None)
            for member in step.members
        ]
        runs = [
            NetworkRun(on.scan, self.queues[member.model], self.options, context, on.prepare)
            for member, context in zip(step.members, contexts, strict=True)
        ]
        members = [(run.spec, run.record) for run in runs]
        if have_common_planes(members):
            labels = self._mean_by_planes(runs, probabilities)
        else:
            labels = self._mean_of_whole(runs, probabilities)
        for run in runs:
            self._count(run)
        with self.context.clock.stage("restore"):
            return apply_postprocessing(labels, step.postprocessing)

    def _mean_by_planes(self, runs: Sequence[NetworkRun], probabilities: ProbabilityFile | None) -> LabelMap:
        clock, first = self.context.clock, runs[0]
        with clock.stage("restore"):
            receiver = probabilities_receiver(probabilities, first.spec, first.record)
            mean = PlaneMean([(run.spec, run.record) for run in runs], on_probabilities=receiver)
        with ExitStack() as stack:
            slabs = [stack.enter_context(closing(run.slabs(beside=len(runs) - 1))) for run in runs]
            while (index := mean.next_member()) is not None:
                slab = next(slabs[index])
                with clock.stage("restore"):
                    mean.add(index, slab)
            for rest in slabs:
                for _ in rest:  # nothing is left but to note that all windows are back
                    pass
        return mean.finish()

    def _mean_of_whole(self, runs: Sequence[NetworkRun], probabilities: ProbabilityFile | None) -> LabelMap:
        clock, spec = self.context.clock, runs[0].spec
        shape = (spec.num_heads, *runs[0].record.shape)
        total: Probabilities = np.zeros(shape, np.float32)
        for run in runs:
            _add_outside(total, run)
            restorer = LabelRestorer(run.spec, run.record, on_probabilities=_adding_to(total))
            with closing(run.slabs()) as slabs:
                for slab in slabs:
                    with clock.stage("restore"):
                        restorer.add(slab)
            with clock.stage("restore"):
                restorer.finish()
        with clock.stage("restore"):
            labels = mean_of_whole(total, len(runs), spec)
            if probabilities is not None:
                probabilities.allocate(shape)[:] = total
        return labels

    def _looked_for(self, step: CropStep) -> list[str]:
        """Return the names of the labels whose box counts; their values, where these are a part of a region."""
        values = set(step.labels)
        named = {name: whole for name, whole in labels_of(step.finder, self._specs).items() if values.issuperset(whole)}
        return [*named, *(str(value) for value in sorted(values.difference(*named.values())))]

    def _crop(self, step: CropStep, on: _OnScan) -> _Labelled:
        scan = on.scan
        found = self._labels(step.finder, on).labels
        box = box_of_labels(found, step.labels, step.margin_mm, scan.spacing_mm)
        del found
        if box is None:
            who, which = ", ".join(models_of(step.finder)), ", ".join(self._looked_for(step))
            what = "its label map is empty" if step.nothing_found == "empty" else "the whole scan was segmented"
            self.warnings.append(f"{who} found nothing of {which}: {what}")
            if step.nothing_found == "empty":
                return _Labelled(self._background(step.inside, scan))
            return self._labels(step.inside, self._on(step.inside, scan))
        z, y, x = box
        cut = Scan(np.array(scan.voxels[:, z, y, x], order="K"), scan.spacing_mm)  # as a file of this part is read
        inside = self._labels(step.inside, self._on(step.inside, cut))
        labels: LabelMap = np.zeros(scan.voxels.shape[1:], inside.labels.dtype)
        labels[box] = inside.labels
        return _Labelled(labels, inside.agreement)

    def _background(self, step: Step, scan: Scan) -> LabelMap:
        """Return a label map of a step without labels, of the type that all of its label maps have."""
        highest = max(value for values in labels_of(step, self._specs).values() for value in values)
        labels: LabelMap = np.zeros(scan.voxels.shape[1:], np.uint8 if highest <= 255 else np.uint16)
        return labels

    def _union(self, step: UnionStep, on: _OnScan) -> _Labelled:
        union = self._background(step, on.scan)
        agreements = []
        for part in step.parts:
            found = self._labels(part.step, on)
            agreements.append(found.agreement)
            with self.context.clock.stage("restore"):
                _write_over(union, found.labels, part.values)
            del found
        return _Labelled(union, agreement_of_union(step, self._specs, agreements))


def _add_outside(total: Probabilities, run: NetworkRun) -> None:
    """Add a network's probabilities outside the crop."""
    outside = probabilities_outside_crop(run.spec)
    for head in np.flatnonzero(outside):
        inside = total[head][run.record.crop_as_read].copy()
        total[head] += outside[head]
        total[head][run.record.crop_as_read] = inside


def _adding_to(total: Probabilities) -> Receiver:
    def add(where: Where, part: Probabilities) -> None:
        z, y, x = where
        total[:, z, y, x] += part

    return add


def _write_over(union: LabelMap, labels: LabelMap, values: Mapping[int, int]) -> None:
    """Write labels into a union by their new values, plane by plane; what has none is left out."""
    table = np.zeros(max(int(labels.max(initial=0)), *values) + 1, union.dtype)
    for value, new in values.items():
        table[value] = new
    for target, plane in zip(union, labels, strict=True):
        renamed = table[plane]
        np.copyto(target, renamed, where=renamed != 0)
