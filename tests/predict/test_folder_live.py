"""A folder whose real server is killed, or gets new versions of the model, in the middle."""

import contextlib
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
from tritonclient.grpc import InferenceServerClient

from ctseg import BatchOptions, ClientOptions, connect, embedded_server, find_cases, segment_cases
from ctseg.arrays import Logits, Patches
from ctseg.model_spec import KeepLargest, Parity
from ctseg.predict.outcomes import Outcome, RanOn
from ctseg.predict.report import Report
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.publish import EntryDraft, publish
from ctseg.triton.predictor import TritonPredictor
from tests.support.toy_models import WEIGHTS, save_toy_network, toy_spec, write_toy_entry

pytestmark = pytest.mark.live

REPOSITORY = Path(__file__).parents[2] / "model_repository"
OPTIONS = BatchOptions(mirroring=False)
PATIENCE_S = 300.0
"""No verdict depends on how fast the machine is: only a test that has gone wrong waits so long."""


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


class Interrupted:
    """A predictor on whose third call something else happens first."""

    def __init__(self, predictor: TritonPredictor, event) -> None:
        self._predictor, self._event, self._calls, self._lock = predictor, event, 0, threading.Lock()
        self.spec, self.max_batch_size, self.max_in_flight = predictor.spec, predictor.max_batch_size, 1
        self.identity = predictor.identity

    def predict(self, patches: Patches) -> Logits:
        with self._lock:
            self._calls += 1
            if self._calls == 3:
                self._event()
        return self._predictor.predict(patches)


@pytest.fixture
def toy_folder(tmp_path) -> Path:
    """Four cases of one window and two channels each, at the toy network's spacing."""
    scans = tmp_path / "in"
    scans.mkdir()
    for case in range(4):
        for channel in range(2):
            voxels = np.random.default_rng([case, channel]).normal(0, 1, (14, 10, 6)).astype(np.float32)
            image = nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
            nib.save(image, scans / f"case{case}_{channel:04d}.nii.gz")
    return scans


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "restarted"])
def test_a_server_that_comes_back_completes_every_case(folder, tmp_path, end):
    port, killed, reports = free_port(), threading.Event(), []

    def kill() -> None:
        os.kill(server.pid, end)
        killed.set()

    with embedded_server(REPOSITORY, ["sarcoma"], ServerOptions(is_private=False, grpc_port=port)) as server:
        predictor = connect([server.url], "sarcoma", options=ClientOptions(timeout_s=PATIENCE_S))
        cases = find_cases(folder, channels=1)
        runner = threading.Thread(
            target=lambda: reports.append(segment_cases(cases, Interrupted(predictor, kill), tmp_path / "out", OPTIONS))
        )
        runner.start()
        assert killed.wait(PATIENCE_S)
    with embedded_server(REPOSITORY, ["sarcoma"], ServerOptions(is_private=False, grpc_port=port)), predictor:
        runner.join()
    (report,) = reports
    assert [(case.case, case.status) for case in report.cases] == [("a", "ok"), ("b", "ok")]
    with (
        embedded_server(REPOSITORY, ["sarcoma"], ServerOptions(is_private=False)) as server,
        connect([server.url], "sarcoma") as predictor,
    ):
        segment_cases(find_cases(folder, channels=1), predictor, tmp_path / "undisturbed", OPTIONS)
    for name in ("a", "b"):
        found, expected = (
            np.asarray(nib.load(tmp_path / out / f"{name}.nii.gz").dataobj) for out in ("out", "undisturbed")
        )
        assert expected.any()
        assert np.array_equal(found, expected)


def check_two_of_four_are_done(report: Report, output: Path) -> None:
    """Check the toy folder's report against what lies in the output folder.

    Which two were first to be prepared, and so were segmented in time, is the threads' choice.
    """
    finished = [case.case for case in report.cases if case.status == "ok"]
    assert len(finished) == 2
    reports = {".ctseg", "report.json", "report.csv"}
    assert {path.name for path in output.iterdir()} == {*reports, *(f"{case}.nii.gz" for case in finished)}


def two_of_four_failed(report: Report, output: Path) -> list[Outcome]:
    """Return the failed cases of the toy folder, the other two done."""
    check_two_of_four_are_done(report, output)
    failed = [case for case in report.cases if case.status == "failed"]
    assert len(failed) == 2
    return failed


def test_a_server_that_stays_away_leaves_cases_that_are_not_done_by_name_and_nothing_half_written(toy_folder, tmp_path):
    write_toy_entry(tmp_path / "models")
    with (
        embedded_server(tmp_path / "models", options=ServerOptions(is_private=False)) as server,
        connect([server.url], "toy", options=ClientOptions(timeout_s=5)) as predictor,
    ):
        kills = Interrupted(predictor, lambda: os.kill(server.pid, signal.SIGKILL))
        report = segment_cases(find_cases(toy_folder, channels=2), kills, tmp_path / "out", BatchOptions())
    check_two_of_four_are_done(report, tmp_path / "out")
    assert report.went_away
    left = {case.case for case in report.not_done}
    assert len(report.cases) == len(left) == 2
    assert left | {case.case for case in report.cases} == {f"case{i}" for i in range(4)}


def test_a_case_that_servers_with_different_runtimes_share_is_told_of(tmp_path):
    scans = tmp_path / "in"
    scans.mkdir()
    for channel in range(2):
        voxels = np.random.default_rng(channel).normal(0, 1, (60, 50, 12)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), scans / f"case_{channel:04d}.nii.gz")
    with contextlib.ExitStack() as stack:
        urls = []
        for name, error in (("onnxruntime", 5e-7), ("openvino", 2e-3)):
            (tmp_path / name).mkdir()
            parity = Parity(state="proven", detail=f"model.onnx in {name}", relative_l2=error)
            write_toy_entry(tmp_path / name / "models", toy_spec(parity=parity))
            server = embedded_server(tmp_path / name / "models", options=ServerOptions(is_private=False))
            urls.append(stack.enter_context(server).url)
        for used, out in ((urls, "both"), (urls[:1], "one")):
            with connect(used, "toy") as predictor:
                give_up_at = time.monotonic() + PATIENCE_S
                while len(predictor.identity.runners) < len(used) and time.monotonic() < give_up_at:
                    time.sleep(0.1)
                segment_cases(find_cases(scans, channels=2), predictor, tmp_path / out, BatchOptions())
    both, one = (Report.model_validate_json((tmp_path / out / "report.json").read_text()) for out in ("both", "one"))
    runners = [
        RanOn(server=urls[0], model="toy", runtime="model.onnx in onnxruntime", relative_l2=5e-7),
        RanOn(server=urls[1], model="toy", runtime="model.onnx in openvino", relative_l2=2e-3),
    ]
    assert sorted(both.cases[0].ran_on, key=lambda item: item.runtime) == runners
    assert list(one.cases[0].ran_on) == runners[:1]
    (warning,) = _of_runtimes(both)
    assert warning.startswith("toy: servers with different runtimes, whose rounding differs, answered meanwhile")
    assert f"{urls[1]}: model.onnx in openvino, within 2e-03 of PyTorch" in warning
    assert _of_runtimes(one) == []


# --- new versions


def write_other_version(root: Path, version: int) -> None:
    """Another network under another contract: its labels are others."""
    network = save_toy_network(root.parent / "other.onnx", weights=WEIGHTS[::-1])
    spec = toy_spec(postprocessing=(KeepLargest(labels=(1,)),))
    publish(root, EntryDraft(spec=spec, backend="python", model_file=network), version)


def wait_for_version(server: RunningServer, version: int) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        with connect([server.url], "toy") as predictor:
            if predictor.identity.version == version:
                return
        assert time.monotonic() < give_up_at
        time.sleep(0.3)


def wait_until_gone(server: RunningServer, version: int) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    with InferenceServerClient(server.url) as client:
        while client.is_model_ready("toy", str(version)):
            assert time.monotonic() < give_up_at
            time.sleep(0.1)


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def test_a_folder_finishes_on_the_version_that_it_began_with(toy_folder, tmp_path):
    root = tmp_path / "models"
    write_toy_entry(root)
    cases = find_cases(toy_folder, channels=2)
    with embedded_server(root, options=ServerOptions(is_private=False, watch=True)) as server:

        def update() -> None:
            write_other_version(root, 2)
            wait_for_version(server, 2)

        for output, event in (("undisturbed", lambda: None), ("updated", update)):
            with connect([server.url], "toy") as predictor:
                report = segment_cases(cases, Interrupted(predictor, event), tmp_path / output, BatchOptions())
                assert [case.status for case in report.cases] == ["ok"] * 4
                assert predictor.identity.version == 1
        with connect([server.url], "toy") as predictor:
            segment_cases(cases, predictor, tmp_path / "other", BatchOptions())
    updated, undisturbed, other = (labels_in(tmp_path / name) for name in ("updated", "undisturbed", "other"))
    assert len(updated) == 4
    for name, labels in updated.items():
        assert np.array_equal(labels, undisturbed[name])
        assert not np.array_equal(labels, other[name])


def test_a_folder_whose_version_has_gone_stops_by_name_and_keeps_what_is_finished(toy_folder, tmp_path):
    root = tmp_path / "models"
    write_toy_entry(root)
    with embedded_server(root, options=ServerOptions(is_private=False, watch=True)) as server:

        def replace() -> None:
            for version in (2, 3):  # Triton serves the latest two
                write_other_version(root, version)
                wait_for_version(server, version)
            wait_until_gone(server, 1)

        with connect([server.url], "toy", options=ClientOptions(timeout_s=PATIENCE_S)) as predictor:
            report = segment_cases(
                find_cases(toy_folder, channels=2), Interrupted(predictor, replace), tmp_path / "out", BatchOptions()
            )
    for case in two_of_four_failed(report, tmp_path / "out"):
        assert case.error is not None
        assert case.error.type == "ModelNotFoundError"
        assert "version 1" in case.error.message
        assert "start the folder again" in case.error.message


def _of_runtimes(report: Report) -> list[str]:
    return [warning for warning in report.cases[0].warnings if "runtimes" in warning]
