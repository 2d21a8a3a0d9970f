"""Keeps one server process: started by ctseg as a script, stops the server when its parent is gone.

The parent holds the other end of standard input; when that closes (also by ``kill -9``), or the parent says ``stop``,
the server and everything it started are stopped, and its shared memory and its private folder are removed; after
``stop, keep the folder`` the parent still reads the log. A server that ends by itself, and one that has lost a process
of a model (Triton's python backend does not recover from that), is started again with the same command, so on the same
port: a few times within some minutes, and only after the parent has called it ready. What it has computed since
forgives its ends before. Only the standard library is used and nothing of ctseg is imported, so that it starts in a
few milliseconds.

Usage: ``python -I -S supervisor.py``, and one line of JSON on standard input: command, environment, log, folder,
shm_prefix, stop_timeout_s, restarts; later a line when the server is ready, one when it has computed something after it
was started again, and one to stop it. On standard output a line of JSON for each server that it starts (pid,
shm_prefix, after: why the last one ended), and for its end (ended: why).
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
_LOOK_FOR_STUBS_S = 1.0
_FORGIVEN_AFTER_S = 600.0
_START_TIME, _EXIT_CODE = 21, 51
"""Where they stand in a process's line of /proc, counted from 0."""
_STOP, _KEEP = b"stop", b"keep the folder"
_STUB = "triton_python_b"
"""What the kernel keeps of the name of the python backend's processes."""


def main() -> int:
    """Run the server until it ends for good or the parent does; return the server's exit status."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    libc = ctypes.CDLL(None, use_errno=True)
    # whatever the server started and left behind becomes our child, so that it can be stopped
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    keeper = _Keeper(job, libc)
    try:
        return keeper.keep()
    finally:
        keeper.remove_traces()
        if keeper.removes_folder:
            shutil.rmtree(job["folder"], ignore_errors=True)


class _Keeper:
    """Starts the server, looks after it, and says what happens."""

    def __init__(self, job: dict[str, Any], libc: ctypes.CDLL) -> None:
        self._job = job
        self._libc = libc
        self._parent = os.getppid()
        self._shm_prefix = f"{job['shm_prefix']}{os.getpid()}-{_start_time()}-"
        self.removes_folder = False
        self._is_ready = False  # once; whether a server that was started again is ready shows when it is used
        self._begun_again: list[float] = []

    def keep(self) -> int:
        after = ""
        while True:
            server = self._start()
            _tell({"pid": server.pid, "shm_prefix": self._shm_prefix, "after": after})
            after = self._watch(server)
            if not after:
                return _status(server)
            _stop(server, 0.0)
            if not self._may_begin_again():
                _tell({"ended": after})
                return _status(server)
            self.remove_traces()
            self._begun_again.append(time.monotonic())

    def remove_traces(self) -> None:
        """Stop what the server left behind, and remove its shared memory."""
        _kill_children()
        for path in Path("/dev/shm").glob(f"{self._shm_prefix}*"):  # noqa: S108 - where Linux keeps POSIX shared memory
            path.unlink(missing_ok=True)

    def _may_begin_again(self) -> bool:
        recent = [begun for begun in self._begun_again if time.monotonic() - begun < _FORGIVEN_AFTER_S]
        return self._is_ready and len(recent) < self._job["restarts"]

    def _start(self) -> "subprocess.Popen[bytes]":
        def die_with_supervisor() -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        with Path(self._job["log"]).open("ab") as log:
            return subprocess.Popen(
                [word.replace("{shm_prefix}", self._shm_prefix) for word in self._job["command"]],
                env=self._job["environment"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_supervisor,
            )

    def _watch(self, server: "subprocess.Popen[bytes]") -> str:
        """Wait until something ends; return why the server is of no more use, empty where it was stopped."""
        stubs = _Stubs(server.pid)
        while server.poll() is None:
            readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
            said = os.read(sys.stdin.fileno(), 4096) if readable else b""
            is_closed = bool(readable) and not said
            if is_closed or _STOP in said or os.getppid() != self._parent:
                self.removes_folder = _KEEP not in said
                _stop(server, self._job["stop_timeout_s"])
                return ""
            if said:
                self._is_ready = True
                self._begun_again.clear()
            if self._is_ready and self._job["restarts"] and (dead := stubs.dead()):
                return dead
        return f"tritonserver {_how(server.returncode)}"


class _Stubs:
    """The processes in which Triton's python backend runs its models."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._known: set[int] = set()
        self._look_at = 0.0
        self._suspects: set[int] = set()

    def dead(self) -> str:
        """Return how one has died that the server has not cleared away; empty while none has.

        The server clears away at once those that it has ended itself, as for a model that it unloads.
        """
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_FOR_STUBS_S
            self._known |= _children(self._server)
        suspects = set()
        for pid in sorted(self._known):
            fields = _stat(pid)
            if not fields or int(fields[3]) != self._server:
                self._known.discard(pid)
            elif fields[0] == _STUB and fields[2] == "Z" and (status := int(fields[_EXIT_CODE])):
                if pid in self._suspects:
                    how = _how(-(status & 127) if status & 127 else status >> 8)
                    return f"a process of a model (triton_python_backend_stub {pid}) {how}"
                suspects.add(pid)
        self._suspects = suspects
        return ""


def _how(status: int) -> str:
    """Say how a process ended, whose status is negative where a signal has ended it."""
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in list(signal.Signals) else "a signal"
    return f"was ended by {name} ({-status})"


def _status(server: "subprocess.Popen[bytes]") -> int:
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _tell(what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone, which is noticed elsewhere
        os.write(sys.stdout.fileno(), f"{json.dumps(what)}\n".encode())


def _stop(server: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    """Ask the server to finish what it is doing, at most so long; then kill it."""
    if timeout_s > 0:
        server.terminate()
        try:
            server.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        else:
            return
    server.kill()
    server.wait()


def _kill_children() -> None:
    """Stop what the server left behind, until nothing is left."""
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at:
        for child in _children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children(parent: int) -> set[int]:
    if not Path(f"/proc/{parent}/task/{parent}/children").exists():  # a kernel without CONFIG_PROC_CHILDREN
        everybody = (_stat(int(path.name)) for path in Path("/proc").glob("[0-9]*"))
        return {int(fields[1]) for fields in everybody if fields and fields[3] == str(parent)}
    found: set[int] = set()
    for listed in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            found.update(int(word) for word in listed.read_text().split())
        except OSError:
            continue  # the thread has ended
    return found


def _stat(pid: int) -> list[str]:
    """Return a process's name, its number and the other fields of its line in /proc; nothing where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    name = text[text.index("(") + 1 : text.rindex(")")]
    return [name, str(pid), *text.rpartition(")")[2].split()]


def _start_time() -> str:
    return _stat(os.getpid())[_START_TIME]


if __name__ == "__main__":
    sys.exit(main())
