"""The steps of a recipe on one scan."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

import numpy as np

from ctseg.arrays import LabelMap, Probabilities
from ctseg.files.probabilities import ProbabilityFile
from ctseg.numerics.box import box_of_labels
from ctseg.numerics.ensemble import PlaneMean, have_common_planes, mean_of_whole
from ctseg.numerics.planes import Where
from ctseg.numerics.postprocess import apply_postprocessing
from ctseg.numerics.restore import LabelRestorer, Receiver, probabilities_outside_crop
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.preparations import Preparations, models_on_whole
from ctseg.predict.segment import (
    CaseContext,
    NetworkRun,
    Prepare,
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
    models_of,
)


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
        labels = self._labels(recipe.step, scan, self._preparations(recipe.step, scan), self.context.probabilities)
        return Segmentation(labels, self.windows, self.bytes_sent, self.bytes_received, tuple(self.warnings))

    def _preparations(self, step: Step, scan: Scan) -> Preparations:
        """Return what prepares a scan for the networks of a step that see all of it."""
        return Preparations(scan, [self.queues[name].predictor.spec for name in models_on_whole(step)])

    def _labels(
        self, step: Step, scan: Scan, prepare: Prepare, probabilities: ProbabilityFile | None = None
    ) -> LabelMap:
        """Run a step.

        Args:
            step: The step.
            scan: What it sees.
            prepare: Prepares the scan for its networks.
            probabilities: Filled, if given; the step is a model, a cascade or an ensemble.
        """
        match step:
            case ModelStep():
                return self._model(step.model, scan, prepare, replace(self.context, probabilities=probabilities))
            case CascadeStep():
                context = replace(self._after(step, scan, prepare), probabilities=probabilities)
                return self._model(step.model, scan, prepare, context)
            case EnsembleStep():
                return self._ensemble(step, scan, prepare, probabilities)
            case CropStep():
                return self._crop(step, scan, prepare)
            case UnionStep():
                return self._union(step, scan, prepare)

    def _model(
        self, name: str, scan: Scan, prepare: Prepare, context: CaseContext, *, postprocess: bool = True
    ) -> LabelMap:
        result = segment(scan, self.queues[name], self.options, context, prepare=prepare, postprocess=postprocess)
        self._count(result)
        return result.labels

    def _count(self, result: Segmentation | NetworkRun) -> None:
        self.windows += result.windows
        self.bytes_sent += result.bytes_sent
        self.bytes_received += result.bytes_received

    def _after(self, step: CascadeStep, scan: Scan, prepare: Prepare) -> CaseContext:
        """Return the context of a cascade's second stage: it gets the labels of the first."""
        context = replace(self.context, probabilities=None)
        previous = self._model(step.previous, scan, prepare, context, postprocess=step.postprocess_previous)
        return replace(context, previous=previous)

    def _ensemble(
        self, step: EnsembleStep, scan: Scan, prepare: Prepare, probabilities: ProbabilityFile | None
    ) -> LabelMap:
        contexts = [
            self._after(member, scan, prepare)
            if isinstance(member, CascadeStep)
            else replace(self.context, probabilities=None)
            for member in step.members
        ]
        runs = [
            NetworkRun(scan, self.queues[member.model], self.options, context, prepare)
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

    def _crop(self, step: CropStep, scan: Scan, prepare: Prepare) -> LabelMap:
        found = self._labels(step.finder, scan, prepare)
        box = box_of_labels(found, step.labels, step.margin_mm, scan.spacing_mm)
        if box is None:
            who, which = ", ".join(models_of(step.finder)), ", ".join(map(str, step.labels))
            what = "its label map is empty" if step.nothing_found == "empty" else "the whole scan was segmented"
            self.warnings.append(f"{who} found nothing of labels {which}: {what}")
            if step.nothing_found == "empty":
                return np.zeros(found.shape, np.uint8)
            return self._labels(step.inside, scan, self._preparations(step.inside, scan))
        del found
        z, y, x = box
        cut = Scan(np.array(scan.voxels[:, z, y, x], order="K"), scan.spacing_mm)  # as a file of this part is read
        inside = self._labels(step.inside, cut, self._preparations(step.inside, cut))
        labels = np.zeros(scan.voxels.shape[1:], inside.dtype)
        labels[box] = inside
        return labels

    def _union(self, step: UnionStep, scan: Scan, prepare: Prepare) -> LabelMap:
        highest = max(value for part in step.parts for value in part.values.values())
        union: LabelMap = np.zeros(scan.voxels.shape[1:], np.uint8 if highest <= 255 else np.uint16)
        for part in step.parts:
            labels = self._labels(part.step, scan, prepare)
            with self.context.clock.stage("restore"):
                _write_over(union, labels, part.values)
            del labels
        return union


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
