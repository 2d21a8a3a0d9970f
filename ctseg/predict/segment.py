"""The story of one case: prepare, cut windows, predict, blend, restore, post-process."""

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap, Logits, Probabilities, Slab, Spacing
from ctseg.errors import InputError, ServerTimeoutError
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import Volume
from ctseg.model_spec import ModelSpec
from ctseg.numerics.agreement import FoldAgreement
from ctseg.numerics.blend import SlabBlender
from ctseg.numerics.postprocess import apply_postprocessing
from ctseg.numerics.prepare import PreparationRecord, Prepared, prepare
from ctseg.numerics.restore import LabelRestorer, Receiver, probabilities_outside_crop
from ctseg.numerics.votes import num_channels
from ctseg.numerics.windows import WindowPlan, cut_patches, plan_windows
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.progress import StageClock

BATCHES_AHEAD = 2
"""A case keeps this many times ``max_in_flight`` batches on their way: the network has work while it restores."""

MOST_WINDOWS = 1_000_000
"""Of one case: half a day of a fast GPU."""


@dataclass(frozen=True)
class WindowOptions:
    """How windows are laid and run.

    Attributes:
        tile_step_size: Step between windows as a fraction of the patch, in (0, 1].
        mirroring: Average over mirrored patches, if the spec says that the client does this.
        timeout_s: Longest time from when a case's first window is sent to when its last is back; None: no limit.
        agreement: Say how far the folds agree, of networks that have votes; None: where whole scans are sent to a
            server, since nothing travels for it then.
    """

    tile_step_size: float = 0.5
    mirroring: bool = True
    timeout_s: float | None = None
    agreement: bool | None = None


@dataclass(frozen=True, eq=False)
class CaseContext:
    """What the segmentation of one case is told, and whom it tells.

    Attributes:
        priority: Index of the case among those in flight; smaller goes first.
        clock: Measures its stages, and knows its name.
        probabilities: Filled with (heads, z, y, x) on the grid of the scan, if given.
        previous: (z, y, x) on the grid of the scan as read: the label map of the previous stage, for a second one.
    """

    priority: int = 0
    clock: StageClock = field(default_factory=StageClock)
    probabilities: ProbabilityFile | None = None
    previous: LabelMap | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What became of a scan.

    Attributes:
        labels: (z, y, x) on the grid of the scan as read, smallest unsigned integer that fits.
        windows: How many there were.
        bytes_sent: Of the tensors, repeated requests not counted.
        bytes_received: Likewise.
        warnings: What a person is to know of the case.
        server_seconds: By stage in the server, where that cut the windows.
        agreement: How far the folds agree on each label by its name, see :mod:`ctseg.numerics.agreement`; empty where
            that was not asked for, or is not known.
    """

    labels: LabelMap
    windows: int
    bytes_sent: int
    bytes_received: int
    warnings: tuple[str, ...] = ()
    server_seconds: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scan:
    """What a network sees of a volume, or of a part of it.

    Attributes:
        voxels: (channels, z, y, x), see :class:`Volume`.
        spacing_mm: Along (z, y, x).
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing

    @classmethod
    def of(cls, volume: Volume) -> "Scan":
        """Return all of a volume."""
        return cls(volume.voxels, volume.spacing_mm)


Prepare = Callable[[Scan, ModelSpec, LabelMap | None], Prepared]
"""Prepares a scan, with the label map of the previous stage where there is one; perhaps shared between networks."""


def prepare_scan(scan: Scan, spec: ModelSpec, previous: LabelMap | None) -> Prepared:
    """Prepare a scan for one network."""
    return prepare(scan.voxels, scan.spacing_mm, spec, previous=previous)


def segment(
    scan: Scan,
    inference: InferenceQueue,
    options: WindowOptions,
    context: CaseContext,
    *,
    prepare: Prepare = prepare_scan,
    postprocess: bool = True,
) -> Segmentation:
    """Segment one scan through a queue that other cases may share; see ``CaseSegmenter.segment``.

    Args:
        scan: The scan.
        inference: Runs the network.
        options: How windows are laid and run.
        context: What belongs to the case.
        prepare: Prepares the scan.
        postprocess: Whether the model's own post-processing is applied.
    """
    clock = context.clock
    run = NetworkRun(scan, inference, options, context, prepare)
    with clock.stage("restore"):
        receiver = probabilities_receiver(context.probabilities, run.spec, run.record)
        restorer = LabelRestorer(run.spec, run.record, on_probabilities=receiver)
    with closing(run.slabs()) as slabs:  # after a failure, what is queued is cancelled at once
        for slab in slabs:
            with clock.stage("restore"):
                restorer.add(slab)
    with clock.stage("restore"):
        labels = restorer.finish()
        if postprocess:
            labels = apply_postprocessing(labels, run.spec.postprocessing)
    return Segmentation(labels, run.windows, run.bytes_sent, run.bytes_received, agreement=run.agreement)


def batches_ahead(predictor: PatchPredictor, beside: int) -> tuple[int, int]:
    """Return how many batches of a case are on their way to a network at most, and the windows of each.

    Args:
        predictor: Runs the network.
        beside: How many other networks run in step with it, and share the memory; smaller batches keep two on their
            way where there is room for two windows.
    """
    windows = max(1, BATCHES_AHEAD * predictor.max_in_flight * predictor.max_batch_size // (1 + beside))
    batch = max(1, min(predictor.max_batch_size, windows // 2))
    return windows // batch, batch


def _check_count(plan: WindowPlan, tile_step_size: float) -> None:
    if len(plan) > MOST_WINDOWS:
        size = " x ".join(map(str, plan.image_size))
        raise InputError(
            f"{len(plan):,} windows over {size} voxels, expected at most {MOST_WINDOWS:,}: is the spacing right? A "
            f"larger step between windows than {tile_step_size} gives fewer",
            settings=("tile_step_size",),
        )


def probabilities_receiver(file: ProbabilityFile | None, spec: ModelSpec, record: PreparationRecord) -> Receiver | None:
    """Return what writes finished probabilities into the file, filled already with those outside the crop."""
    if file is None:
        return None
    array = file.allocate((spec.num_heads, *record.shape))
    outside = probabilities_outside_crop(spec)
    for head in np.flatnonzero(outside):
        array[head] = outside[head]

    def receive(where: tuple[slice, slice, slice], part: Probabilities) -> None:
        z, y, x = where
        array[:, z, y, x] = part

    return receive


class _CaseTimeout:
    """Runs from when the case's first window is sent; waiting for other cases does not count."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._started: float | None = None

    def start(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def wait_s(self) -> float | None:
        """Return how long to wait before looking at the clock again; None: for ever."""
        if self.timeout_s is None:
            return None
        if self._started is None:
            return 0.2
        return min(1.0, max(0.0, self._started + self.timeout_s - time.monotonic()))

    def is_over(self) -> bool:
        return (
            self.timeout_s is not None
            and self._started is not None
            and time.monotonic() >= self._started + self.timeout_s
        )


class NetworkRun:
    """One network's run over one scan: windows on their way there and back, and what is blended from them.

    Args:
        scan: The scan.
        inference: Runs the network.
        options: How windows are laid and run.
        context: What belongs to the case.
        prepare: Prepares the scan.

    Attributes:
        spec: The network's contract.
        record: What was done to the scan.
        windows: How many there are.
        bytes_sent: Of the tensors so far, repeated requests not counted.
        bytes_received: Likewise.

    Raises:
        InputError: The scan cannot be segmented by this model.
    """

    def __init__(
        self,
        scan: Scan,
        inference: InferenceQueue,
        options: WindowOptions,
        context: CaseContext,
        prepare: Prepare = prepare_scan,
    ) -> None:
        self.spec = inference.predictor.spec
        self._inference = inference
        self._priority = context.priority
        self._clock = context.clock
        self._timeout = _CaseTimeout(options.timeout_s)
        with self._clock.stage("prepare"):
            self._prepared: Prepared | None = prepare(scan, self.spec, context.previous)
        self.record = self._prepared.record
        self._plan = plan_windows(self.record.network_shape, self.spec.patch_size, options.tile_step_size)
        self.windows = len(self._plan)
        _check_count(self._plan, options.tile_step_size)
        self._clock.progress.windows_planned(self.windows)
        self.bytes_sent = 0
        self.bytes_received = 0
        self._agreement = FoldAgreement(self.spec) if inference.votes else None

    @property
    def agreement(self) -> Mapping[str, float]:
        """How far the folds agree on each label by its name, once all slabs were taken; empty without votes."""
        return {} if self._agreement is None else self._agreement.scores

    def slabs(self, *, beside: int = 0) -> Generator[Slab, None, None]:
        """Run all windows, once; yield blended logits as soon as no later window touches them.

        Args:
            beside: How many other networks run in step with this one: together they have as many windows on their way
                as one by itself.

        Yields:
            (heads, planes, y, x) of the prepared volume; see :meth:`SlabBlender.add`.

        Raises:
            ServerError: The network gave no answer; the children say why.
        """
        clock = self._clock
        with clock.stage("restore"):
            heads = self.spec.num_heads
            channels = num_channels(self.spec, votes=self._inference.votes)
            blender = SlabBlender(self._plan, channels, model=self.spec.name)
        with closing(self._logits(beside)) as answers:
            while True:
                with clock.stage("network"):
                    logits = next(answers, None)
                if logits is None:
                    return
                count = len(logits)
                slabs = blender.add(logits)
                while True:
                    with clock.stage("restore"):
                        slab = next(slabs, None)
                    if slab is None:
                        break
                    if self._agreement is not None:
                        with clock.stage("restore"):
                            self._agreement.add(slab)
                    yield slab[:heads]
                del logits, slabs  # its memory may be the predictor's, which uses it again
                clock.progress.windows_done(count)

    def _logits(self, beside: int) -> Generator[Logits, None, None]:
        """Yield the logits of all windows in order, batch by batch, with several batches on their way."""
        predictor, plan = self._inference.predictor, self._plan
        spec, times = self.spec, self._inference.requests_per_batch
        values = spec.previous_stage.labels if spec.previous_stage else ()
        on_their_way: deque[Future[Logits]] = deque()
        next_window = 0
        try:
            while next_window < len(plan) or on_their_way:
                batches, windows = batches_ahead(predictor, beside)
                while next_window < len(plan) and len(on_their_way) < batches:
                    prepared = self._prepared
                    if prepared is None:
                        raise ValueError(f"{spec.name}: the windows of a scan are run once")
                    count = min(windows, len(plan) - next_window)
                    patches = cut_patches(
                        prepared.voxels, plan, next_window, count, previous=prepared.previous, values=values
                    )
                    self.bytes_sent += patches.size * spec.input.item_bytes * times
                    on_their_way.append(
                        self._inference.submit(patches, priority=self._priority, on_start=self._timeout.start)
                    )
                    next_window += count
                    if next_window == len(plan):
                        prepared = self._prepared = None  # its memory is free once the windows are through
                logits = self._result_of(on_their_way.popleft(), spec.name)
                votes_bytes = spec.votes_bytes if self._inference.votes else 0
                self.bytes_received += len(logits) * (spec.logits_bytes + votes_bytes) * times
                yield logits
                del logits
        finally:
            for future in on_their_way:
                future.cancel()

    def _result_of(self, future: "Future[Logits]", model: str) -> Logits:
        try:
            while True:
                try:
                    return future.result(self._timeout.wait_s())
                except FutureTimeoutError as error:
                    if future.done():
                        raise  # the predictor itself raised it
                    if self._timeout.is_over():
                        raise ServerTimeoutError(
                            f"{model}: the windows of the case were not all back within {self._timeout.timeout_s} s: "
                            "allow the case more time, or look at the server's load",
                            settings=("case_timeout_s",),
                        ) from error
        finally:
            del future  # its error knows this frame: together they would hold the scan until Python looks for cycles
