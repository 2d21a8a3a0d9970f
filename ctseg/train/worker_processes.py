"""The worker processes that nnU-Net starts: how many, and that none outlives the training."""

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping
from functools import cache

_PR_SET_PDEATHSIG = 1


def limit_worker_processes(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give nnU-Net no more worker processes than there are cores, unless the environment says how many.

    Has to be called before nnU-Net is imported, because it reads the variable then.

    Args:
        environment: Changed in place: ``nnUNet_def_n_proc`` is set where it is not.
    """
    environment.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))


@cache
def end_workers_with_this_process() -> None:
    """Let the kernel end the processes that this one forks from now on, once it is gone (Linux only).

    The processes that prepare nnU-Net's batches do not notice that their parent was killed: they stay,
    each with its share of memory, until somebody looks for them.
    """
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(after_in_child=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
