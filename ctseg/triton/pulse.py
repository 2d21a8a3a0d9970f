"""Finds connections that are dead without a word: a link that was lost for a while leaves such.

The server has given the connection up, and the client, which only waits for an answer there, hears nothing of it. What
is written to such a connection ends it at once, with an error for all who wait.
"""

import threading
import time
from collections.abc import Callable

SILENT_S = 20.0
"""After how long a connection that owes an answer is written to, and how often."""


class Pulse:
    """Writes to connections that owe an answer and have been silent.

    Args:
        beats: Writes something short to each connection, and returns when that was answered or failed.
        silent_s: After how long.
    """

    def __init__(self, beats: list[Callable[[], object]], *, silent_s: float = SILENT_S) -> None:
        self._beats = beats
        self._silent_s = silent_s
        self._owed = [0] * len(beats)
        self._heard = [0.0] * len(beats)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def sent(self, index: int) -> None:
        """Note that a connection owes one more answer."""
        with self._lock:
            self._owed[index] += 1
            self._heard[index] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
                self._thread.start()

    def came(self, index: int) -> None:
        """Note that an answer or an error came, or that nothing was sent after all."""
        with self._lock:
            self._owed[index] -= 1
            self._heard[index] = time.monotonic()

    def close(self) -> None:
        """Write no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._silent_s / 4):
            for index, beat in enumerate(self._beats):
                with self._lock:
                    is_silent = self._owed[index] > 0 and time.monotonic() - self._heard[index] > self._silent_s
                    if is_silent:
                        self._heard[index] = time.monotonic()
                if is_silent:
                    beat()
