"""Keeps one server process: started by ctseg as a script, stops the server when its parent is gone.

The parent holds the other end of standard input; when that closes (also by ``kill -9``), the server and
everything it started are stopped, and its shared memory and its private folder are removed. Only the
standard library is used and nothing of ctseg is imported, so that it starts in a few milliseconds.

Usage: ``python -I -S supervisor.py``, and one line of JSON on standard input: command, environment,
log, folder, shm_prefix, stop_timeout_s.
"""

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


def main() -> int:
    """Run the server until it ends or the parent does; return the server's exit status."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    libc = ctypes.CDLL(None, use_errno=True)
    # whatever the server started and left behind becomes our child, so that it can be stopped
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    parent = os.getppid()

    def die_with_supervisor() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    shm_prefix = f"{job['shm_prefix']}{os.getpid()}-{_start_time()}-"
    command = [word.replace("{shm_prefix}", shm_prefix) for word in job["command"]]
    with Path(job["log"]).open("ab") as log:
        server = subprocess.Popen(
            command,
            env=job["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_supervisor,
        )
    sys.stdout.write(json.dumps({"pid": server.pid, "shm_prefix": shm_prefix}) + "\n")
    sys.stdout.flush()
    try:
        while server.poll() is None:
            readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
            if (readable and not os.read(sys.stdin.fileno(), 4096)) or os.getppid() != parent:
                _stop(server, job["stop_timeout_s"])
    finally:
        _kill_children()
        for path in Path("/dev/shm").glob(f"{shm_prefix}*"):  # noqa: S108 - where Linux keeps POSIX shared memory
            path.unlink(missing_ok=True)
        if os.getppid() != parent:
            shutil.rmtree(job["folder"], ignore_errors=True)  # a living parent still reads the log
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


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
        for child in _children():
            os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> list[int]:
    own = str(os.getpid())
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == own:
            found.append(int(stat.parent.name))
    return found


def _start_time() -> str:
    return Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]


if __name__ == "__main__":
    sys.exit(main())
