"""What the supervisor of a server leaves behind when its parent stops it, and when its parent is gone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.serving import supervisor
from ctseg.serving.process import stop


@pytest.fixture
def keeper(tmp_path: Path) -> "subprocess.Popen[str]":
    """A supervisor that keeps a process which would sleep for long."""
    folder = tmp_path / "private"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervisor.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    job = {
        "command": ["sleep", "600"], "environment": dict(os.environ), "log": str(folder / "log"),
        "folder": str(folder), "shm_prefix": "ctseg-test-", "stop_timeout_s": 0.0, "restarts": 0,
    }  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["pid"]
    return process


def test_the_folder_goes_when_the_pipe_closes_though_the_kernel_still_names_the_parent(
    keeper: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """A killed parent's pipes close before its children are given to another: this parent only closes the pipe."""
    keeper.communicate(timeout=60)
    assert not (tmp_path / "private").exists()


def test_a_parent_that_still_reads_the_log_keeps_the_folder(keeper: "subprocess.Popen[str]", tmp_path: Path) -> None:
    stop(keeper, keeps_folder=True)
    stop(keeper)  # nothing more to do
    assert keeper.returncode == 128 + 9
    assert (tmp_path / "private" / "log").exists()


def test_a_server_is_stopped_though_a_forked_child_holds_the_pipe(
    keeper: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert keeper.stdin is not None
    held = os.dup(keeper.stdin.fileno())
    stop(keeper)
    os.close(held)
    assert keeper.returncode == 128 + 9
    assert not (tmp_path / "private").exists()
