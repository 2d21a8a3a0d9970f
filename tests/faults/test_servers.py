"""Servers that are killed while others work, and embedded servers whose run, or whose python backend, is killed."""

import random
import signal
import time
from pathlib import Path

import psutil

from tests.support.folder_runs import MODEL, REPOSITORY, Folder, outcomes_in, serving
from tests.support.live_triton import wait_for

STUB = "triton_python_backend_stub"
KILLS = 5


def stubs_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes of Triton's python backend below a process."""
    found = []
    for child in process.children(recursive=True):
        try:
            found += [child] if STUB in " ".join(child.cmdline()) else []
        except psutil.Error:  # it has just ended
            continue
    return found


def test_one_of_two_servers_is_killed_again_and_again(folder: Folder, tmp_path: Path) -> None:
    moments, output = random.Random(4), tmp_path / "out"
    with serving(tmp_path) as good, serving(tmp_path) as bad:
        run = folder.start(output, "--save_probabilities", "--url", good.url, bad.url)
        while not run.has_ended:
            time.sleep(moments.uniform(0.5, 2.0))
            bad.restart(moments.choice([signal.SIGKILL, signal.SIGTERM]))
        assert run.wait() == 0, run.said
    folder.assert_is_done(output)


def test_python_backend_of_a_server_is_killed(folder: Folder, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with serving(tmp_path) as server:
        run = folder.start(output, "--save_probabilities", "--url", server.url)
        wait_for(lambda: outcomes_in(output) or run.has_ended)
        for stub in stubs_of(psutil.Process(server.command.process.pid)):
            stub.kill()
        assert run.wait() == 0, run.said
    folder.assert_is_done(output)


def test_python_backend_of_an_embedded_server_is_killed(folder: Folder, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = folder.start(output, "--save_probabilities", "--repository", str(REPOSITORY))
    wait_for(lambda: outcomes_in(output) or run.has_ended)
    for stub in stubs_of(psutil.Process(run.process.pid)):
        stub.kill()
    assert run.wait() == 0, run.said
    folder.assert_is_done(output)


def test_runs_with_a_server_of_their_own_that_are_killed_leave_nothing_behind(folder: Folder, tmp_path: Path) -> None:
    moments, output = random.Random(6), tmp_path / "out"
    before = set(Path("/dev/shm").iterdir())
    words = ("--c", "--save_probabilities", "--repository", str(REPOSITORY))
    for _ in range(KILLS):
        run = folder.start(output, *words)
        time.sleep(moments.uniform(0.5, 6.0))
        family = [] if run.has_ended else psutil.Process(run.process.pid).children(recursive=True)
        run.kill()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, [process.cmdline() for process in alive]
    assert folder.start(output, *words).wait() == 0
    folder.assert_is_done(output)
    assert set(Path("/dev/shm").iterdir()) - before == set(), MODEL
