"""Which runs of a folder live: by lock on one kernel, by touches on another."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctseg.predict.presence import OtherRuns, Presence
from tests.support.live_triton import wait_for

RUN = """
import sys, time
from pathlib import Path
from ctseg.predict.presence import Presence
with Presence(Path(sys.argv[1]), touch_s=0.2) as presence:
    (presence.folder / "half.npz").write_bytes(b"half")
    print(presence.run, flush=True)
    time.sleep(600)
"""


class Clock:
    """Seconds that only the test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A run in a process of its own, and its name."""
    with subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_run_lives_until_its_process_is_killed(tmp_path: Path, other: tuple[subprocess.Popen[str], str]) -> None:
    process, run = other
    others = OtherRuns(tmp_path)
    others.remove_leftovers()
    assert others.living() == [run]
    assert not others.is_dead(run)
    process.kill()
    process.wait()
    assert others.is_dead(run)
    others.remove_leftovers()
    assert list((tmp_path / ".ctseg" / "runs").iterdir()) == []


def test_a_stopped_run_is_silent_and_not_dead_and_its_files_stay(
    tmp_path: Path, other: tuple[subprocess.Popen[str], str]
) -> None:
    process, run = other
    clock = Clock()
    others = OtherRuns(tmp_path, silent_s=60, clock=clock)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert not others.is_silent(run)
        clock.now = 59
        assert not others.is_silent(run)
        clock.now = 61
        assert others.is_silent(run)
        assert not others.is_dead(run)
        others.remove_leftovers()
        assert (tmp_path / ".ctseg" / "runs" / run / "half.npz").exists()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    wait_for(lambda: not others.is_silent(run))  # it touches its file again


@pytest.mark.parametrize("kernel", ["another kernel", "no flock"])
def test_a_run_that_no_lock_tells_of_is_dead_only_by_its_silence(tmp_path: Path, kernel: str) -> None:
    folder = tmp_path / ".ctseg" / "runs" / "far"
    folder.mkdir(parents=True)
    (folder / "alive").write_text(kernel)
    clock = Clock()
    others = OtherRuns(tmp_path, silent_s=60, clock=clock)
    others.remove_leftovers()
    clock.now = 30
    os.utime(folder / "alive", (1, 1))  # a clock that is years behind: only that it changed counts
    others.remove_leftovers()
    clock.now = 89
    others.remove_leftovers()
    assert folder.is_dir()
    clock.now = 91
    others.remove_leftovers()
    assert not folder.exists()


def test_a_run_leaves_nothing(tmp_path: Path) -> None:
    with Presence(tmp_path) as presence:
        assert not OtherRuns(tmp_path).is_dead(presence.run)
        (presence.folder / "half.nii.gz").touch()
    assert list((tmp_path / ".ctseg" / "runs").iterdir()) == []
    assert OtherRuns(tmp_path).is_dead(presence.run)


@pytest.mark.parametrize("lives", [True, False])
def test_a_run_on_another_kernel_is_listened_for_until_it_is_heard_or_silent(tmp_path: Path, lives: bool) -> None:
    with Presence(tmp_path, touch_s=0.05 if lives else 600) as presence:
        (presence.folder / "alive").write_text("another kernel")
        others = OtherRuns(tmp_path, silent_s=600 if lives else 0.2)
        assert others.listen() == ([presence.run] if lives else [])


def test_what_a_run_was_killed_in_the_making_of_goes_once_it_is_old(tmp_path: Path) -> None:
    memory = tmp_path / ".ctseg"
    for name in ("runs/.killed", "runs/.begins", "reports"):
        (memory / name).mkdir(parents=True)
    for name in ("reports/.report.json.host.1.0.tmp.json", "reports/.new.tmp.json"):
        (memory / name).touch()
    last = (memory / "runs" / ".begins").stat().st_mtime
    for name in ("runs/.killed", "reports/.report.json.host.1.0.tmp.json"):
        os.utime(memory / name, (last - 1000, last - 1000))
    OtherRuns(tmp_path).remove_leftovers()
    assert [path.name for path in (memory / "runs").iterdir()] == [".begins"]
    assert [path.name for path in (memory / "reports").iterdir()] == [".new.tmp.json"]
