"""Pools of processes end, whatever becomes of their workers."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool

import pytest

from ctseg.train.worker_pools import KilledPool, pools_that_end
from tests.support.process_groups import assert_nothing_is_left_of_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.pool_runs", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        said, complaint = process.communicate(timeout=900)
    finally:
        process.kill()
    assert_nothing_is_left_of_group(process.pid)
    return process.returncode, said, complaint


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.full)])
def test_pools_end_normally(times: int) -> None:
    assert end(started("end_normally", str(times))) == (0, "", "")


@pytest.mark.parametrize("to", ["the group", "the parent alone"])
@pytest.mark.parametrize("times", [1, pytest.param(17, marks=pytest.mark.full)])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_no_signal_leaves_the_parent_of_a_pool_waiting(number: signal.Signals, times: int, to: str) -> None:
    moments = random.Random(int(number))
    for _ in range(times):
        process = started("wait")
        until_ready(process)
        time.sleep(moments.uniform(0, 0.2))
        (os.killpg if to == "the group" else os.kill)(process.pid, number)
        assert end(process)[:2] == (128 + number, "")


def test_workers_end_with_a_parent_that_is_killed() -> None:
    process = started("wait")
    until_ready(process)
    os.kill(process.pid, signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL


def test_a_worker_that_is_killed_at_work_is_an_error_and_no_endless_wait() -> None:
    code, said, _ = end(started("lose"))
    assert (code, said) == (
        0,
        "a worker process was ended while it worked, which the kernel does where memory runs out: fewer worker "
        "processes need less (nnUNet_def_n_proc)\n",
    )  # fmt: skip


def test_a_process_that_is_stuck_in_native_code_ends_after_the_grace() -> None:
    process = started("native")
    until_ready(process)
    os.killpg(process.pid, signal.SIGTERM)
    assert end(process)[0] == 143


def test_pools_of_threads_stay_as_they_are() -> None:
    with pools_that_end():
        assert multiprocessing.pool.Pool is KilledPool
        with ThreadPool(2) as threads:
            assert threads.map(abs, [-1, 2]) == [1, 2]
    assert multiprocessing.pool.Pool is not KilledPool
