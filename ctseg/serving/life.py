"""Whether a server that was started here still runs, as its supervisor tells."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable

from ctseg.triton import shared_memory

SHM_PREFIX = "ctseg-server-"
"""Begin of the names of the server's shared memory (between the server and its python backend)."""
_log = logging.getLogger(__name__)


class ServerLife:
    """Hears from the supervisor of one server; used from any number of threads.

    Attributes:
        reason: Why the server has ended by itself; empty while it has not.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_stopped = False
        self._was_begun_again = False
        self._supervisor: subprocess.Popen[str] | None = None
        self._at_end: list[Callable[[], None]] = []

    def begin(self, supervisor: "subprocess.Popen[str]", shm_prefix: str) -> None:
        """Listen to a supervisor from now on, on a thread.

        Args:
            supervisor: Leads a process group in which the server and all that it starts are.
            shm_prefix: Begin of the names of the server's shared memory.
        """
        self._supervisor = supervisor
        threading.Thread(target=self._listen, args=(supervisor, shm_prefix), name="server", daemon=True).start()

    def stopped(self) -> None:
        """From now on its end is no surprise."""
        self._is_stopped = True

    def computed(self) -> None:
        """Note that it has computed something: the ends before do not count any more."""
        if not self._was_begun_again or self._supervisor is None or self._supervisor.stdin is None:
            return
        self._was_begun_again = False
        with contextlib.suppress(OSError, ValueError):  # it has ended, which is heard elsewhere
            self._supervisor.stdin.write("computed\n")
            self._supervisor.stdin.flush()

    def wait_for_end(self, timeout_s: float) -> bool:
        """Wait so long until it has ended by itself, for good; return whether it has."""
        return self._ended.wait(timeout_s)

    def at_end(self, function: Callable[[], None]) -> None:
        """Have a function called, once, when the server has ended by itself, for good; at once where it has."""
        with self._lock:
            if not self._ended.is_set():
                self._at_end.append(function)
                return
        function()

    def _listen(self, supervisor: "subprocess.Popen[str]", shm_prefix: str) -> None:
        reason = "its supervisor was killed"
        if supervisor.stdout is not None:
            with supervisor.stdout as lines, contextlib.suppress(ValueError):
                for line in lines:
                    said = json.loads(line)
                    reason = said.get("ended", reason)
                    if said.get("after"):
                        self._was_begun_again = True
                        _log.warning("%s: tritonserver was started again", said["after"])
        if self._is_stopped:
            return
        with contextlib.suppress(ProcessLookupError):  # nobody has waited for the supervisor: the number is its own
            os.killpg(supervisor.pid, signal.SIGKILL)
        for path in shared_memory.FOLDER.glob(f"{shm_prefix}*"):
            path.unlink(missing_ok=True)
        _log.error("tritonserver is gone: %s", reason)
        with self._lock:
            self.reason = reason
            self._ended.set()
            functions, self._at_end = self._at_end, []
        for function in functions:
            function()
