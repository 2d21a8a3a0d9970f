"""What a long command is doing and how far it is: told to whoever watches, to nobody by itself.

Like logging, it needs no argument on the way: code says :func:`stage` around what may take long, and a command
that shows it watches by :func:`watched`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol


class Stage:
    """Something that takes a while.

    Attributes:
        what: What is being done, for people.
        total: How many steps it has; None: nobody knows.
        unit: What a step is, in the plural, for people.
        done: Steps that are done.
        began_s: When it began, on ``clock``.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "",
        watcher: "Watcher | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._clock = clock
        self.began_s = clock()
        self._watcher = watcher
        self._lock = threading.Lock()
        if watcher is not None:
            watcher.began(self)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self.began_s

    @property
    def left_s(self) -> float | None:
        """Seconds that are left if the rest goes as what is done; None: nobody can tell yet."""
        if not self.total or not self.done:
            return None
        return self.elapsed_s / self.done * max(0, self.total - self.done)

    def advance(self, count: int = 1) -> None:
        """So many more steps are done; may be called on any thread."""
        with self._lock:
            self.done += count
        if self._watcher is not None:
            self._watcher.advanced(self)

    def end(self) -> None:
        """It is over, one way or another."""
        if self._watcher is not None:
            self._watcher.ended(self)


class Watcher(Protocol):
    """Is told of stages; a stage may begin within another, and on any thread."""

    def began(self, stage: Stage) -> None:
        """A stage begins."""

    def advanced(self, stage: Stage) -> None:
        """Some steps of it are done."""

    def ended(self, stage: Stage) -> None:
        """It is over."""


_watcher: ContextVar[Watcher | None] = ContextVar("watcher of stages", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let all stages of this thread be told to a watcher while the block runs."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextlib.contextmanager
def stage(what: str, total: int | None = None, *, unit: str = "") -> Iterator[Stage]:
    """Say that the block is a stage.

    Args:
        what: What is being done, for people: ``PyTorch on the scan``.
        total: How many steps it has, if that is known.
        unit: What a step is, in the plural: ``windows``.
    """
    begun = open_stage(what, total, unit=unit)
    try:
        yield begun
    finally:
        begun.end()


def current_watcher() -> Watcher | None:
    """Return who watches this thread, for stages that begin on others."""
    return _watcher.get()


def open_stage(what: str, total: int | None = None, *, unit: str = "") -> Stage:
    """Begin a stage that the caller ends; see :func:`stage`."""
    return Stage(what, total, unit=unit, watcher=_watcher.get())
