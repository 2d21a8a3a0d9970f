"""Runs a command and measures it with everything that it starts: wall, CPU and memory of the whole tree.

Linux only: memory is the sum of the proportional set sizes, in which a page that several processes
share (a shared-memory segment, a library) counts once.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ctseg.errors import SetupError

SAMPLE_S = 0.1
LARGEST_SHARE_OF_SAMPLING = 0.05
"""Sampling takes at most this part of one core: what is watched must not be slowed by being watched."""
_TAIL_CHARACTERS = 3000


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        wall_s: From start to end.
        cpu_s: User and system seconds of all processes of the tree.
        client_cpu_s: Those of the command's own process.
        peak_mb: Largest sum of proportional set sizes, MiB.
        output: Standard output and error, together.
        watched_s: When each watched file was there first, seconds after the start; absent if it never was.
        started: ``time.time()`` at the start.
    """

    wall_s: float
    cpu_s: float
    client_cpu_s: float
    peak_mb: float
    output: str
    watched_s: Mapping[Path, float]
    started: float


def run_measured(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    watch: Sequence[Path] = (),
    marker: str = "",
) -> tuple[Measured, float | None]:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        environment: Added to this process's own.
        timeout_s: Longest time; None: no limit.
        watch: Files that do not exist yet, whose appearance is noted.
        marker: Words of the output, whose appearance is noted.

    Returns:
        What it took, and when the marker was written, in seconds after the start (None without it).

    Raises:
        SetupError: It cannot be started, ended with another status than 0, or took too long; the end of
            its output stands in the message.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as file:
        wall_start, started = time.monotonic(), time.time()
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise SetupError(f"{words[0]} cannot be started: {error.strerror or error}") from error
        sampler = _TreeSampler(process.pid, wall_start, watch, file.fileno(), marker)
        timed_out = False
        try:
            sampler.start()
            timed_out = not _wait(process, timeout_s)
        finally:
            sampler.stop()
            _end_tree(process, sampler)
        wall_s = time.monotonic() - wall_start
        file.seek(0)
        output = file.read().decode(errors="replace")
    what = " ".join(words[:2])
    if timed_out:
        raise SetupError(f"{what}: not done within {timeout_s:.0f} s; the end of its output:\n{_tail(output)}")
    if process.returncode != 0:
        raise SetupError(f"{what}: ended with status {process.returncode}; the end of its output:\n{_tail(output)}")
    measured = Measured(
        wall_s=wall_s,
        cpu_s=max(sampler.cpu_s, sampler.reaped_cpu_s),
        client_cpu_s=sampler.root_cpu_s,
        peak_mb=sampler.peak_bytes / (1 << 20),
        output=output,
        watched_s=dict(sampler.seen),
        started=started,
    )
    return measured, sampler.marker_s


def _wait(process: "subprocess.Popen[bytes]", timeout_s: float | None) -> bool:
    """Wait for the end without reaping, so that the last CPU times can still be read; False after the time."""
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if give_up_at is not None and time.monotonic() >= give_up_at:
            return False
        time.sleep(0.005)
    return True


def _end_tree(process: "subprocess.Popen[bytes]", sampler: "_TreeSampler") -> None:
    """Reap the command; kill what is left of it, and what it left behind."""
    if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        for child in sampler.alive():
            _kill(child)
        process.kill()
    before = os.times()
    process.wait()
    after = os.times()
    sampler.reaped_cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    for child in sampler.alive():
        _kill(child)


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return  # it ended by itself


def _tail(text: str) -> str:
    return text[-_TAIL_CHARACTERS:].strip() or "(nothing)"


class _TreeSampler(threading.Thread):
    """Looks at the tree of a process until told to stop.

    CPU seconds are those that each process had when it was last seen alive, summed; the processes that
    lived between two looks are missing, which is why the kernel's own sum over reaped children is
    taken where it is larger (it lacks those that were orphaned).
    """

    def __init__(self, pid: int, start: float, watch: Sequence[Path], output: int, marker: str) -> None:
        super().__init__(name="tree-sampler", daemon=True)
        self._root = psutil.Process(pid)
        self._start = start
        self._watch = list(watch)
        self._output = output
        self._marker = marker.encode()
        self._looked_at = 0
        self._stopping = threading.Event()
        self._cpu: dict[psutil.Process, float] = {}
        self.seen: dict[Path, float] = {}
        self.marker_s: float | None = None
        self.peak_bytes = 0
        self.reaped_cpu_s = 0.0

    @property
    def cpu_s(self) -> float:
        """Of all processes seen."""
        return sum(self._cpu.values())

    @property
    def root_cpu_s(self) -> float:
        """Of the command's own process."""
        return self._cpu.get(self._root, 0.0)

    def alive(self) -> list[psutil.Process]:
        """Return the processes seen, but the command's own, that still run."""
        return [process for process in self._cpu if process != self._root and process.is_running()]

    def run(self) -> None:
        """Sample until stopped."""
        due = 0.0
        while not self._stopping.is_set():
            self._look_for_files()
            now = time.monotonic()
            if now >= due:
                self._sample()
                cost = time.monotonic() - now
                due = now + max(SAMPLE_S, cost / LARGEST_SHARE_OF_SAMPLING)
            self._stopping.wait(0.01)

    def stop(self) -> None:
        """Look for the last time; the command's own process has ended and is not reaped."""
        self._stopping.set()
        self.join()
        self._look_for_files()
        self._sample()

    def _look_for_files(self) -> None:
        passed = time.monotonic() - self._start
        for path in [path for path in self._watch if path.exists()]:
            self.seen[path] = passed
            self._watch.remove(path)
        if self._marker and self.marker_s is None:
            size = os.fstat(self._output).st_size
            if size > self._looked_at:
                if self._marker in os.pread(self._output, size, 0):
                    self.marker_s = passed
                self._looked_at = size

    def _sample(self) -> None:
        try:
            tree = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        total = 0
        for process in tree:
            try:
                times = process.cpu_times()
                self._cpu[process] = times.user + times.system
                total += _proportional_bytes(process.pid)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak_bytes = max(self.peak_bytes, total)


def _proportional_bytes(pid: int) -> int:
    """Return the proportional set size of a process; 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0
