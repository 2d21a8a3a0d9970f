"""Batches of several cases on their way to the network, the earliest case first."""

import itertools
import queue
import threading
from concurrent.futures import Future

from ctseg.predictor import Logits, Patches, PatchPredictor


class InferenceQueue:
    """Runs batches on a predictor, ``max_in_flight`` at a time, in order of their priority.

    Cases overlap without falling into step: while an earlier case still has batches waiting, they go
    first; when it is being restored, the next case's batches keep the network busy.

    Args:
        predictor: Runs the network.
    """

    def __init__(self, predictor: PatchPredictor) -> None:
        self._predictor = predictor
        self._waiting: queue.PriorityQueue[tuple[int, int, Future[Logits] | None, Patches | None]] = (
            queue.PriorityQueue()
        )
        self._order = itertools.count()
        self._threads = [
            threading.Thread(target=self._work, name=f"inference-{i}", daemon=True)
            for i in range(predictor.max_in_flight)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def predictor(self) -> PatchPredictor:
        """What runs the network."""
        return self._predictor

    def submit(self, patches: Patches, *, priority: int) -> "Future[Logits]":
        """Queue a batch.

        Args:
            patches: See :meth:`PatchPredictor.predict`; must not change until the future is done.
            priority: Index of the case; smaller goes first, equal ones in order of submission.

        Returns:
            The logits to come, or the error that the predictor raised. Cancelling it drops a batch
            that has not been sent.
        """
        future: Future[Logits] = Future()
        self._waiting.put((priority, next(self._order), future, patches))
        return future

    def close(self) -> None:
        """Finish what is being sent, drop nothing that was submitted before, and stop the threads."""
        for _ in self._threads:
            self._waiting.put((2**62, next(self._order), None, None))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            _, _, future, patches = self._waiting.get()
            if future is None or patches is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                logits = self._predictor.predict(patches)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(logits)
                del logits
            del future, patches  # the logits may lie in memory that is used again once they are gone
