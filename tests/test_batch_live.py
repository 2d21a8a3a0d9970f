"""A folder whose real server is killed in the middle of a case."""

import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg import BatchOptions, ClientOptions, connect, embedded_server, find_cases, segment_cases
from ctseg.report import Report

pytestmark = pytest.mark.live

REPOSITORY = Path(__file__).parents[1] / "model_repository"
OPTIONS = BatchOptions(mirroring=False)


@pytest.fixture
def folder(tmp_path, demo_data) -> Path:
    """Two cases of eight windows each."""
    scans = tmp_path / "in"
    scans.mkdir()
    for name in ("a", "b"):
        shutil.copy(demo_data / "images" / "STS_025_0000.nii.gz", scans / f"{name}.nii.gz")
    return scans


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_and_kill(folder: Path, output: Path, *, timeout_s: float, comes_back: bool) -> Report:
    """Segment the folder, kill the server once it has answered something, and perhaps start it again."""
    port, reports = free_port(), []
    with embedded_server(REPOSITORY, ["sarcoma"], is_private=False, grpc_port=port) as server:
        predictor = connect([server.url], "sarcoma", options=ClientOptions(timeout_s=timeout_s))
        runner = threading.Thread(
            target=lambda: reports.append(segment_cases(find_cases(folder, channels=1), predictor, output, OPTIONS))
        )
        runner.start()
        while not predictor.bytes_received:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGKILL)
    if comes_back:
        with embedded_server(REPOSITORY, ["sarcoma"], is_private=False, grpc_port=port):
            runner.join()
    runner.join()
    predictor.close()
    return reports[0]


def test_a_server_that_comes_back_completes_every_case(folder, tmp_path):
    report = run_and_kill(folder, tmp_path / "out", timeout_s=60, comes_back=True)
    assert [(case.case, case.status) for case in report.cases] == [("a", "ok"), ("b", "ok")]
    with (
        embedded_server(REPOSITORY, ["sarcoma"], is_private=False) as server,
        connect([server.url], "sarcoma") as predictor,
    ):
        segment_cases(find_cases(folder, channels=1), predictor, tmp_path / "undisturbed", OPTIONS)
    for name in ("a", "b"):
        found, expected = (
            np.asarray(nib.load(tmp_path / out / f"{name}.nii.gz").dataobj) for out in ("out", "undisturbed")
        )
        assert expected.any()
        assert np.array_equal(found, expected)


def test_a_server_that_stays_away_fails_every_case_by_name_and_leaves_nothing_half_written(folder, tmp_path):
    report = run_and_kill(folder, tmp_path / "out", timeout_s=2, comes_back=False)
    assert [(case.case, case.status) for case in report.cases] == [("a", "failed"), ("b", "failed")]
    for case in report.cases:
        assert case.error is not None
        assert case.error.type == "ServerUnavailableError"
        assert case.error.message.startswith(f"case {case.case}: sarcoma")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
