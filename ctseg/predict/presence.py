"""Which runs of an output folder live: each holds a file locked and touches it; and where each writes.

``OUT/.ctseg/runs/<run>/`` is a run's own folder: what it has not put in place yet lies there, so that a dead
run's leftovers go with it. On one kernel the lock tells, which ends with its process. A host that this one shares
no kernel with is told by the touches: where none comes for a while on the observer's own clock, the run is silent.
"""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from ctseg.errors import OutputError
from ctseg.predict.outcomes import MEMORY_NAME

logger = logging.getLogger(__name__)

TOUCH_S = 10.0
"""Between two touches of a living run."""
SILENT_S = 90.0
"""A run that nobody heard of for so long is silent; network file systems pass a touch on within a minute."""
_LISTEN_S = 5.0
_ALIVE_NAME = "alive"
_WRITTEN_IN_PLACE = ("reports", "models", "parts", "left")
"""Folders of the memory in which files lie under a hidden name until they are whole."""


class Presence:
    """A run that lives while the context is open.

    Args:
        output: The output folder, which exists.
        touch_s: Seconds between two touches.
    """

    def __init__(self, output: Path, *, touch_s: float = TOUCH_S) -> None:
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:32]
        self.run = f"{host}.{os.getpid()}.{secrets.token_hex(8)}"
        self.folder = _runs_of(output) / self.run
        self._touch_s = touch_s
        self._ended = threading.Event()
        self._file: IO[str] | None = None
        self._thread = threading.Thread(target=self._touch, name="presence", daemon=True)

    def __enter__(self) -> "Presence":
        """Make the run's folder.

        Raises:
            OutputError: It cannot be made.
        """
        made = self.folder.with_name(f".{self.run}")
        try:
            made.mkdir(parents=True)
            self._file = (made / _ALIVE_NAME).open("w+", encoding="utf-8")
            # where nothing can be locked, touches tell, here too
            self._file.write(_kernel() if _can_be_locked(self._file) else "no flock")
            self._file.flush()
            made.rename(self.folder)  # nobody sees it before it is locked
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
            shutil.rmtree(made, ignore_errors=True)
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the run's folder."""
        self._ended.set()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._file is not None:
            self._file.close()

    def _touch(self) -> None:
        while not self._ended.wait(self._touch_s):
            with contextlib.suppress(OSError):  # a disk that is away for a while
                os.utime(self.folder / _ALIVE_NAME)


class OtherRuns:
    """Watches the runs of an output folder.

    Args:
        output: The output folder.
        silent_s: After how long without a touch a run on another kernel counts as silent.
        clock: Seconds that only grow.
    """

    def __init__(
        self, output: Path, *, silent_s: float = SILENT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = _runs_of(output)
        self._silent_s = silent_s
        self._clock = clock
        self._heard: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def is_dead(self, run: str) -> bool:
        """Whether a run's process has ended for certain: its folder is gone, or its lock is free on this kernel."""
        alive = self._folder / run / _ALIVE_NAME
        try:
            with alive.open("r+", encoding="utf-8") as file:
                return file.read() == _kernel() and _can_be_locked(file)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def is_silent(self, run: str) -> bool:
        """Whether nothing was heard of a run for ``silent_s`` since the first look: dead, stopped, or cut off."""
        try:
            touched = _touched(self._folder / run)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        now = self._clock()
        with self._lock:
            known = self._heard.get(run)
            if known is None or known[0] != touched:
                self._heard[run] = (touched, now)
                return False
            return now - known[1] > self._silent_s

    def living(self) -> list[str]:
        """Return the runs that are neither dead for certain, nor on another kernel and silent."""
        return [folder.name for folder in self._folders() if not self._has_ended(folder)]

    def listen(self) -> list[str]:
        """Wait until every run on another kernel was heard of, or is silent; return those that live."""
        first = {folder.name: _sign_of(folder) for folder in self._folders() if self._on_another_kernel(folder)}
        while waiting := [run for run in self.living() if run in first and _sign_of(self._folder / run) == first[run]]:
            logger.info("waiting for a sign of %s", ", ".join(waiting))
            time.sleep(min(_LISTEN_S, self._silent_s))
        return self.living()

    def remove_leftovers(self) -> None:
        """Remove the folders of runs that are dead for certain, or on another kernel and silent."""
        for folder in self._folders():
            if self._has_ended(folder):
                logger.info("%s: removed what a run that has ended left", folder)
                shutil.rmtree(folder, ignore_errors=True)
        for path in self._half_made():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # another user's
                    path.unlink(missing_ok=True)

    def _half_made(self) -> list[Path]:
        """Return what runs were killed in the making of: older by far than the newest run, by the disk's clock."""
        with contextlib.suppress(OSError):
            last = max((entry.stat().st_mtime for entry in self._folder.iterdir()), default=0.0)
            memory = [self._folder, *(self._folder.parent / name for name in _WRITTEN_IN_PLACE)]
            hidden = [path for folder in memory for path in folder.glob(".*")]
            return [path for path in hidden if path.stat().st_mtime < last - SILENT_S]
        return []

    def _folders(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [entry for entry in self._folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()]

    def _has_ended(self, folder: Path) -> bool:
        return self.is_dead(folder.name) or (self._on_another_kernel(folder) and self.is_silent(folder.name))

    def _on_another_kernel(self, folder: Path) -> bool:
        try:
            return (folder / _ALIVE_NAME).read_text(encoding="utf-8") not in ("", _kernel())
        except OSError:
            return False


def _touched(folder: Path) -> int:
    with (folder / _ALIVE_NAME).open("rb") as file:  # opening asks the server of a network disk
        return os.fstat(file.fileno()).st_mtime_ns


def _sign_of(folder: Path) -> int | None:
    try:
        return _touched(folder)
    except OSError:
        return None


def _runs_of(output: Path) -> Path:
    return output / MEMORY_NAME / "runs"


def _can_be_locked(file: IO[str]) -> bool:
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _kernel() -> str:
    """Return what is the same for all processes that run on one kernel, containers too, and for no others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"host {socket.gethostname()}"
