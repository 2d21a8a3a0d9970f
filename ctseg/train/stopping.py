"""A training that is asked to stop, and does so where nothing is lost."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class TrainingStopped(Exception):  # noqa: N818 (not an error: what was asked for)
    """The training was asked to stop, and has saved a checkpoint.

    Args:
        message: Where it stopped, and what is saved.
        settings: Names of the parameters with which it goes on, as those of :class:`ctseg.errors.CtsegError`.
    """

    def __init__(self, message: str, *, settings: tuple[str, ...] = ("resume",)) -> None:
        super().__init__(message)
        self.settings = settings


class StopRequest:
    """A wish to stop at the next step, set by a signal."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once: TrainingStopped | None = None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        # once: a second signal must not disturb what the first one has to clean up
        stopped, self._at_once = self._at_once, None
        if stopped is not None:
            raise stopped

    @contextlib.contextmanager
    def at_once(self, stopped: TrainingStopped) -> Iterator[None]:
        """Do not wait for a step, of which there are none in a validation.

        Args:
            stopped: What is raised.

        Raises:
            TrainingStopped: The signal comes, or has come already.
        """
        self._at_once = stopped
        try:
            if self.requested:
                raise stopped
            yield
        finally:
            self._at_once = None

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Take SIGTERM for the wish to stop; the former handler comes back afterwards."""
        former = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)
