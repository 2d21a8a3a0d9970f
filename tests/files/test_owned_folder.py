"""What a process makes for a while goes with it, or after it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctseg.files.atomic import appearing
from ctseg.files.owned_folder import LEFT_S, owned_folder
from ctseg.files.owners import is_left_behind, owner_tag

FILLING = """
import signal, sys, time
from pathlib import Path
from ctseg.files.atomic import appearing

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup or a shell's background job runs the tests
signal.signal(signal.SIGINT, signal.default_int_handler)
with appearing(Path(sys.argv[1])) as part:
    (part / "inner").mkdir()
    (part / "inner" / "half").write_bytes(b"half")
    print(part.name, flush=True)
    time.sleep(300)
"""


@contextmanager
def filling(target: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that fills a folder, and the folder's hidden name."""
    with subprocess.Popen(
        [sys.executable, "-c", FILLING, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_writer_that_is_told_to_end_leaves_the_old_folder_alone(tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "a").write_bytes(b"old")
    with filling(target) as (process, hidden):
        assert names_in(tmp_path) == {"bundle", hidden}
        process.send_signal(number)
        assert process.wait(timeout=60) == (-number if number == signal.SIGINT else 128 + number)
    assert names_in(tmp_path) == {"bundle"}
    assert (target / "a").read_bytes() == b"old"


def test_what_a_killed_writer_left_goes_with_the_next_of_the_same_folder(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with filling(target) as (process, hidden):
        process.kill()
        process.wait(timeout=60)
    assert names_in(tmp_path) == {hidden}
    with appearing(tmp_path / "bundle.x"):
        pass
    assert names_in(tmp_path) == {hidden, "bundle.x"}  # another folder's
    with appearing(target):
        assert hidden not in names_in(tmp_path)
    assert names_in(tmp_path) == {"bundle", "bundle.x"}


def test_nobody_else_may_look_into_a_folder_while_it_is_owned(tmp_path: Path) -> None:
    with owned_folder("graph-", tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_process_that_ended_is_told_from_another_one_that_has_its_number(tmp_path: Path) -> None:
    own = owner_tag()
    assert not is_left_behind(f"graph-{own}")
    assert is_left_behind(f"graph-{own.rpartition('-')[0]}-1")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = f"graph-{owner_tag(process.pid)}"
        assert not is_left_behind(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_left_behind(name)  # a zombie


def test_a_living_writer_keeps_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with filling(target) as (_, hidden), appearing(target):
        assert hidden in names_in(tmp_path)
        assert (tmp_path / hidden / "inner" / "half").read_bytes() == b"half"


def test_what_another_kernel_left_goes_after_a_day_without_a_change(tmp_path: Path) -> None:
    with owned_folder("graph-", tmp_path) as own:
        pass
    foreign = tmp_path / re.sub(r"-b[0-9a-f]{8}-", "-b00000000-", own.name)
    assert foreign != own
    foreign.mkdir()
    (foreign / "file").write_bytes(b"1")
    now = (foreign / "file").stat().st_mtime
    for changed_s, stays in ((now - LEFT_S + 60, True), (now - LEFT_S - 60, False)):
        os.utime(foreign / "file", (changed_s, changed_s))
        os.utime(foreign, (now - 9 * LEFT_S, now - 9 * LEFT_S))
        with owned_folder("graph-", tmp_path):
            assert foreign.exists() == stays


@pytest.mark.parametrize("name", ["graph-", "graph-x", "graph-b12345678", "graph-b12345678-r12345678", "other"])
def test_names_that_are_nobodys_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (0, 0))
    with owned_folder("graph-", tmp_path):
        pass
    assert names_in(tmp_path) == {name}


def test_a_forked_child_leaves_the_folder_alone(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from ctseg.files.owned_folder import owned_folder\n"
        "with owned_folder('graph-', Path(sys.argv[1])) as folder:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        sys.exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    assert folder.is_dir()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert names_in(tmp_path) == set()
