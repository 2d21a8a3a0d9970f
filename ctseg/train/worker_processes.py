"""The worker processes that nnU-Net starts: how many, and that none outlives the training."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from functools import cache

from ctseg.compiled.cpus import usable_cpus

_PR_SET_PDEATHSIG = 1


def default_workers() -> int:
    """Return how many worker processes there are unless told: one for each usable core, at most 8."""
    return min(8, usable_cpus())


def limit_worker_processes(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give nnU-Net no more worker processes than there are usable cores, unless the environment says how many.

    Has to be called before nnU-Net is imported, because it reads the variable then.

    Args:
        environment: Changed in place: ``nnUNet_def_n_proc`` is set where it is not.
    """
    environment.setdefault("nnUNet_def_n_proc", str(default_workers()))


@cache
def end_workers_with_this_process() -> None:
    """Let the kernel end the processes that this one forks from now on, once it is gone (Linux only).

    The processes that prepare nnU-Net's batches do not notice that their parent was killed: they stay,
    each with its share of memory, until somebody looks for them.
    """
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None).prctl

    def begin() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # what wakes the parent is not for them
        signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=begin)


def end_with_the_launcher() -> None:
    """Let the kernel send this process SIGTERM once the process that started it is gone (Linux only).

    torchrun tells its processes to end, but not where it is killed itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def no_workers_left() -> Iterator[None]:
    """End the processes that were started inside and are still there.

    Where a batch cannot be prepared, nnU-Net leaves loaders behind that nobody holds. They took over how this
    process takes SIGTERM, so that Python's own way of ending them would wait for ever.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
            process.join()
