"""Pools of worker processes that end: by SIGKILL, within a bound, whatever became of their workers and locks.

Python's own ends a pool by asking its workers to leave, and waits for their lock without a bound. A worker that
dies with the lock, because a signal went to the whole process group, leaves the parent waiting for ever; so does
one that ignores the signal. nnU-Net's validation, evaluation, planning and preprocessing use such pools.

Imported by each worker: nothing heavy.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.pool
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ctseg.errors import TrainingError

BOUND_S = 10.0
"""How long the end of a pool waits for one thing that ought to come at once."""

_PythonsPool: Any = multiprocessing.pool.Pool
_STATE_ENDED = multiprocessing.pool.TERMINATE


class KilledPool(_PythonsPool):  # type: ignore[misc]  # typeshed does not know the private members
    """A :class:`multiprocessing.pool.Pool` whose workers are killed at its end, and die with their parent.

    Where a worker is killed in mid-work, by the kernel that is short of memory, what waits for its result raises a
    :class:`ctseg.errors.TrainingError` instead of waiting for ever.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        # multiprocessing's ThreadPool calls whatever is called Pool in its module, with itself
        maker: Any = self
        if not isinstance(maker, KilledPool):
            _PythonsPool.__init__(self, processes, initializer, initargs, maxtasksperchild, context)
            return
        super().__init__(processes, begin_worker, (initializer, initargs), maxtasksperchild, context)
        if maxtasksperchild is None:
            watched = (self._cache, list(self._pool), self._worker_handler)
            threading.Thread(target=_fail_with_a_worker, args=watched, daemon=True).start()

    @classmethod
    def _terminate_pool(
        cls,
        taskqueue: Any,
        inqueue: Any,
        outqueue: Any,
        pool: list[Any],
        change_notifier: Any,
        worker_handler: Any,
        task_handler: Any,
        result_handler: Any,
        cache: Any,  # noqa: ARG003 (Python's signature)
    ) -> None:
        try:
            for handler in (worker_handler, task_handler, result_handler):
                handler._state = _STATE_ENDED
            change_notifier.put(None)
            # from here on nobody replaces a worker
            worker_handler.join(BOUND_S)
        finally:
            for process in pool:
                process.kill()
        for process in pool:
            process.join(BOUND_S)
        # no locks: who held one may be dead
        taskqueue.put(None)
        _drain(inqueue, task_handler)
        _wake(outqueue, result_handler)


def _drain(queue: Any, sender: threading.Thread) -> None:
    """Empty the pipe into which a thread may be writing what nobody takes any more."""
    descriptor = queue._reader.fileno()
    os.set_blocking(descriptor, False)
    deadline = time.monotonic() + 1
    while sender.is_alive() and time.monotonic() < deadline:
        try:
            os.read(descriptor, 1 << 20)
        except BlockingIOError:
            sender.join(0.01)


def _wake(queue: Any, receiver: threading.Thread) -> None:
    """Let a thread see that nothing comes any more; one in the middle of half a message is left to itself."""
    os.set_blocking(queue._writer.fileno(), False)
    with contextlib.suppress(OSError):
        queue._writer.send(None)
    receiver.join(1)


def _fail_with_a_worker(cache: Any, workers: list[Any], handler: Any) -> None:
    """Give whatever is waited for an error, once a worker is gone whose pool goes on."""
    multiprocessing.connection.wait([worker.sentinel for worker in workers])
    while handler._state == multiprocessing.pool.RUN:
        for job in list(cache.values()):
            job._success, job._value = (
                False,
                TrainingError(
                    "a worker process was ended while it worked, which the kernel does where memory runs out: fewer "
                    "worker processes need less (nnUNet_def_n_proc)",
                    settings=("processes",),
                ),
            )
            job._event.set()
            cache.pop(job._job, None)
        time.sleep(0.1)


def begin_worker(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    """What a worker does first: tie its life to its parent's, and leave Ctrl-C to it."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if initializer is not None:
        initializer(*initargs)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def pools_that_end() -> Iterator[None]:
    """Let every pool of processes that is made inside be a :class:`KilledPool`."""
    module: Any = multiprocessing.pool
    former = module.Pool
    module.Pool = KilledPool
    try:
        yield
    finally:
        module.Pool = former
