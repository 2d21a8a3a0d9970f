"""The client's side of a run on Dask: which workers can work, which case goes out next, and what came back."""

import dataclasses
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import distributed

from ctseg.errors import CtsegError, ServerAwayError, ServerUnavailableError, SetupError
from ctseg.files.cases import Case
from ctseg.files.identity import printable
from ctseg.files.scans import FoundScans
from ctseg.predict.case_work import Turn
from ctseg.predict.ledger import Ledger
from ctseg.predict.left import Reason, leave, take_over_left
from ctseg.predict.model_notes import read_model_notes, write_model_note
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import Outcome, OutcomeStore
from ctseg.predict.parts import digest_of_list, note_part
from ctseg.predict.presence import OtherRuns, Presence
from ctseg.predict.progress import Progress
from ctseg.predict.report import Report, begin_report, folded, now
from ctseg.runs.dask_worker import (
    Answer,
    CasesOnWorker,
    Job,
    Ready,
    Task,
    answer_of,
    plugin_name,
    ready_of,
    sample_of,
    seen,
)
from ctseg.runs.folder import cases_for
from ctseg.runs.model import ServedModel

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Between two looks at which workers there are."""
_TRY_AGAIN_S = 30.0
"""After which a worker that could not work is asked again."""
_POLL_S = 1.0
"""Between two looks at cases that other runs work on."""
_RETRIES = 2
"""Of a task that raised what nobody expected; a case's own failure is an outcome, and no exception."""


class DaskRun:
    """One run over the cases of an input, on the workers of a Dask cluster.

    Args:
        client: Connected to the scheduler.
        output: Output folder, absolute; made if missing.
        options: How cases are segmented.
        patience_s: How long the run waits while no worker can work.
    """

    def __init__(self, client: Any, output: Path, options: BatchOptions, *, patience_s: float) -> None:
        self._client = client
        self._output = output
        self._options = options
        self._patience_s = patience_s

    def segment(
        self,
        scans: FoundScans,
        model: ServedModel,
        header_variables: Mapping[str, str],
        progress_for: Callable[[int], Progress],
    ) -> Report:
        """Segment the cases of an input; see :func:`ctseg.runs.dask.segment_folder_on_dask`."""
        handing: _Handing | None = None
        try:
            with Presence(self._output) as presence:
                ledger = Ledger(self._output, presence, overwrite=self._options.overwrite)
                job = Job(presence.run, self._output, sample_of(scans), model, header_variables, self._options)
                workers = Workers(self._client, job, ledger.others, patience_s=self._patience_s)
                try:
                    with workers.prepared():
                        contract = workers.first().contract
                        cases = cases_for(scans, contract, self._output, self._options)
                        write_model_note(self._output, contract, through=presence.folder)
                        note_part(self._output, presence, self._options.part, cases)
                        mine = self._options.part.of(cases)
                        take_over_left(self._output, mine, ledger.before)
                        begin_report(self._output)
                        handing = _Handing(self._client, workers, job, ledger, digest_of_list(cases))
                        handing.end(mine, progress_for(len(mine)))
                finally:  # the workers' runs have ended
                    if handing is not None:
                        left = handing.left(mine)
                        not_done = leave(self._output, presence.run, left, handing.reason, ledger.before, of=len(mine))
        finally:  # the client's, too
            is_folded = handing is not None and folded(self._output)
        ended = tuple(handing.ended[name] for name in sorted(handing.ended))
        return Report(finished=is_folded, written=now(), cases=ended, not_done=not_done)


class Workers:
    """Which workers of a cluster can work on a run.

    Args:
        client: Connected to the scheduler.
        job: Of the run.
        others: Looks at the workers' runs of the output folder.
        patience_s: How long to wait while none can work.

    Attributes:
        spec_digest: Of the model that all of them use.
    """

    def __init__(self, client: Any, job: Job, others: OtherRuns, *, patience_s: float) -> None:
        self._client = client
        self._job = job
        self._name = plugin_name(job.run)
        self._others = others
        self._patience_s = patience_s
        self._threads: dict[str, int] = {}
        self._fit: set[str] = set()
        self._unfit: dict[str, tuple[str, bool, float]] = {}
        self.spec_digest = ""
        self._looked = float("-inf")
        self._last_fit = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dask-workers")
        self._asked: Future[Mapping[str, Ready | str]] | None = None

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Give each worker its part in the run, those too that come later; take it back at the end."""
        with _scheduler_gone_is_told(self._client):
            self._client.register_plugin(CasesOnWorker(self._job))
        try:
            yield
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            with _while_connected(self._client):
                self._client.unregister_worker_plugin(self._name)

    def first(self) -> Ready:
        """Wait for workers, and ask all that are there.

        Raises:
            SetupError: One of them cannot work; it is named.
            ServerUnavailableError: They find no server of the model; ``ServerAwayError`` where one was there before.
            ServerAwayError: None has come.
        """
        while not (threads := self._nthreads()):
            self._check_patience()
            time.sleep(_POLL_S / 4)
        answers = self._ask(list(threads))
        if problems := {name: text for name, text in answers.items() if isinstance(text, str)}:
            raise self._refusal(problems)
        ready = {name: answer for name, answer in answers.items() if isinstance(answer, Ready)}
        name, chosen = next(iter(ready.items()))
        for other, answer in ready.items():
            if answer.contract.digest != chosen.contract.digest:
                raise SetupError(
                    f"Dask worker {name} has {chosen.contract.name} with the spec {chosen.contract.digest[:12]}, "
                    f"worker {other} with {answer.contract.digest[:12]}: deploy the same version to both",
                    settings=("urls",),
                )
        self.spec_digest = chosen.contract.digest
        self._threads = threads
        self._take(answers)
        return chosen

    def _refusal(self, problems: Mapping[str, str]) -> CtsegError:
        text = "; ".join(f"Dask worker {name}: {problem}" for name, problem in list(problems.items())[:3])
        if not all(problem.startswith(ServerUnavailableError.__name__) for problem in problems.values()):
            return SetupError(text)
        if read_model_notes(self._job.output):
            return ServerAwayError(f"{text}: start it again when a server answers", settings=("urls",))
        return ServerUnavailableError(text, settings=("urls",))

    @property
    def places(self) -> int:
        """How many cases those that can work do at once."""
        return sum(self._threads.get(name, 0) for name in self._fit)

    @property
    def restriction(self) -> dict[str, Any]:
        """What keeps Dask from giving a task to a worker that cannot work."""
        if self._fit == self._threads.keys():
            return {}
        # the second: a task whose workers have all died would wait for them
        return {"workers": sorted(self._fit), "allow_other_workers": True}

    @property
    def reason(self) -> Reason:
        """Why no worker can work."""
        return "server away" if any(away for _, away, _ in self._unfit.values()) else "workers away"

    def look(self) -> None:
        """See who has come and gone, now and then; ask those that are new, without waiting for them.

        Raises:
            ServerAwayError: The scheduler went away; or no worker can work, and has not for a while.
        """
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        self._threads = self._nthreads()
        self._fit &= self._threads.keys()
        if self._asked is not None and self._asked.done():
            self._take(self._asked.result())
            self._asked = None
        again = {name for name, (_, _, when) in self._unfit.items() if time.monotonic() - when < _TRY_AGAIN_S}
        new = [name for name in self._threads if name not in self._fit and name not in again]
        if new and self._asked is None:
            self._asked = self._pool.submit(self._ask, new)
        self._check_patience()

    def set_aside(self, name: str, problem: str, *, away: bool = False) -> None:
        """Give a worker no more cases for a while."""
        known = self._unfit.get(name)
        if known is None or known[0] != problem:
            logger.warning("Dask worker %s is left aside: %s", name, problem)
        self._fit.discard(name)
        self._unfit[name] = (problem, away, time.monotonic())

    def _take(self, answers: Mapping[str, Ready | str]) -> None:
        for name, answer in answers.items():
            if isinstance(answer, str):
                self.set_aside(name, answer, away=answer.startswith(ServerAwayError.__name__))
            elif answer.contract.digest != self.spec_digest:
                self.set_aside(name, f"its servers have the spec {answer.contract.digest[:12]}")
            else:
                self._fit.add(name)
                self._unfit.pop(name, None)

    def _ask(self, names: Sequence[str]) -> dict[str, Ready | str]:
        """Ask workers whether they can work, and look for what they wrote into the output folder."""
        with _scheduler_gone_is_told(self._client):
            versions = self._client.get_versions(packages=["ctseg"])
            answers: dict[str, Ready | str] = {}
            if problem := _version_problem(versions["scheduler"], versions["client"]):
                raise SetupError(f"the Dask scheduler {problem}")
            for name in names:
                if name in versions["workers"] and (
                    problem := _version_problem(versions["workers"][name], versions["client"])
                ):
                    answers[name] = problem
            left = [name for name in names if name not in answers]
            found = self._client.run(ready_of, self._name, workers=left, on_error="return") if left else {}
        for name, answer in found.items():
            if isinstance(answer, Ready) and not seen(self._others, answer.run):
                answer = (
                    f"what it writes into {self._job.output} is not seen here: name an output folder that all share, "
                    "by the path that it has on all of them"
                )
            answers[name] = answer if isinstance(answer, Ready | str) else repr(answer)
        return answers

    def _nthreads(self) -> dict[str, int]:
        if self._client.status not in ("running", "connecting"):
            raise ServerAwayError("the Dask scheduler went away")
        with _scheduler_gone_is_told(self._client):
            return dict(self._client.nthreads())

    def _check_patience(self) -> None:
        now_s = time.monotonic()
        if self._fit or self._asked is not None:
            self._last_fit = now_s
            return
        told = [f"worker {name}: {problem}" for name, (problem, _, _) in self._unfit.items() if name in self._threads]
        if self.reason == "server away" or now_s - self._last_fit > self._patience_s:
            why = "; ".join(told[:3]) or f"none has come for {self._patience_s:g} s: start workers"
            raise ServerAwayError(f"no Dask worker can work: {why}", settings=("timeout_s",))


class _Handing:
    """Hands cases out and takes outcomes in.

    No more cases are out than workers have threads: what waits at a worker that dies counts, for Dask, as what has
    killed it. All that were in flight there come last, one at a time.
    """

    def __init__(self, client: Any, workers: Workers, job: Job, ledger: Ledger, list_digest: str) -> None:
        self._client = client
        self._workers = workers
        self._job = job
        self._ledger = ledger
        self._store = OutcomeStore(job.output)
        self.ended: dict[str, Outcome] = {}
        self.reason: Reason = "stopped"
        self._progress = Progress()
        self._list_digest = list_digest
        self._done = distributed.as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self._out: dict[Any, Task] = {}
        self._number = itertools.count()
        self._to_do: deque[Task | tuple[int, Case]] = deque()
        self._held: list[Task] = []
        self._last: list[Task] = []
        self._look_again_at = 0.0

    def end(self, cases: Sequence[Case], progress: Progress) -> None:
        """Bring cases to their end, as long as there are workers."""
        self._to_do.extend(enumerate(cases))
        self._progress = progress
        try:
            with progress:
                while self._to_do or self._held or self._last or self._out:
                    self._workers.look()
                    self._hand_out()
                    self._take_in()
        except ServerAwayError as error:
            logger.error("%s: %s", type(error).__name__, error)
            self.reason = self._workers.reason
        except OSError as error:  # workers tell of theirs; here outcomes are looked at
            logger.error("%s: cannot be looked at: %s", self._job.output, error)
            self.reason = "output disk away"
        finally:
            with _while_connected(self._client):
                self._client.cancel(list(self._out))

    def left(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases without an outcome; those that a worker has ended, but could not tell, have one."""
        with suppress(OSError):  # a disk that is away
            for case in cases:
                if case.name not in self.ended and (outcome := self._ledger.ended_since(case.name)) is not None:
                    self.ended[case.name] = outcome
        return [case for case in cases if case.name not in self.ended]

    def _hand_out(self) -> None:
        if self._held and time.monotonic() > self._look_again_at:
            self._to_do.extend(self._held)
            self._held = []
        if any(task.turn is Turn.SUSPECTS for task in self._out.values()):
            return  # alone: what it may bring down is nobody else's worker
        while self._to_do and len(self._out) < self._workers.places:
            item = self._to_do.popleft()
            task = item if isinstance(item, Task) else self._task_of(*item)
            if task is not None:
                self._submit(task)
        if self._last and not (self._to_do or self._out) and self._workers.places:
            self._last.sort(key=lambda task: task.turn is Turn.SUSPECTS)
            self._submit(self._last.pop(0))

    def _submit(self, task: Task) -> None:
        name = plugin_name(self._job.run)
        with _scheduler_gone_is_told(self._client):
            future = self._client.submit(
                answer_of, name, task, key=f"{name}-{task.index}-{next(self._number)}",  # no name of a patient
                pure=False, retries=_RETRIES, **self._workers.restriction,
            )  # fmt: skip
        self._out[future] = task
        self._done.add(future)

    def _task_of(self, index: int, case: Case) -> Task | None:
        """Return a case as a task; None: another run has ended it since this one began."""
        before = self._store.digest(case.name)
        if (outcome := self._ledger.ended_since(case.name)) is not None:
            self._end_with(case, outcome)
            return None
        return Task(case, index, before, self._workers.spec_digest, self._list_digest)

    def _take_in(self) -> None:
        """Wait a little for what comes back."""
        with self._done.thread_condition:
            if not self._done.has_ready():
                self._done.thread_condition.wait(timeout=_POLL_S / 2)
        for future, result in self._done.next_batch(block=False):
            task = self._out.pop(future)
            self._take(task, result)
            future.release()

    def _take(self, task: Task, result: Any) -> None:
        if isinstance(result, tuple):  # kind, exception, traceback
            self._to_do.append(_failed(task, result[1]))
        elif isinstance(result, CancelledError) or not isinstance(result, Answer):
            self._to_do.append(task)  # by somebody else, or the scheduler has gone: the next look tells
        else:
            self._take_answer(task, result)

    def _take_answer(self, task: Task, answer: Answer) -> None:
        for level, line in answer.lines:
            logger.log(level, "%s", line)
        if answer.outcome is not None:
            self._end_with(task.case, answer.outcome)
        elif answer.problem is not None:
            self._workers.set_aside(answer.worker, answer.problem, away=answer.away)
            self._to_do.append(task)
        elif answer.turn is not Turn.FREE and answer.turn is not task.turn:
            if answer.turn is Turn.SUSPECTS:
                logger.warning(
                    "%s: in flight when a worker or another run was killed, or fell silent: done last, and alone",
                    printable(task.case.name),
                )
            self._last.append(dataclasses.replace(task, turn=answer.turn))
        else:
            if not self._held:
                self._look_again_at = time.monotonic() + _POLL_S
            self._held.append(task)

    def _end_with(self, case: Case, outcome: Outcome) -> None:
        self.ended[case.name] = outcome
        self._progress.windows_planned(outcome.windows)
        self._progress.windows_done(outcome.windows)
        self._progress.case_done(outcome)


def _failed(task: Task, error: BaseException) -> Task:
    """Return a task that writes down why its case failed on Dask, and not in the case's own work."""
    if isinstance(error, distributed.KilledWorker):
        text = f"{error.allowed_failures + 1} Dask workers died while they did it, for want of memory, most likely: "
        text += "their logs say more; fewer threads for each worker leave more memory to a case"
    else:
        text = f"unexpected on a Dask worker: {error!r}"
    return dataclasses.replace(task, turn=Turn.SUSPECTS, failed=text)


def _version_problem(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Say how another process of the cluster differs from the client; as Dask's ``get_versions`` tells it."""
    found, wanted = (
        (side["packages"]["ctseg"], ".".join(side["host"]["python"].split(".")[:2])) for side in (theirs, ours)
    )
    if found == wanted:
        return None
    what = "no ctseg" if found[0] is None else f"ctseg {found[0]}"
    return (
        f"has {what} on Python {found[1]}, this client ctseg {wanted[0]} on Python {wanted[1]}: install the same on all"
    )


@contextmanager
def _while_connected(client: Any) -> Iterator[None]:
    """Tidy up in the block; a scheduler that has gone needs nothing."""
    with suppress(ServerAwayError), _scheduler_gone_is_told(client):
        yield


@contextmanager
def _scheduler_gone_is_told(client: Any) -> Iterator[None]:
    try:
        yield
    except CtsegError:
        raise
    except Exception as error:  # of many kinds, once the client's inner parts have gone
        if isinstance(error, OSError | CancelledError) or client.status != "running":
            raise ServerAwayError(f"the Dask scheduler went away: {error or type(error).__name__}") from error
        raise
