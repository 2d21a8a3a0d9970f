"""``ctseg predict`` whose real server is killed for good: exit status 3, and the rest when it is back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg import ServerOptions, embedded_server
from ctseg.cli.main import main as ctseg
from ctseg.predict.report import Report
from ctseg.serving.process import RunningServer
from ctseg.triton.configuration import spec_parameter
from tests.support.live_triton import free_port, wait_for
from tests.support.toy_models import toy_spec, write_foreign_entry

pytestmark = pytest.mark.live

CASES = 6
SLOW = "time.sleep(0.1)\nreturn self.respond(self.logits(patches))"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Cases of 36 windows and two channels each."""
    (tmp_path / "in").mkdir()
    for case in range(CASES):
        for channel in range(2):
            voxels = np.random.default_rng([case, channel]).normal(0, 1, (30, 20, 12)).astype(np.float32)
            image = nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
            nib.save(image, tmp_path / "in" / f"c{case}_{channel:04d}.nii.gz")
    return tmp_path / "in"


def report_in(out: Path) -> Report:
    return Report.model_validate_json((out / "report.json").read_bytes())


def predict(scans: Path, out: Path, server: RunningServer) -> "subprocess.Popen[str]":
    words = ["predict", "-i", scans, "-o", out, "-m", "toy", "--url", server.url, "--timeout_s", 5, "--c"]
    command = [sys.executable, "-m", "ctseg", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_server_that_is_killed_for_good_exits_3_and_its_return_completes_every_case(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_foreign_entry(tmp_path / "models", "toy", SLOW, parameters={spec_parameter(1): toy_spec().to_json()})
    options = ServerOptions(is_private=False, grpc_port=free_port())
    with embedded_server(tmp_path / "models", options=options) as server:
        run = predict(scans, out, server)
        wait_for(lambda: list(out.glob("*.nii.gz")))
        os.kill(server.pid, signal.SIGKILL)
        told, errors = run.communicate(timeout=300)
    assert run.returncode == 3, errors
    done, left = {case.case for case in report_in(out).cases}, {case.case for case in report_in(out).not_done}
    assert done
    assert left
    assert done | left == {f"c{i}" for i in range(CASES)}
    assert {case.status for case in report_in(out).cases} == {"ok"}
    assert f"{len(done)} done, 0 skipped, 0 failed, {len(left)} not done (server away)" in told
    assert errors.count("ServerAwayError: ") == 1
    assert f"not done: {', '.join(sorted(left))}" in errors

    with predict(scans, out, server) as again:  # before it is back
        _, errors = again.communicate(timeout=300)
    assert again.returncode == 3, errors
    assert ctseg(["report", "-o", str(out), "-i", str(scans)]) == 1
    assert {f"{case}: not done: server away" for case in left} <= set(capsys.readouterr().out.splitlines())

    with embedded_server(tmp_path / "models", options=options) as server, predict(scans, out, server) as last:
        told, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert f"{len(left)} done, {len(done)} skipped, 0 failed:" in told
    assert report_in(out).not_done == ()
    assert ctseg(["report", "-o", str(out), "-i", str(scans)]) == 0
