"""One entry's scans: taken at once, begun as there is room, worked on by one pool, answered exactly once each."""

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctseg.arrays import Logits, Patches
from ctseg.compiled.loading import load_kernels_ahead
from ctseg.compiled.parallel import set_num_threads
from ctseg.errors import InputError, ServerUnavailableError
from ctseg.numerics import AGREEMENT_KERNEL_MODULES, KERNEL_MODULES, RECIPE_KERNEL_MODULES
from ctseg.numerics.volumes import volumes_ml
from ctseg.predict.inference_queue import FairShare, InferenceQueue, InferenceThreads
from ctseg.predict.predictor import PatchPredictor, PredictorAround
from ctseg.predict.progress import Progress, StageClock
from ctseg.predict.segment import CaseContext
from ctseg.predict.segmenter import window_load
from ctseg.predict.whole_scan import ScanProgress, ScanReport
from ctseg.serving.whole_scan.admission import SMALL_LANES, Admission, Demand
from ctseg.serving.whole_scan.answers import Answer
from ctseg.serving.whole_scan.entry import ScanEntry, read_scan_entry
from ctseg.serving.whole_scan.gauges import Gauges
from ctseg.serving.whole_scan.requests import Control, ScanRequest, control_of, parameters_of, read_request
from ctseg.serving.whole_scan.settings import ScanSettings, read_scan_settings
from ctseg.serving.whole_scan.shared_memory import SharedMemoryUse
from ctseg.serving.whole_scan.stopping import stopping_file
from ctseg.serving.whole_scan.tensors import from_triton

log = logging.getLogger(__name__)


class _Counts(Progress):
    """How many windows of one scan there are, and are back."""

    def __init__(self) -> None:
        self.planned = 0
        self.done = 0

    def windows_planned(self, count: int) -> None:
        """See :class:`Progress`."""
        self.planned += count

    def windows_done(self, count: int) -> None:
        """See :class:`Progress`."""
        self.done += count


@dataclass(eq=False)
class _Job:
    """One accepted request.

    Attributes:
        number: In order of arrival.
        id: As the client named it; may be empty.
        request: What is asked for.
        answer: The one that it gets.
        held: Triton's request, whose tensors are looked at while it is there.
        shared_bytes: What they take of shared memory, and then its label map at their place.
        clock: Of its stages.
        counts: Of its windows.
        given_up: Set when nobody waits for it any more.
        has_begun: Whether it is worked on.
        waited_s: Until it began.
        future: Done when it has been answered; None before it is accepted.
    """

    number: int
    id: str
    request: ScanRequest
    answer: Answer
    held: Any
    shared_bytes: int
    counts: _Counts = field(default_factory=_Counts)
    given_up: threading.Event = field(default_factory=threading.Event)
    has_begun: bool = False
    waited_s: float = 0.0
    future: "Future[None] | None" = None
    clock: StageClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = StageClock(self.id, self.counts)

    def let_go(self) -> None:
        """Let go of the tensors: Triton has no room for an answer otherwise, where shared memory is full."""
        self.held = None
        self.request = replace(self.request, voxels=self.request.voxels[:0].copy(), previous=None)

    def require_wanted(self) -> None:
        """Go on only while somebody waits for it.

        Raises:
            CancelledError: Nobody does.
        """
        if self.given_up.is_set() or not self.answer.is_wanted:
            raise CancelledError


class _WhileWanted(PredictorAround):
    """A predictor that computes nothing for a scan that was given up."""

    def __init__(self, predictor: PatchPredictor, job: _Job) -> None:
        super().__init__(predictor)
        self._job = job

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        """See :meth:`PatchPredictor.predict`."""
        self._job.require_wanted()
        return self._predictor.predict(patches, votes=votes)


class ScanService:
    """Segments the scans of one entry.

    Args:
        backend: The module ``triton_python_backend_utils``.
        read_entry: Returns what they are segmented by, given who says whether a scan is alone.
        settings: What they may take.
        memory: What they may take of the shared memory.
        stopping: A file that is there when no more are to begin.
    """

    def __init__(
        self,
        backend: Any,
        read_entry: Callable[[Callable[[], bool]], ScanEntry],
        settings: ScanSettings,
        memory: SharedMemoryUse,
        stopping: Path,
    ) -> None:
        self._backend = backend
        self._memory, self._most_windows, self._stopping = memory, settings.most_windows, stopping
        self._entry = read_entry(lambda: self._admission.running <= 1)
        gauges = Gauges(backend, self._entry.contract.name, self._entry.version)
        self._pool = ThreadPoolExecutor(settings.lanes + SMALL_LANES, thread_name_prefix="scan")
        self._admission = Admission(
            self._pool.submit, settings.memory_bytes, lanes=settings.lanes, most_waiting=settings.most_waiting,
            on_change=lambda waiting, running: gauges.show(waiting=waiting, running=running),
        )  # fmt: skip
        self._threads = InferenceThreads(FairShare())
        self._numbers = itertools.count()
        self._jobs: dict[int, _Job] = {}
        self._lock, self._dropping = threading.Lock(), threading.Lock()
        self._is_closing = threading.Event()
        load_kernels_ahead((*KERNEL_MODULES, *RECIPE_KERNEL_MODULES, *AGREEMENT_KERNEL_MODULES))

    def take(self, request: Any) -> None:
        """Accept a request of Triton's: it will be answered once, by its own response sender. Never raises."""
        answer = Answer(self._backend, request)
        try:
            self._drop_unwanted()
            parameters = parameters_of(request.parameters())
            control = control_of(parameters)
            if control is not None:
                answer.progress(self._control(control))
                return
            self._accept(request, parameters, answer)
        except BaseException as error:  # whatever it is belongs to the request
            answer.error(error)

    def close(self) -> None:
        """Begin no more scans, end those that are under way at their next windows, and answer all of them."""
        self._is_closing.set()
        for job in self._known():
            job.given_up.set()
        self._admission.close()
        self._pool.shutdown()
        self._threads.close()

    def _accept(self, request: Any, parameters: Mapping[str, Any], answer: Answer) -> None:
        """Let a scan wait for its turn, which may have come.

        Raises:
            InputError: It cannot be segmented here.
            SpecError: It is meant for another model.
            ServerUnavailableError: Too many wait, or take too much, or the server is stopping.
        """
        if self._stopping.exists():
            raise ServerUnavailableError("this server is stopping, and takes no more scans: ask another one, or later")
        inputs = {tensor.name(): from_triton(tensor) for tensor in request.inputs()}
        outputs = list(request.requested_output_names())
        scan = read_request(inputs, parameters, outputs, self._entry.contract)
        size = sum(array.nbytes for array in inputs.values())
        job = _Job(next(self._numbers), request.request_id(), scan, answer, held=request, shared_bytes=size)
        demand = self._demand_of(job)
        self._memory.hold(job.shared_bytes)
        with self._lock:
            self._jobs[job.number] = job
        try:
            job.future = self._admission.offer(demand, lambda: self._segment(job))
        except BaseException:
            self._forget(job)
            raise
        job.future.add_done_callback(lambda future: self._settle(job, future))

    def _demand_of(self, job: _Job) -> Demand:
        """Return what a scan asks for, from its shape and spacing.

        Raises:
            InputError: It would have no voxel at a network's spacing, or too many windows.
        """
        header, options = job.request.header, job.request.options
        queues = self._queues(job)
        windows = self._entry.most_windows(header, options)
        if max(windows.values()) > self._most_windows:
            raise InputError(
                f"up to {max(windows.values()):,} windows, expected at most {self._most_windows:,}: is the spacing "
                "right? A larger step between windows gives fewer",
                settings=("tile_step_size",),
            )
        loads = {name: window_load(queue, options) for name, queue in queues.items()}
        calls = sum(count * queues[name].requests_per_batch for name, count in windows.items())
        return Demand(self._entry.estimate(header, loads), calls, job.request.held_bytes)

    def _settle(self, job: _Job, future: "Future[None]") -> None:
        """Answer a scan that was not answered with its labels."""
        problem = CancelledError() if future.cancelled() else future.exception()
        if isinstance(problem, CancelledError) and self._is_closing.is_set():
            job.answer.error(ServerUnavailableError("the server stops serving this version: ask again"))
        elif problem is not None:
            job.answer.error(problem)
        self._forget(job)
        # what follows knows the job: together they would hold the scan until Python looks for cycles
        job.future = None
        while problem is not None:
            problem.__traceback__, problem = None, problem.__cause__ or problem.__context__
        self._drop_unwanted()

    def _segment(self, job: _Job) -> None:
        """Segment a scan and answer it."""
        job.has_begun = True
        job.waited_s = job.clock.seconds.total
        job.require_wanted()
        request, contract = job.request, self._entry.contract
        with job.clock.stage("prepare"):
            scan = request.scan()
        context = CaseContext(job.number, job.clock, previous=request.previous)
        result = self._entry.segment(scan, self._queues(job), request.options, context)
        seconds = job.clock.seconds
        report = ScanReport(
            request=job.id,
            model=contract.name,
            version=self._entry.version,
            digest=contract.digest,
            seconds={
                "waited": job.waited_s, "prepare": seconds.prepare, "network": seconds.network,
                "restore": seconds.restore, "total": seconds.total,
            },
            windows=result.windows,
            volumes_ml=volumes_ml(result.labels, contract.labels, scan.spacing_mm),
            warnings=(*result.warnings, *filter(None, [contract.doubt])),
            agreement=result.agreement,
        )  # fmt: skip
        job.let_go()
        del request, scan, context
        job.answer.labels(result.labels, contract, report, deflated=job.request.deflated)

    def _forget(self, job: _Job) -> None:
        with self._lock:
            known = self._jobs.pop(job.number, None)
        if known is not None:
            self._memory.let_go(job.shared_bytes)

    def _known(self) -> list[_Job]:
        with self._lock:
            return list(self._jobs.values())

    def _queues(self, job: _Job) -> Mapping[str, InferenceQueue]:
        """Return queues of one scan, which share the threads of all."""
        return {
            name: InferenceQueue(
                _WhileWanted(predictor, job),
                mirroring=job.request.options.mirroring,
                threads=self._threads,
                votes=bool(job.request.options.agreement) and name in self._entry.voting,
            )
            for name, predictor in self._entry.predictors.items()
        }

    def _control(self, control: Control) -> ScanProgress:
        """Say how far another request is, or give it up."""
        meant = [job for job in self._known() if control.about and job.id == control.about]
        counts = {"waiting": self._admission.waiting, "running": self._admission.running}
        if not meant:
            return ScanProgress(request=control.about, state="unknown", **counts)
        found = meant[0]
        for job in meant if control.cancels else ():
            self._give_up(job)
        return ScanProgress(
            request=control.about, state="running" if found.has_begun else "waiting",
            windows_done=found.counts.done, windows=found.counts.planned, **counts,
        )  # fmt: skip

    def _drop_unwanted(self) -> None:
        """Give up scans that wait for their turn, and for which nobody waits any more."""
        if not self._dropping.acquire(blocking=False):
            return  # somebody does: this thread perhaps, for each that it gives up is settled by it
        try:
            for job in self._known():
                if not job.answer.is_wanted:
                    self._give_up(job)
        finally:
            self._dropping.release()

    def _give_up(self, job: _Job) -> None:
        """Let a scan end: at once where it has not begun, else at its next windows."""
        job.given_up.set()
        if (future := job.future) is not None:
            future.cancel()


def open_service(backend: Any, folder: Path, version: int) -> ScanService:
    """Open the service of an entry; what the entry's ``model.py`` calls at its first request.

    Args:
        backend: The module ``triton_python_backend_utils``.
        folder: The entry's, in the model repository as Triton sees it.
        version: Of the entry.

    Raises:
        SpecError: What it runs is not beside it, or is another model.
        SetupError: The environment asks for what cannot be.
    """
    settings = read_scan_settings()
    set_num_threads(settings.threads)
    memory = SharedMemoryUse(settings.shared_memory_bytes)
    return ScanService(
        backend, lambda is_alone: read_scan_entry(backend, folder, version, memory, is_alone), settings, memory,
        stopping_file(folder.parent),
    )  # fmt: skip
