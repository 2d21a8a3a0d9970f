"""Trainings in their final validation, ended by signals: none is left waiting, and nothing is left of them."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.process_groups import assert_nothing_is_left_of_group
from tests.support.tiny_trainings import TinyNnunet, free_port, torchrun
from tests.support.warm_processes import WarmProcess

pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

TRAIN = ("train", "301", "3d_fullres", "0", "-device", "cpu")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TIMES = 50


@pytest.fixture
def trained(tiny: TinyNnunet) -> TinyNnunet:
    """With a fold that can be validated again and again."""
    tiny.run("ctseg", *TRAIN, "--epochs", "1", "--iterations_per_epoch", "1", "--skip_validation")
    return tiny


def signals(moments: random.Random) -> tuple[signal.Signals, Callable[[int, int], None], float]:
    """Which signal, whether to the group or to the process alone, and how long after the first case has begun."""
    return moments.choice(SIGNALS), moments.choice([os.killpg, os.kill]), moments.uniform(0, 3)


def test_no_signal_leaves_a_validation_waiting(trained: TinyNnunet) -> None:
    moments, codes = random.Random(17), []
    for _ in range(TIMES):
        number, send, delay = signals(moments)
        process = trained.start(*TRAIN, "--val")
        process.wait_until_said("validation of fold 0: case 1 of 1")
        time.sleep(delay)
        if process.running:
            send(process.pid, number)
        codes.append((process.wait(100), 128 + number))
        assert_nothing_is_left_of_group(process.pid)
    # 0: it was quicker
    assert [code for code, expected in codes if code not in (expected, 0)] == []
    assert sum(code == 0 for code, _ in codes) < TIMES / 2


def ranks(tiny: TinyNnunet) -> list[WarmProcess]:
    """Two processes with the environment that torchrun gives them; the second one has no case, and waits."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [
        tiny.start(
            *TRAIN, "--val", **rendezvous, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2"
        )
        for rank in range(2)
    ]  # fmt: skip


def test_no_signal_leaves_two_processes_waiting_for_each_other(trained: TinyNnunet) -> None:
    moments = random.Random(18)
    for _ in range(TIMES):
        number, send, delay = signals(moments)
        both = ranks(trained)
        both[0].wait_until_said("validation of fold 0: case 1 of 1")
        time.sleep(delay)
        # a launcher tells all; a person may tell one
        for process in both if moments.random() < 0.7 else [moments.choice(both)]:
            if process.running:
                send(process.pid, number)
        for process in both:
            process.wait(100)
            assert_nothing_is_left_of_group(process.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_torchrun_that_is_ended_in_a_validation_leaves_nothing(trained: TinyNnunet, number: signal.Signals) -> None:
    said = trained.root / "said"
    with said.open("w") as file:
        launcher = subprocess.Popen(
            torchrun(2, "-m", "ctseg", *TRAIN, "--val", "--distributed=ddp"),
            env=trained.environment, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while "validation of fold 0: case 1 of 1" not in said.read_text():
            assert launcher.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        started = [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
        assert len(started) >= 2
        os.killpg(launcher.pid, number)
        launcher.wait(120)
    for group in (launcher.pid, *started):
        assert_nothing_is_left_of_group(group)
