"""Prepared scans that several networks share."""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future

from ctseg.arrays import LabelMap
from ctseg.model_spec import ModelSpec
from ctseg.numerics.prepare import Prepared, prepare, prepare_images, with_previous
from ctseg.predict.segment import Scan
from ctseg.recipe import CascadeStep, CropStep, EnsembleStep, ModelStep, Step, UnionStep, models_of, steps_within


def preparation_key(spec: ModelSpec) -> Hashable:
    """Return what of a spec decides how its images are prepared; networks of one key share them.

    A network whose normalisation looks at the labels of a previous stage shares with none.
    """
    sees_labels = spec.previous_stage is not None and any(channel.use_mask_for_norm for channel in spec.channels)
    return (
        spec.channels,
        spec.transpose_forward,
        spec.spacing_mm,
        spec.resampling_data,
        spec.digest if sees_labels else "",
    )


def steps_on_whole(step: Step) -> Counter[ModelStep | CascadeStep | EnsembleStep]:
    """Return the innermost steps that see all of what a step sees, in order, and how often each stands there."""
    match step:
        case CropStep():
            return steps_on_whole(step.finder)
        case UnionStep():
            return sum((steps_on_whole(inner) for inner in steps_within(step)), Counter())
        case _:
            return Counter([step])


def models_on_whole(step: Step) -> Iterator[str]:
    """Yield the models that see all of what a step sees, in the order in which they do; equal steps are done once."""
    for each in steps_on_whole(step):
        if isinstance(each, EnsembleStep):
            for member in each.members:
                if isinstance(member, CascadeStep):
                    yield member.previous
            for member in each.members:
                yield member.model
        else:
            yield from models_of(each)


class Preparations:
    """Prepares one scan for several networks, each way once; the next one while the network works on the one before.

    Args:
        scan: The scan.
        specs: Of all networks that will see it, in the order in which they do.
    """

    def __init__(self, scan: Scan, specs: Sequence[ModelSpec]) -> None:
        self._scan = scan
        self._coming = list(specs)
        self._uses = Counter(preparation_key(spec) for spec in specs)
        self._begun: dict[Hashable, Future[Prepared]] = {}
        self._lock = threading.Lock()

    def __call__(self, scan: Scan, spec: ModelSpec, previous: LabelMap | None) -> Prepared:
        """Return the prepared scan; see :data:`ctseg.predict.segment.Prepare`.

        Raises:
            InputError: The scan cannot be segmented by this model.
        """
        if spec.previous_stage is not None and any(channel.use_mask_for_norm for channel in spec.channels):
            self._begin_next_after(spec)
            return prepare(scan.voxels, scan.spacing_mm, spec, previous=previous)
        images = self._begin(spec).result()
        self._begin_next_after(spec)
        key = preparation_key(spec)
        with self._lock:
            self._uses[key] -= 1
            if self._uses[key] <= 0:
                self._begun.pop(key, None)
        return images if previous is None else with_previous(images, scan.voxels, previous, spec)

    def _begin(self, spec: ModelSpec) -> "Future[Prepared]":
        """Return what prepares the images, begun now on a thread of its own unless it was before."""
        key = preparation_key(spec)
        with self._lock:
            if (begun := self._begun.get(key)) is not None:
                return begun
            future = self._begun[key] = Future()
        threading.Thread(target=self._prepare, args=(spec, future), name="prepare", daemon=True).start()
        return future

    def _begin_next_after(self, spec: ModelSpec) -> None:
        with self._lock:
            if spec in self._coming:
                self._coming.remove(spec)
            following = self._coming[0] if self._coming else None
        if following is not None and following.previous_stage is None:
            self._begin(following)

    def _prepare(self, spec: ModelSpec, future: "Future[Prepared]") -> None:
        try:
            future.set_result(prepare_images(self._scan.voxels, self._scan.spacing_mm, spec))
        except BaseException as error:  # whatever it is belongs to who takes it
            future.set_exception(error)
