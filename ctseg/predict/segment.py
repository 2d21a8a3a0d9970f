"""The story of one case: prepare, cut windows, predict, blend, restore, post-process."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

import numpy as np

from ctseg.arrays import LabelMap, Logits
from ctseg.errors import ServerTimeoutError
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import Volume
from ctseg.numerics.blend import SlabBlender
from ctseg.numerics.postprocess import apply_postprocessing
from ctseg.numerics.prepare import Prepared, prepare
from ctseg.numerics.restore import LabelRestorer, probabilities_outside_crop
from ctseg.numerics.windows import WindowPlan, cut_patches, plan_windows
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.progress import Progress

BATCHES_AHEAD = 2
"""A case keeps this many times ``max_in_flight`` batches on their way: the network has work while it restores."""


@dataclass
class CaseMeasures:
    """Wall-clock seconds and tensor bytes of one case; filled while it runs."""

    prepare_s: float = 0.0
    network_s: float = 0.0
    restore_s: float = 0.0
    windows: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(frozen=True)
class Segmentation:
    """What became of a scan.

    Attributes:
        labels: (z, y, x) on the grid of the scan as read, smallest unsigned integer that fits.
        measures: Where the time went.
    """

    labels: LabelMap
    measures: CaseMeasures = field(default_factory=CaseMeasures)


def segment_volume(
    volume: Volume, predictor: PatchPredictor, *, tile_step_size: float = 0.5, mirroring: bool = True
) -> LabelMap:
    """Segment one scan.

    Args:
        volume: The scan, read by the reader that the predictor's spec names.
        predictor: Runs the network.
        tile_step_size: Step between windows as a fraction of the patch, in (0, 1].
        mirroring: Average over mirrored patches, if the spec says that the client does this.

    Returns:
        Labels (z, y, x) on the grid of the scan as read.

    Raises:
        InputError: The scan cannot be segmented by this model.
        ServerError: The network gave no answer; the children say why.
    """
    inference = InferenceQueue(predictor, mirroring=mirroring)
    try:
        return segment(volume, inference, tile_step_size=tile_step_size).labels
    finally:
        inference.close()


def segment(
    volume: Volume,
    inference: InferenceQueue,
    *,
    priority: int = 0,
    tile_step_size: float = 0.5,
    timeout_s: float | None = None,
    progress: Progress | None = None,
    probabilities: ProbabilityFile | None = None,
) -> Segmentation:
    """Segment one scan through a queue that other cases may share.

    Args:
        volume: The scan, read by the reader that the spec names.
        inference: The queue to the network.
        priority: Index of the case; smaller goes first.
        tile_step_size: Step between windows as a fraction of the patch, in (0, 1].
        timeout_s: Longest time from when the first window is sent to when the last is back; None: no limit.
        progress: Told about windows.
        probabilities: Filled with (heads, z, y, x) on the grid of the scan, if given.

    Raises:
        InputError: The scan cannot be segmented by this model.
        ServerError: The network gave no answer; the children say why.
        OutputError: The probabilities cannot be written.
    """
    spec = inference.predictor.spec
    spec.check_runnable()
    progress = progress or Progress()
    measures = CaseMeasures()

    started = time.monotonic()
    prepared = prepare(volume.voxels, volume.spacing_mm, spec)
    measures.prepare_s = time.monotonic() - started

    plan = plan_windows(prepared.record.network_shape, spec.patch_size, tile_step_size)
    measures.windows = len(plan)
    progress.windows_planned(len(plan))

    started = time.monotonic()
    on_probabilities = None
    if probabilities is not None:
        array = probabilities.allocate((spec.num_heads, *prepared.record.shape))
        outside = probabilities_outside_crop(spec)
        for head in np.flatnonzero(outside):
            array[head] = outside[head]

        def on_probabilities(where: tuple[slice, slice, slice], part: Logits) -> None:
            z, y, x = where
            array[:, z, y, x] = part

    restorer = LabelRestorer(spec, prepared.record, on_probabilities=on_probabilities)
    blender = SlabBlender(plan, spec.num_heads, model=spec.name)
    clock = _CaseClock(timeout_s)
    for logits in _predict(prepared, plan, inference, priority, clock, measures):
        count = len(logits)
        restoring = time.monotonic()
        for slab in blender.add(logits):
            restorer.add(slab)
        del logits  # its memory may be the predictor's, which uses it again
        measures.restore_s += time.monotonic() - restoring
        progress.windows_done(count)
    restoring = time.monotonic()
    labels = apply_postprocessing(restorer.finish(), spec)
    ended = time.monotonic()
    measures.restore_s += ended - restoring
    measures.network_s = ended - started - measures.restore_s
    return Segmentation(labels, measures)


class _CaseClock:
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


def _predict(
    prepared: Prepared,
    plan: WindowPlan,
    inference: InferenceQueue,
    priority: int,
    clock: _CaseClock,
    measures: CaseMeasures,
) -> Iterator[Logits]:
    """Yield the logits of all windows in order, batch by batch, with several batches on their way."""
    spec, batch_size = inference.predictor.spec, inference.predictor.max_batch_size
    ahead = BATCHES_AHEAD * inference.predictor.max_in_flight
    on_their_way: deque[Future[Logits]] = deque()
    next_window = 0
    try:
        while next_window < len(plan) or on_their_way:
            while next_window < len(plan) and len(on_their_way) < ahead:
                count = min(batch_size, len(plan) - next_window)
                patches = cut_patches(prepared.voxels, plan, next_window, count)
                measures.bytes_sent += patches.size * spec.input.item_bytes * inference.requests_per_batch
                on_their_way.append(inference.submit(patches, priority=priority, on_start=clock.start))
                next_window += count
            logits = _result_of(on_their_way.popleft(), clock, spec.name)
            measures.bytes_received += logits.size * spec.output.item_bytes * inference.requests_per_batch
            yield logits
            del logits
    finally:
        for future in on_their_way:
            future.cancel()


def _result_of(future: "Future[Logits]", clock: _CaseClock, model: str) -> Logits:
    while True:
        try:
            return future.result(clock.wait_s())
        except FutureTimeoutError as error:
            if future.done():
                raise  # the predictor itself raised it
            if clock.is_over():
                raise ServerTimeoutError(
                    f"{model}: the windows of the case were not all back within {clock.timeout_s} s: "
                    "raise --case_timeout_s, or look at the server's load"
                ) from error
