"""A training that is asked to stop, and does so where nothing is lost."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

GRACE_S = 20.0
"""How long a validation that was told to end may take for it: Slurm and torchrun kill after 30 seconds."""

_ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_NO_MORE = b"\0"


class TrainingStopped(Exception):  # noqa: N818 (not an error: what was asked for)
    """The training was asked to stop, and has saved a checkpoint.

    Args:
        message: Where it stopped, and what is saved.
        settings: Names of the parameters with which it goes on, as those of :class:`ctseg.errors.CtsegError`.
        number: The signal that asked.
    """

    def __init__(self, message: str, *, settings: tuple[str, ...] = ("resume",), number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.settings = settings
        self.number = number


class StopRequest:
    """A wish to stop at the next step, set by a signal.

    Args:
        grace_s: A process that has nothing to save, and has not left so many seconds after the signal, is ended.
            A handler of Python's runs when native code returns, which a collective operation whose other side is
            gone may never do.
    """

    def __init__(self, *, grace_s: float = GRACE_S) -> None:
        self.requested = False
        self.number: int = signal.SIGTERM
        self._at_once: TrainingStopped | None = None
        self._nothing_to_save = False
        self._left = threading.Event()
        self._grace_s = grace_s

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.requested, self.number = True, number
        # once: a second signal must not disturb what the first one has to clean up
        stopped, self._at_once = self._at_once, None
        if stopped is not None:
            stopped.number = number
            raise stopped

    @contextlib.contextmanager
    def at_once(self, stopped: TrainingStopped) -> Iterator[None]:
        """Do not wait for a step, of which there are none in a validation.

        Args:
            stopped: What is raised.

        Raises:
            TrainingStopped: The signal comes, or has come already.
        """
        self._at_once, self._nothing_to_save = stopped, True
        try:
            if self.requested:
                stopped.number = self.number
                raise stopped
            yield
        finally:
            self._at_once, self._nothing_to_save = None, False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGHUP for the wish to stop; the former handlers come back afterwards.

        ``nohup`` keeps its meaning.
        """
        taken = [number for number in _ASKING if signal.getsignal(number) != signal.SIG_IGN]
        former = {number: signal.signal(number, self._on_signal) for number in taken}
        try:
            with self._watched():
                yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Let a thread see each signal in the moment in which it comes."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(former)
            self._left.set()
            with contextlib.suppress(BlockingIOError):
                os.write(writing, _NO_MORE)
            watch.join()
            os.close(writing)
            os.close(reading)

    def _watch(self, reading: int) -> None:
        while (came := os.read(reading, 1)) != _NO_MORE:
            number = came[0]
            if number not in (*_ASKING, signal.SIGINT) or not self._nothing_to_save:
                continue
            if self._left.wait(self._grace_s):
                return
            for process in multiprocessing.active_children():
                process.kill()
            os._exit(128 + number)
