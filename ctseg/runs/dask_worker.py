"""What a worker process of Dask does for a run: it is a run of the output folder itself, and ends cases one by one.

Dask runs a task at least once: again when its worker dies, and even when it had ended but its result was lost. So a
task here is a case that may have been done already: the folder's outcomes tell, and its claims keep two workers apart.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import distributed

import ctseg
from ctseg.errors import CtsegError, ServerAwayError, SetupError
from ctseg.files.cases import Case
from ctseg.files.regular import open_regular
from ctseg.files.scans import FoundScans
from ctseg.predict.case_work import CaseWork, Turn
from ctseg.predict.contract import ScanContract
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.memory_limits import Available, available_memory
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import Outcome, OutcomeStore
from ctseg.predict.predictor import Identity
from ctseg.predict.presence import TOUCH_S, OtherRuns, Presence
from ctseg.predict.progress import Progress
from ctseg.runs.model import ServedModel
from ctseg.runs.where import opened_segmenter

SIGHT_S = 5.0
"""How long a file may take from one host to another before the folder counts as not shared."""
_LEAVE_S = 20.0
"""How long cases that were dropped may take to notice."""
PYTHON = sys.version_info[:2]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A file of the input.

    Attributes:
        path: Absolute.
        size: In bytes.
        label: What messages call it; no path, where it is DICOM.
    """

    path: Path
    size: int
    label: str


@dataclasses.dataclass(frozen=True)
class Job:
    """What workers have to know of a run. It travels through Dask's scheduler, so it holds no credentials.

    Attributes:
        run: The client's own run of the output folder; while it lives, the workers work.
        output: The output folder, absolute.
        sample: A file of the input; None: there is none to look at.
        model: Without headers.
        header_variables: Names of environment variables by the gRPC header that they hold, on each worker.
        options: How cases are segmented.
        version: Of ctseg.
        python: Of the client.
    """

    run: str
    output: Path
    sample: Sample | None
    model: ServedModel
    header_variables: Mapping[str, str]
    options: BatchOptions
    version: str = ctseg.__version__
    python: tuple[int, int] = PYTHON


@dataclasses.dataclass(frozen=True)
class Task:
    """A case for a worker.

    Attributes:
        case: With absolute paths.
        index: Of the case among all.
        before: Digest of the case's outcome when the client's run began; empty: there was none.
        spec_digest: Of the model that all workers of the run use.
        list_digest: Of the names of all cases of the whole input.
        turn: Whether it is taken also where it could not be written before, or was in flight when a run was killed.
        failed: Why it is not tried any more; a worker writes this down.
    """

    case: Case
    index: int
    before: str
    spec_digest: str
    list_digest: str
    turn: Turn = Turn.FREE
    failed: str | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a worker says of a case.

    Attributes:
        outcome: None: the case has not ended; another run works on it, this worker cannot, or its turn is later.
        turn: In which the case can be taken: ``FREE`` once another run has left it.
        problem: Why this worker cannot work.
        away: The problem is that the model's servers went away.
        lines: Warnings on the way, with their level.
        worker: Its address.
    """

    outcome: Outcome | None = None
    turn: Turn = Turn.FREE
    problem: str | None = None
    away: bool = False
    lines: tuple[tuple[int, str], ...] = ()
    worker: str = ""


@dataclasses.dataclass(frozen=True)
class Ready:
    """What a worker that can work says of itself.

    Attributes:
        run: Its own run of the output folder.
        contract: What the model takes and gives.
        identity: Of the model.
    """

    run: str
    contract: ScanContract
    identity: Identity


class CasesOnWorker(distributed.WorkerPlugin):  # type: ignore[misc]  # Dask's types are not looked at
    """A run's part in one worker process: opened by the first case, closed with the run or the worker.

    Args:
        job: Of the run.
    """

    def __init__(self, job: Job) -> None:
        self.name = plugin_name(job.run)
        self._job = job

    def setup(self, worker: Any) -> None:
        """Be there; nothing is opened yet, since this holds up the worker's answers to everybody."""
        self._memory_limit: int | None = worker.memory_manager.memory_limit
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._ended = False

    async def teardown(self, worker: Any) -> None:  # noqa: ARG002 (Dask's signature)
        """Drop what is half-done, and close the predictor."""
        await asyncio.to_thread(self._end)

    def ready(self) -> Ready:
        """Open the predictor, and say who this worker is.

        Raises:
            CtsegError: This worker cannot work; says why.
        """
        with self._opened() as session:
            return Ready(session.presence.run, session.segmenter.contract, session.segmenter.identity)

    def answer(self, task: Task) -> Answer:
        """End a case, unless another run works on it or this worker cannot."""
        with _warnings() as lines:
            try:
                with self._opened() as session:
                    answer = session.answer(task)
            except CtsegError as error:
                answer = Answer(problem=worded(error), away=isinstance(error, ServerAwayError))
        return dataclasses.replace(answer, lines=tuple(lines))

    @contextlib.contextmanager
    def _opened(self) -> Iterator["_Session"]:
        with self._lock:
            if self._ended:
                raise SetupError("the run has ended here")
            if self._session is None or not self._session.entered():
                self._session = _Session(self._job, self._memory_limit)
                self._session.entered()
            session = self._session
        try:
            yield session
        finally:
            session.leave()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            session = self._session
        if session is not None:
            session.close(drop=True)


class _Session:
    """An open predictor and this process's run of the output folder.

    Raises:
        CtsegError: This worker cannot work; says why.
    """

    def __init__(self, job: Job, memory_limit: int | None) -> None:
        self._inside = 0
        self._has_closed = False
        self._job = job
        self._left = threading.Condition()
        self._ending = threading.Event()
        self._store = OutcomeStore(job.output)
        self._budget = MemoryBudget(job.options.memory_bytes, partial(_available_memory, memory_limit))
        self._work: CaseWork | None = None
        _check_versions(job)
        _check_paths(job)
        with contextlib.ExitStack() as stack:
            segmenter = opened_segmenter(
                _with_headers(job), job.options.window_options, saves_probabilities=job.options.save_probabilities
            )
            self.segmenter = stack.enter_context(segmenter)
            self.presence = stack.enter_context(Presence(job.output))
            self._stack = stack.pop_all()
        threading.Thread(target=self._watch_client, name="dask-client", daemon=True).start()

    def answer(self, task: Task) -> Answer:
        """End a case, if it can be taken now."""
        if self.segmenter.contract.digest != task.spec_digest:
            raise SetupError(
                f"this worker's servers have the model with the spec {self.segmenter.contract.digest[:12]}, the run "
                f"began with {task.spec_digest[:12]}"
            )
        name, work = task.case.name, self._work_of(task.list_digest)
        if self._store.digest(name) != task.before and (outcome := self._store.read(name)) is not None:
            return Answer(outcome)  # it has ended since the run began, though perhaps before this worker did
        failed = None if task.failed is None else CtsegError(task.failed)
        if work.end(task.case, task.index, task.turn, failed=failed):
            return Answer(work.ended.pop(name))
        if work.went_away.is_set():  # this session asks no server any more; the next one may
            threading.Thread(target=self.close, kwargs={"drop": True}, name="dask-session").start()
            raise ServerAwayError("every server of the model has been away for as long as it waits")
        if work.is_put_off(task.case):
            return Answer(turn=Turn.AGAIN)
        return Answer(turn=Turn.SUSPECTS if work.ledger.claims.suspicion(name) else Turn.FREE)

    def entered(self) -> bool:
        """Let a thread in; False: the session has closed."""
        with self._left:
            self._inside += not self._has_closed
            return not self._has_closed

    def leave(self) -> None:
        """A thread has done its case."""
        with self._left:
            self._inside -= 1
            self._left.notify_all()

    def close(self, *, drop: bool) -> None:
        """Close everything, once the threads have left.

        Args:
            drop: Whether they are told to drop their cases.
        """
        with self._left:
            if self._has_closed:
                return
            self._has_closed = True
        self._ending.set()
        if drop:
            if self._work is not None:
                self._work.stopped.set()
            self.segmenter.abort()
        with self._left:
            self._left.wait_for(lambda: self._inside == 0, _LEAVE_S if drop else None)
        with self._stack:
            if self._work is not None:
                self._work.close()

    def _work_of(self, list_digest: str) -> CaseWork:
        with self._left:
            if self._work is None:
                options, budget = self._job.options, self._budget
                self._work = CaseWork(
                    self.segmenter, self.presence, self._job.output, options, budget, _Silent(), list_digest=list_digest
                )
            return self._work

    def _watch_client(self) -> None:
        """Close where the client was killed: nobody else tells this worker that the run has ended."""
        others = OtherRuns(self._job.output)
        while not self._ending.wait(TOUCH_S):
            if others.is_dead(self._job.run) or others.is_silent(self._job.run):
                self.close(drop=False)


def _available_memory(memory_limit: int | None) -> Available:
    here = available_memory()
    return here if memory_limit is None else min(here, Available(memory_limit, "this worker's limit"))


class _Silent(Progress):
    """Says nothing: the client tells its user what became of a case."""

    def case_done(self, outcome: Outcome) -> None:
        """A case ended."""


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[int, str]] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.lines.append((record.levelno, record.getMessage()))


@contextlib.contextmanager
def _warnings() -> Iterator[list[tuple[int, str]]]:
    """Collect the warnings of this thread: the user sees the client's terminal, not the worker's."""
    handler, root = _Warnings(), logging.getLogger("ctseg")
    root.addHandler(handler)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)


def plugin_name(run: str) -> str:
    """Return the name of a run's plugin."""
    return f"ctseg-{run}"


def worded(error: CtsegError) -> str:
    """Return an error's kind and message."""
    return f"{type(error).__name__}: {error}"


def sample_of(scans: FoundScans) -> Sample | None:
    """Return a file of the input that can be read here, for workers to look at."""
    named = ((path, str(path)) for folder in scans.folders for path in folder.files)
    series = [item.series for item in scans.dicom.chosen] if scans.dicom is not None else []
    unnamed = ((path, f"a file of {one.label}") for one in series for path in one.paths)
    for path, label in itertools.chain(named, unnamed):
        with contextlib.suppress(OSError), open_regular(path) as file:
            return Sample(path, os.fstat(file.fileno()).st_size, label)
    return None


async def ready_of(name: str, dask_worker: Any = None) -> Ready | str:
    """Ask a worker, out of band, whether it can work; returns why not.

    Args:
        name: Of the run's plugin.
        dask_worker: Filled in by Dask.
    """
    plugin = dask_worker.plugins.get(name)
    if plugin is None:
        return "it does not know the run: was the scheduler restarted?"
    try:
        ready: Ready = await asyncio.to_thread(plugin.ready)
        return ready
    except CtsegError as error:
        return worded(error)


def answer_of(name: str, task: Task) -> Answer:
    """Do a case: the function that Dask runs.

    Args:
        name: Of the run's plugin.
        task: The case.
    """
    worker = distributed.get_worker()
    plugin = worker.plugins.get(name)
    answer: Answer = Answer(problem="the run has ended here") if plugin is None else plugin.answer(task)
    return dataclasses.replace(answer, worker=worker.address)


def _check_versions(job: Job) -> None:
    if (job.version, job.python) != (ctseg.__version__, PYTHON):
        raise SetupError(
            f"it has ctseg {ctseg.__version__} on Python {'.'.join(map(str, PYTHON))}, the client ctseg {job.version} "
            f"on Python {'.'.join(map(str, job.python))}: install the same on all"
        )


def _check_paths(job: Job) -> None:
    """Refuse where the client's folders are not these.

    Raises:
        SetupError: The client's run is not seen in the output folder, or its input cannot be read.
    """
    others = OtherRuns(job.output)
    if not seen(others, job.run):
        raise SetupError(
            f"in {job.output} it does not see what the client has just written there: name an output folder that all "
            "workers share, by the path that it has on all of them"
        )
    if job.sample is None:
        return
    size, label = job.sample.size, job.sample.label
    try:
        with job.sample.path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise SetupError(
            f"it cannot read {label}: {error.strerror or error}: name scans on a disk that all workers share, by the "
            "path that it has on all of them"
        ) from error
    if found != size:
        raise SetupError(f"{label} has {found} bytes there and {size} for the client: it is not on a shared disk")


def seen(others: OtherRuns, run: str) -> bool:
    """Whether a run of another host is seen in an output folder, at the latest after a while."""
    give_up_at = time.monotonic() + SIGHT_S
    while others.is_dead(run):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.1)
    return True


def _with_headers(job: Job) -> ServedModel:
    """Return the model with the values of the headers, from this worker's own environment."""
    missing = [variable for variable in job.header_variables.values() if variable not in os.environ]
    if missing:
        raise SetupError(
            f"the environment variable {missing[0]} is not set there: headers come from each worker's own environment"
        )
    headers = {name: os.environ[variable] for name, variable in job.header_variables.items()}
    return dataclasses.replace(job.model, client=dataclasses.replace(job.model.client, headers=headers))
