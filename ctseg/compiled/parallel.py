"""Splits the work of a kernel over threads.

A thread pool of our own: numba's parallel loops abort the process where their threading layer is not safe to
enter from several threads, and the stages of a folder do run at the same time.
"""

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
        Exception: What ``task`` raised, after every other part has ended.
    """
    threads = min(num_threads(), count)
    if threads <= 1:
        if count:
            task(0, count)
        return
    # a few parts per thread: a thread that the machine holds up does not hold up the others
    parts = min(count, 4 * threads)
    bounds = [count * part // parts for part in range(parts + 1)]
    next_part = iter(range(parts))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                part = next(next_part, None)
            if part is None:
                return
            task(bounds[part], bounds[part + 1])

    futures = [_pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        # what a failed part leaves is not worth starting, but nobody may write into freed arrays
        errors = [future.exception() for future in futures if not future.cancel()]
    for error in errors:
        if error is not None:
            raise error


def _pool() -> ThreadPoolExecutor:
    with _pool_lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            _pools.clear()  # threads do not survive a fork
            # threads are started as they are needed, and idle ones are used first
            pool = _pools[os.getpid()] = ThreadPoolExecutor(max_workers=512, thread_name_prefix="ctseg-kernel")
        return pool
