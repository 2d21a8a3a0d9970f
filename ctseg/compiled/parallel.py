"""Splits the work of a kernel over threads.

A thread pool of our own: numba's parallel loops abort the process where their threading layer is not safe to
enter from several threads, and the stages of a folder do run at the same time.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ctseg.compiled.cpus import usable_cpus

_pool_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_num_threads: int | None = None


def set_num_threads(count: int | None) -> None:
    """Set how many threads a kernel uses; None means every processor this process may run on.

    Raises:
        ValueError: ``count`` is below 1.
    """
    global _num_threads
    if count is not None and count < 1:
        raise ValueError(f"expected at least 1 thread, found {count}")
    _num_threads = count


def num_threads() -> int:
    """Return how many threads a kernel uses."""
    return _num_threads if _num_threads is not None else usable_cpus()


def run_parallel(task: Callable[[int, int], object], count: int) -> None:
    """Run ``task(first, last)`` over parts of ``range(count)`` on threads, and wait for all of them.

    The calling thread works too. Safe to call from several threads at once; ``task`` must not call it.

    Args:
        task: Works on the units ``first`` to ``last - 1``; must release the interpreter lock to gain anything.
        count: How many units there are; they should cost about the same.

    Raises:
        BaseException: What ``task`` raised first, after every other part that had begun has ended.
    """
    threads = min(num_threads(), count)
    if threads <= 1:
        if count:
            task(0, count)
        return
    # a few parts per thread: a thread that the machine holds up does not hold up the others
    parts = _Parts(task, count, min(count, 4 * threads))
    with contextlib.suppress(RuntimeError):  # no more threads are to be had: those that are there do the work
        for _ in range(threads - 1):
            _pool().submit(parts.work)
    parts.work()
    parts.wait()


class _Parts:
    """The parts of ``range(count)``, for threads that take one after the other.

    A thread that comes late, or not at all, is not waited for: what is waited for is the parts that were taken.
    """

    def __init__(self, task: Callable[[int, int], object], count: int, parts: int) -> None:
        self._task = task
        self._bounds = [count * part // parts for part in range(parts + 1)]
        self._next = 0
        self._running = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def work(self) -> None:
        """Do parts until none is left, or one has failed."""
        while (part := self._taken()) is not None:
            error: BaseException | None = None
            try:
                self._task(self._bounds[part], self._bounds[part + 1])
            except BaseException as raised:
                error = raised
            with self._changed:
                self._running -= 1
                self._error = self._error or error
                self._changed.notify_all()

    def wait(self) -> None:
        """Wait until no part is at work: nobody may write into freed arrays.

        Raises:
            BaseException: What the first part that failed raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)
            del self._task  # a thread that comes late holds no arrays
            if self._error is not None:
                raise self._error

    def _taken(self) -> int | None:
        with self._changed:
            if self._error is not None or self._next == len(self._bounds) - 1:
                return None
            self._running += 1
            self._next += 1
            return self._next - 1


def _pool() -> ThreadPoolExecutor:
    with _pool_lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            _pools.clear()  # threads do not survive a fork
            # started as they are needed, idle ones first; enough for the kernels of four cases at once
            threads = 4 * max(usable_cpus(), _num_threads or 1)
            pool = _pools[os.getpid()] = ThreadPoolExecutor(threads, thread_name_prefix="ctseg-kernel")
        return pool
