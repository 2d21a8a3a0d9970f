"""Loads the compiled kernels when they are first needed, and runs them on threads.

numba takes longer to import than everything else of the client together, so nothing imports it
before a case is prepared. Kernels release the interpreter lock and are split over a thread pool of
our own: numba's own parallel loops abort the process where their threading layer is not safe to
enter from several threads, and the stages of a folder do run at the same time.
"""

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from ctseg.errors import SetupError

_log = logging.getLogger(__name__)
_pool_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_num_threads: int | None = None


@lru_cache(maxsize=1)
def load_kernels() -> ModuleType:
    """Return :mod:`ctseg.numerics.kernels`, compiled or read from the compile cache.

    Raises:
        SetupError: numba is missing, or cannot compile on this machine.
    """
    try:
        from ctseg.numerics import kernels
    except Exception as error:
        raise SetupError(
            f"the numeric kernels cannot be compiled: {type(error).__name__}: {error}; expected a working numba and "
            "llvmlite in this environment: run 'pip install --force-reinstall numba llvmlite', and set "
            "NUMBA_CACHE_DIR to a writable folder if the message speaks of a cache"
        ) from error
    return kernels


def load_kernels_ahead() -> None:
    """Begin to load the kernels on a thread, while something else is waited for.

    What fails here fails again, and is told, where the kernels are needed.
    """

    def load() -> None:
        with contextlib.suppress(SetupError):
            load_kernels()

    threading.Thread(target=load, name="ctseg-load-kernels").start()


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
    if _num_threads is not None:
        return _num_threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def find_cache_home(source: Path) -> Path | None:
    """Return a folder for the compile cache of ``source``, or None where numba's own choice is fine.

    In order: what ``NUMBA_CACHE_DIR`` names, the package's own ``__pycache__``, the user's cache
    folder, a private folder under the system's temporary one. Where the package lies on a read-only
    file system and carries compiled kernels, they are copied to the folder that was found.

    Raises:
        OSError: No folder can be written.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named and _is_writable(Path(named)):
        return None
    shipped = source.parent / "__pycache__"
    if not named and _is_writable(shipped):
        return None
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "ctseg" / "kernels"
    for home in (user, Path(tempfile.gettempdir()) / f"ctseg-kernels-{getattr(os, 'getuid', int)()}"):
        if _is_writable(home):
            _log.debug("compiled kernels are kept in %s", home)
            return home
    raise OSError(f"no writable folder for compiled kernels: tried {named or shipped}, {user} and the temporary folder")


def copy_shipped_kernels(source: Path, target: Path) -> None:
    """Copy the compile cache that lies beside ``source`` into ``target``, where it is newer or missing."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (source.parent / "__pycache__").glob(f"{source.stem}.*.nb[ic]"):
        copy = target / file.name
        if not copy.exists():
            partial = target / f"{file.name}.{os.getpid()}"
            shutil.copyfile(file, partial)
            partial.replace(copy)


def _is_writable(folder: Path) -> bool:
    """Whether this user can write there and nobody else has put the folder in place (it will hold code that runs)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if hasattr(os, "getuid") and folder.parent == Path(tempfile.gettempdir()):
            foreign = found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if foreign or stat.S_ISLNK(found.st_mode):
                return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
