"""Batches of several cases on their way to the network: the earliest case first, or a fair share for each."""

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Protocol

from ctseg.arrays import Logits, Patches
from ctseg.predict.predictor import MirroringPredictor, PatchPredictor, predicting


@dataclass(frozen=True, eq=False)
class _Batch:
    ask: Callable[[Patches], Logits]
    patches: Patches
    cost: int
    future: "Future[Logits]"
    on_start: Callable[[], object] | None


Tag = tuple[int, int]
"""Of a batch: the least goes first, equal ones in order of submission."""


class Turns(Protocol):
    """The order of batches. Who calls it holds a lock."""

    def tag(self, priority: int, cost: int) -> Tag:
        """Return the tag of a batch that comes now.

        Args:
            priority: Of its case.
            cost: How many windows the network runs for it.
        """
        ...

    def taken(self, tag: Tag) -> None:
        """The batch with this tag is sent now."""
        ...


class EarliestFirst:
    """The smallest priority first: cases overlap without falling into step.

    While an earlier case still has batches waiting, they go first; when it is being restored, the next case's batches
    keep the network busy.
    """

    def tag(self, priority: int, cost: int) -> Tag:  # noqa: ARG002 (of all orders)
        """See :class:`Turns`."""
        return priority, 0

    def taken(self, tag: Tag) -> None:
        """See :class:`Turns`."""


class FairShare:
    """The same number of windows to each case, by its priority, that has batches waiting.

    A batch's tag is the virtual time at which it would be through: the windows of its case so far, counted from the
    virtual time at which the case came, which is the tag of the batch that was sent last. So a newcomer waits for one
    batch of every other case at most (if all are of the same size, beside those that are sent), nobody saves up a
    share by sending nothing, and since time goes on with each batch, no stream of newcomers keeps a case waiting.

    Source:
        Golestani, A self-clocked fair queueing scheme for broadband applications, INFOCOM 1994. Start-time fair
        queueing (Goyal, Vin and Cheng 1996) would wait for as few batches, but its time stands still while every
        batch is a newcomer's.
    """

    def __init__(self) -> None:
        self._now = 0
        self._through: dict[int, int] = {}

    def tag(self, priority: int, cost: int) -> Tag:
        """See :class:`Turns`; of equal ones the later case's goes first."""
        through = self._through[priority] = max(self._now, self._through.get(priority, 0)) + cost
        return through, -priority

    def taken(self, tag: Tag) -> None:
        """See :class:`Turns`."""
        self._now = max(self._now, tag[0])
        self._through = {case: through for case, through in self._through.items() if through > self._now}


class InferenceQueue:
    """Batches for one predictor, on threads that may serve other predictors too.

    Args:
        predictor: Runs the network.
        mirroring: Average over mirrored patches, if the spec says that the client does this.
        threads: Those of several queues; by default the queue has its own.
        votes: Ask for the votes of the folds too, if the spec has them.

    Attributes:
        votes: Whether answers have votes behind the logits, see :mod:`ctseg.numerics.votes`.
        requests_per_batch: How often the network runs for one batch.
        threads: What runs the batches.
    """

    def __init__(
        self,
        predictor: PatchPredictor,
        *,
        mirroring: bool = True,
        threads: "InferenceThreads | None" = None,
        votes: bool = False,
    ) -> None:
        self.votes = votes and predictor.spec.votes is not None
        self.requests_per_batch = 1
        if mirroring and predictor.spec.mirroring == "client":
            predictor = mirrored = MirroringPredictor(predictor)
            self.requests_per_batch = mirrored.requests_per_batch
        self._predictor: PatchPredictor = predictor
        self.threads = threads or InferenceThreads()
        self.threads.keep_up(predictor.max_in_flight)

    @property
    def predictor(self) -> PatchPredictor:
        """What runs the network."""
        return self._predictor

    def submit(
        self, patches: Patches, *, priority: int, on_start: Callable[[], object] | None = None
    ) -> "Future[Logits]":
        """Queue a batch.

        Args:
            patches: See :meth:`PatchPredictor.predict`; must not change until the future is done.
            priority: Index of the case; see :class:`Turns`.
            on_start: Called when the batch's turn has come, just before it is sent.

        Returns:
            The logits to come, or the error that the predictor raised. Cancelling it drops a batch
            that has not been sent.

        Raises:
            CancelledError: The queue was aborted.
        """
        future: Future[Logits] = Future()
        self.threads.keep_up(self._predictor.max_in_flight)
        cost = len(patches) * self.requests_per_batch
        ask = predicting(self._predictor, votes=self.votes)
        self.threads.put(_Batch(ask, patches, cost, future, on_start), priority)
        return future

    def abort(self) -> None:
        """See :meth:`InferenceThreads.abort`."""
        self.threads.abort()

    def close(self) -> None:
        """See :meth:`InferenceThreads.close`."""
        self.threads.close()


class InferenceThreads:
    """Runs batches in their order, as many at a time as the predictor that takes most.

    Args:
        turns: The order; by default the earliest case first.
    """

    def __init__(self, turns: Turns | None = None) -> None:
        self._turns = turns or EarliestFirst()
        self._waiting: queue.PriorityQueue[tuple[Tag, int, _Batch | None]] = queue.PriorityQueue()
        self._aborted = threading.Event()
        self._running: set[Future[Logits]] = set()
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._threads: list[threading.Thread] = []

    def keep_up(self, count: int) -> None:
        """Have at least so many threads: as many as a predictor takes calls at once, which may become more."""
        with self._lock:
            while len(self._threads) < count:
                name = f"inference-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()

    def put(self, batch: _Batch, priority: int) -> None:
        """Queue a batch.

        Raises:
            CancelledError: The threads were aborted.
        """
        if self._aborted.is_set():
            raise CancelledError
        with self._lock:
            tag = self._turns.tag(priority, batch.cost)
        self._waiting.put((tag, next(self._order), batch))
        if self._aborted.is_set():  # meanwhile: the threads may all be held up by what they send
            self._drop_waiting()

    def abort(self) -> None:
        """Wait for nothing any more: all futures, and later submissions, raise ``CancelledError``.

        A batch that is being sent is left to its thread, which ends when the predictor is closed.
        """
        self._aborted.set()
        self._drop_waiting()
        with self._lock:
            for future in self._running:
                future.set_exception(CancelledError())
            self._running.clear()

    def close(self) -> None:
        """Finish everything that was submitted, unless aborted, and stop the threads."""
        for _ in self._threads:
            self._waiting.put(((2**62, 0), next(self._order), None))
        if not self._aborted.is_set():
            for thread in self._threads:
                thread.join()

    def _drop_waiting(self) -> None:
        try:
            while True:
                _, _, batch = self._waiting.get_nowait()
                if batch is not None:
                    batch.future.cancel()
        except queue.Empty:
            return

    def _work(self) -> None:
        while True:
            tag, _, batch = self._waiting.get()
            if batch is None:
                return
            with self._lock:
                self._turns.taken(tag)
            self._run(batch)
            del batch  # the logits may lie in memory that is used again once they are gone

    def _run(self, batch: _Batch) -> None:
        future = batch.future
        with self._lock:
            if self._aborted.is_set():
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
            self._running.add(future)
        logits, failure = None, None
        try:
            if batch.on_start is not None:
                batch.on_start()
            logits = batch.ask(batch.patches)
        except BaseException as error:  # whatever it is belongs to the case that waits for it
            failure = error
        with self._lock:
            if future not in self._running:
                return  # aborted meanwhile
            self._running.discard(future)
        if failure is not None:
            future.set_exception(failure)
        elif logits is not None:
            future.set_result(logits)
        del batch, future, failure  # an error knows this frame: together they would hold the scan until Python looks
