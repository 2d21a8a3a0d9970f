"""Whether a scan that was sent is still worked on, and how far it is."""

import time

from ctseg.predict.progress import Progress
from ctseg.predict.whole_scan import ScanProgress
from ctseg.triton.errors import NOT_FOUND, UNAVAILABLE, CallError
from ctseg.triton.scan_server import ScanServer

LOOK_S = 2.0
"""Between two looks at a scan that was sent."""
_SLOWEST_BYTES_PER_S = 1 << 20
"""While a scan travels there is no sign of it: a link that carries less needs a longer time limit."""


class WindowsTold:
    """Tells a person of the windows of one case, however often it is sent.

    Args:
        progress: Told of them.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._planned = 0
        self._done = 0

    def tell(self, planned: int, done: int) -> None:
        """Tell what is new of so many windows."""
        if planned > self._planned:
            self._progress.windows_planned(planned - self._planned)
            self._planned = planned
        if done > self._done:
            self._progress.windows_done(done - self._done)
            self._done = done


class ScanWatch:
    """Looks after one scan that was sent to a server.

    A sign of life is that windows come back; that it is prepared or restored; that others' windows come back where it
    waits for its turn, or where the version that it runs on has been replaced and answers no other request.

    Args:
        server: It was sent there.
        request_id: Of the request.
        size: Of what was sent, in bytes.
        told: Tells of its windows.

    Attributes:
        last_sign: When there was a sign of life last, by the monotonic clock.
        began: When it was seen at work first; None before.
    """

    def __init__(self, server: ScanServer, request_id: str, size: int, told: WindowsTold) -> None:
        self._server = server
        self._request_id = request_id
        self._told = told
        self._last: ScanProgress | None = None
        self._computed: int | None = None
        self.last_sign = time.monotonic() + size / _SLOWEST_BYTES_PER_S
        self.began: float | None = None

    def look(self) -> None:
        """Ask the server once."""
        if self._is_alive():
            self.last_sign = max(self.last_sign, time.monotonic())
            self._server.shows_life()

    def _is_alive(self) -> bool:
        try:
            progress = self._server.progress_of(self._request_id)
        except CallError as error:
            return error.status in (UNAVAILABLE, NOT_FOUND) and self._server.is_alive() and self._others_go_on()
        before, self._last = self._last, progress
        if progress.state == "unknown":  # on its way there, or back
            return False
        if progress.state == "waiting":
            return self._others_go_on()
        if self.began is None:
            self.began = time.monotonic()
        self._told.tell(progress.windows, progress.windows_done)
        if progress.windows_done >= progress.windows:
            return True
        return progress != before or self._others_go_on(if_not_told=False)

    def _others_go_on(self, *, if_not_told: bool = True) -> bool:
        """Whether the networks have run since the last look."""
        before, self._computed = self._computed, self._server.computed()
        return if_not_told if self._computed is None else self._computed != before
