"""Runs and servers that are killed, stopped and joined at random moments: every case is done once, and right."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.folder_runs import Folder, outcomes_in, runs_in, serving
from tests.support.live_triton import wait_for

KILLS = 15
FROZEN_S = 20


def test_a_run_that_is_killed_at_random_moments_loses_nothing(folder: Folder, tmp_path: Path) -> None:
    moments, output = random.Random(13), tmp_path / "out"
    with serving(tmp_path) as server:
        words = ("--c", "--save_probabilities", "--url", server.url)
        for _ in range(KILLS):
            run = folder.start(output, *words)
            time.sleep(moments.uniform(0.3, 3.0))
            run.kill()
            if output.is_dir():
                folder.assert_visible_files_are_right(output)
        done_before = {name for name, outcome in outcomes_in(output).items() if outcome.status == "ok"}
        last = folder.start(output, *words)
        assert last.wait() == 0, last.said
    assert f"{len(done_before)} skipped" in last.said
    folder.assert_is_done(output)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda v: str(int(v))
)
def test_a_run_that_is_told_to_end_leaves_whole_files_and_a_report(
    folder: Folder, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    moments, output = random.Random(int(number)), tmp_path / "out"
    with serving(tmp_path) as server:
        words = ("--c", "--save_probabilities", "--url", server.url)
        for _ in range(4):
            run = folder.start(output, *words)
            seen = len(outcomes_in(output))
            wait_for(lambda run=run, seen=seen: run.has_ended or len(outcomes_in(output)) > seen)
            time.sleep(moments.uniform(0.0, 0.3))
            assert run.kill(number) in (status, 0), run.said  # 0: it was quicker
            assert "Traceback" not in run.said
            folder.assert_visible_files_are_right(output)
            assert runs_in(output) == []
        assert folder.start(output, *words).wait() == 0
    folder.assert_is_done(output)


def test_two_joined_runs_one_killed_and_the_server_restarted_do_every_case_once(folder: Folder, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with serving(tmp_path) as server:
        words = ("--save_probabilities", "--url", server.url)
        first = folder.start(output, *words)
        wait_for(lambda: outcomes_in(output) or first.has_ended)
        second = folder.start(output, *words, "--c")
        wait_for(lambda: len(runs_in(output)) == 2 or second.has_ended or first.has_ended)
        server.restart(signal.SIGTERM)
        first.kill()
        assert second.wait() == 0, second.said
        folder.assert_visible_files_are_right(output)
        sweeps = folder.start(output, *words, "--c")
        assert sweeps.wait() == 0, sweeps.said
        assert f"{len(folder.names)} skipped" in sweeps.said
    folder.assert_is_done(output)
    runs = {outcome.made_by.run for outcome in outcomes_in(output).values() if outcome.made_by is not None}
    assert len(runs) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_server_that_is_restarted_again_and_again_loses_no_case(
    folder: Folder, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "out"
    with serving(tmp_path) as server:
        run = folder.start(output, "--save_probabilities", "--url", server.url)
        for seen in (1, 3, 5):
            wait_for(lambda seen=seen: len(outcomes_in(output)) >= seen or run.has_ended)
            server.restart(number)
        assert run.wait() == 0, run.said
    folder.assert_is_done(output)


def test_a_server_that_is_frozen_for_a_while_loses_no_case(folder: Folder, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with serving(tmp_path) as server:
        run = folder.start(output, "--save_probabilities", "--url", server.url)
        wait_for(lambda: outcomes_in(output) or run.has_ended)
        for process in server.processes:
            process.suspend()
        time.sleep(FROZEN_S)
        for process in server.processes:
            process.resume()
        assert run.wait() == 0, run.said
    folder.assert_is_done(output)


def test_a_run_that_is_stopped_is_taken_over_and_writes_nothing_when_it_wakes(folder: Folder, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with serving(tmp_path) as server:
        words = ("--save_probabilities", "--url", server.url)
        first = folder.start(output, *words)
        wait_for(lambda: outcomes_in(output) or first.has_ended)
        first.process.send_signal(signal.SIGSTOP)
        second = folder.start(output, *words, "--c")
        assert second.wait() == 0, second.said
        after = {path: path.stat().st_mtime_ns for path in output.glob("*.n*")}
        first.process.send_signal(signal.SIGCONT)
        assert first.wait() == 0, first.said
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.n*")} == after
    folder.assert_is_done(output)
