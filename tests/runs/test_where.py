"""Windows cut here or in the server: the same labels, bit for bit, on a real server; and which way is taken."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from ctseg.errors import InputError, ModelNotFoundError, SetupError, SpecError
from ctseg.files.volume import read_volume, volume_from_array
from ctseg.predict.contract import contract_of
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import Outcome
from ctseg.predict.parts import Part
from ctseg.predict.predictor import Identity
from ctseg.predict.progress import Progress
from ctseg.predict.segment import CaseContext, Segmentation
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel
from ctseg.runs.where import ScansElseWindows, opened_segmenter
from ctseg.serving.entries import read_entry
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.scan_entry import publish_scan_entry
from ctseg.serving.server import embedded_server
from ctseg.triton.options import ClientOptions
from tests.support.live_triton import wait_for
from tests.support.scan_files import READERS, TURNED_FAR
from tests.support.toy_models import toy_spec, write_cascade
from tests.support.whole_scans import (
    SPACING,
    Gate,
    ScanClient,
    marked_scan,
    write_gated_entry,
    write_scannable_entry,
)

pytestmark = pytest.mark.live

INTENSITY = {"mean": 0, "std": 1, "percentile_00_5": -1, "percentile_99_5": 1}
NORMS = {
    "channels": [
        {"name": "MR", "normalization": "ZScoreNormalization", "intensity": INTENSITY},
        {"name": "PET", "normalization": "RescaleTo01Normalization", "intensity": INTENSITY},
    ],
    "transpose_forward": (1, 0, 2),
}
REGIONS = {
    "labels": [{"name": "whole", "values": [1, 2]}, {"name": "core", "values": [2]}, {"name": "rest", "values": [300]}],
    "regions_class_order": [1, 2, 300],
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("where") / "models"
    write_scannable_entry(root, toy_spec("norms", **NORMS))
    write_scannable_entry(root, toy_spec("regions", **REGIONS))
    write_cascade(root)
    publish_scan_entry(root, read_entry(root / "second"))
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with embedded_server(repository, options=ServerOptions(prove=False)) as running:
        yield running


def model_at(server: RunningServer, name: str, where: Any, **options: Any) -> ServedModel:
    return ServedModel(name, (server.url,), client=ClientOptions(headers=server.headers, **options), where=where)


def write_scan(folder: Path, dtype: Any = np.int16, seed: int = 0, *, scale: float = 1) -> list[Path]:
    """Write an oblique, turned scan of two channels with air of zeros around it, whose sums round."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    affine = TURNED_FAR.copy()
    affine[:3, :3] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) * (0.5, 0.6, 1.5)
    files = []
    for channel in range(2):
        voxels = (random.integers(1, 4000, (50, 44, 26)) * scale).astype(dtype)
        voxels[:3], voxels[:, 40:], voxels[..., :2] = 0, 0, 0
        files.append(folder / f"case{seed}_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(voxels, affine), files[-1])
    return files


@pytest.mark.parametrize("name", ["norms", "regions", "both"])
def test_both_ways_give_the_same_labels_bit_for_bit(server: RunningServer, tmp_path: Path, name: str) -> None:
    scans = {
        dtype: write_scan(tmp_path / dtype, dtype, scale=0.37 if dtype == "float32" else 1)
        for dtype in ("int16", "float32")
    }
    scans["int32"] = write_scan(tmp_path / "int32", "int32", scale=100)
    readers = READERS if name == "norms" else READERS[:1]
    with (
        opened_segmenter(model_at(server, name, "client")) as windows,
        opened_segmenter(model_at(server, name, "server")) as scans_sent,
    ):
        assert (windows.identity.transport, scans_sent.identity.transport) == ("shared memory", "whole scans")
        assert scans_sent.contract == windows.contract
        for reader in readers:
            for dtype, files in scans.items():
                volume = read_volume(files, reader)
                expected, found = (each.segment(volume, CaseContext()) for each in (windows, scans_sent))
                np.testing.assert_array_equal(found.labels, expected.labels)
                assert found.labels.dtype == expected.labels.dtype
                assert len(np.unique(expected.labels)) > 1
                assert found.windows == expected.windows
                voxel_bytes = 2 if dtype == "int16" else 4
                assert found.bytes_sent == voxel_bytes * volume.voxels.size + 3 * 8


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def test_the_second_stage_by_itself_gets_the_label_maps_of_the_first(server: RunningServer, tmp_path: Path) -> None:
    for seed in range(2):
        write_scan(tmp_path / "in", seed=seed)
    segment_folder(tmp_path / "in", tmp_path / "first", model_at(server, "first", "client"), BatchOptions())
    options = BatchOptions(prev_stage_predictions=tmp_path / "first")
    for where in ("client", "server"):
        segment_folder(tmp_path / "in", tmp_path / where, model_at(server, "second", where), options)
    expected, found = labels_in(tmp_path / "client"), labels_in(tmp_path / "server")
    assert expected.keys() == found.keys()
    for name, labels in found.items():
        np.testing.assert_array_equal(labels, expected[name])
        assert len(np.unique(labels)) > 1


def test_a_folder_is_sent_as_whole_scans_where_no_memory_is_shared_and_goes_on_by_windows(
    server: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for seed in range(4):
        write_scan(tmp_path / "in", seed=seed)
    model = model_at(server, "regions", "auto", shared_memory="off")
    report = segment_folder(tmp_path / "in", tmp_path / "out", model, BatchOptions(part=Part(0, 2)))
    assert caplog.text.count("regions: whole scans are sent, for no memory is shared with every server") == 1
    assert [case.status for case in report.cases] == ["ok"] * 2
    (case, _) = report.cases
    assert case.made_by.transport == "whole scans"
    assert case.made_by.servers == (server.url,)
    assert [ran.model for ran in case.ran_on] == ["regions"]
    assert case.server_seconds.keys() == {"waited", "prepare", "network", "restore", "total"}
    assert case.seconds.network >= case.server_seconds["total"] > 0
    assert case.windows > 1
    again = replace(model, where="client", client=replace(model.client, shared_memory="auto"))
    report = segment_folder(tmp_path / "in", tmp_path / "out", again, BatchOptions(continue_prediction=True))
    assert [case.status for case in report.cases] == ["skipped", "ok", "skipped", "ok"]
    told = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    assert [case["made_by"]["transport"] for case in told] == ["whole scans", "shared memory"] * 2


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("first", {}, "first: windows are cut here, the servers take no whole scans: first at"),
        ("regions", {"saves_probabilities": True}, "regions: windows are cut here: probabilities do not travel"),
    ],
)
def test_windows_are_cut_here_where_scans_cannot_be_sent_and_that_is_told(
    server: RunningServer, caplog: pytest.LogCaptureFixture, name: str, options: dict, told: str
) -> None:
    caplog.set_level(logging.INFO)
    with opened_segmenter(model_at(server, name, "auto", shared_memory="off"), **options) as segmenter:
        assert segmenter.identity.transport == "grpc"
    assert caplog.text.count(told) == 1
    with opened_segmenter(model_at(server, name, "auto"), **options) as segmenter:
        assert segmenter.identity.transport == "shared memory"
    assert caplog.text.count("windows are cut here") == 1, "nothing is told where windows are best"


def test_whole_scans_that_were_asked_for_and_cannot_be_sent_are_refused(
    server: RunningServer, repository: Path, tmp_path: Path
) -> None:
    for model in (model_at(server, "first", "server"), ServedModel("first", repository=repository, where="server")):
        told = r"first.*build it again, with its entry for whole scans"
        with pytest.raises(SpecError, match=told) as caught, opened_segmenter(model):
            pass
        assert caught.value.settings == ("where",)
    with (
        pytest.raises(SpecError, match=r"it takes the whole scans of regions: give that name"),
        opened_segmenter(model_at(server, "regions_scan", "auto")),
    ):
        pass
    write_scan(tmp_path / "in")
    with pytest.raises(SetupError, match="probabilities do not travel") as caught:
        segment_folder(
            tmp_path / "in", tmp_path / "out", model_at(server, "regions", "server"),
            BatchOptions(save_probabilities=True),
        )  # fmt: skip
    assert caught.value.settings == ("where", "save_probabilities")


def test_a_scan_that_no_message_holds_is_refused_with_the_figures_or_goes_by_windows(
    server: RunningServer, tmp_path: Path
) -> None:
    volume = read_volume(write_scan(tmp_path / "in"), "NibabelIO")
    model = model_at(server, "regions", "server", max_message_bytes=200_000)
    with opened_segmenter(model) as segmenter, pytest.raises(InputError, match="take 228,824 bytes") as caught:
        segmenter.segment(volume, CaseContext())
    assert caught.value.settings == ("where",)
    with (
        opened_segmenter(replace(model, where="client")) as windows,
        opened_segmenter(model_at(server, "regions", "auto", max_message_bytes=200_000, shared_memory="off")) as either,
    ):
        result, expected = (each.segment(volume, CaseContext()) for each in (either, windows))
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert any("windows were cut here" in told and "take 228,824 bytes" in told for told in result.warnings)


@pytest.mark.parametrize("name", ["regions", "both"])
def test_a_server_of_the_runs_own_takes_whole_scans(repository: Path, tmp_path: Path, name: str) -> None:
    write_scan(tmp_path / "in")
    model = ServedModel(name, repository=repository, where="server")
    report = segment_folder(tmp_path / "in", tmp_path / "out", model, BatchOptions())
    assert [(case.status, case.made_by.transport) for case in report.cases] == [("ok", "whole scans")]


def test_many_small_scans_at_once_are_all_segmented(server: RunningServer) -> None:
    z, y, x = SPACING
    voxels = np.random.default_rng(0).normal(0, 1, (2, 9, 10, 14)).astype(np.float32)
    volume = volume_from_array(voxels, np.diag([x, y, z, 1.0]))
    with opened_segmenter(model_at(server, "both", "server")) as segmenter, ThreadPoolExecutor(6) as pool:
        results = [future.result() for future in [pool.submit(segmenter.segment, volume) for _ in range(60)]]
        for result in results[1:]:
            np.testing.assert_array_equal(result.labels, results[0].labels)


def test_a_case_that_is_given_up_frees_the_server_for_the_others(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    gate = Gate(tmp_path / "gate")
    write_gated_entry(tmp_path / "models", gate.folder)
    with embedded_server(tmp_path / "models", options=ServerOptions(prove=False)) as server:
        model = model_at(server, "gated", "server")
        with opened_segmenter(model) as segmenter, ThreadPoolExecutor(2) as pool:
            z, y, x = SPACING
            long = volume_from_array(marked_scan(1, (24, 40, 56)), np.diag([x, y, z, 1.0]))
            answer = pool.submit(segmenter.segment, long)
            wait_for(lambda: gate.calls)
            segmenter.abort()
            with pytest.raises(CancelledError):
                answer.result(240)
        gate.let(10_000)
        with opened_segmenter(model) as segmenter:
            small = volume_from_array(marked_scan(2), np.diag([x, y, z, 1.0]))
            windows = segmenter.segment(small).windows
        assert gate.calls.count(2) == windows
        client = ScanClient(server, "gated_scan")
        wait_for(lambda: client.ask_about("nobody")["running"] == 0)
        assert gate.calls.count(1) < 100, "what nobody waits for is not computed"


class Stub:
    """A segmenter that says who it is, until it takes nothing any more."""

    contract = contract_of(toy_spec())
    cases_in_flight = 3

    def __init__(self, transport: str) -> None:
        self.identity = Identity("toy", 1, "digest", (), transport)
        self.refuses = False

    def segment(self, volume: Any, context: Any = None) -> Segmentation:
        if self.refuses:
            raise ModelNotFoundError("toy version 1 is gone from gpu1:8001")
        return Segmentation(np.zeros((1, 1, 1), np.uint8), 1, 0, 0)


def test_a_run_goes_on_by_windows_when_its_version_takes_no_whole_scans_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scans: Any = Stub("whole scans")
    windows: Any = Stub("grpc")
    segmenter = ScansElseWindows(scans, windows)
    volume: Any = None
    assert segmenter.segment(volume).warnings == ()
    assert segmenter.identity.transport == "whole scans"
    scans.refuses = True
    for _ in range(2):
        (warning,) = segmenter.segment(volume).warnings
        assert warning == "windows were cut here: toy version 1 is gone from gpu1:8001"
    assert segmenter.identity.transport == "grpc"
    assert caplog.text.count("toy: windows are cut here from now on: toy version 1 is gone") == 1


class AfterTheFirstCase(Progress):
    """Lets something happen once a case has ended; no other goes on meanwhile."""

    def __init__(self, event: Callable[[], None]) -> None:
        self.event = event
        self.has_happened = False
        self._lock = threading.Lock()

    def stage_began(self, case: str, stage: str) -> None:
        with self._lock:
            pass

    def case_done(self, outcome: Outcome) -> None:
        with self._lock:
            if not self.has_happened:
                self.has_happened = True
                self.event()


def test_a_folder_finishes_on_the_version_that_it_began_with_though_that_takes_no_whole_scans_any_more(
    tmp_path: Path,
) -> None:
    root = tmp_path / "models"
    write_scannable_entry(root)
    for seed in range(8):
        write_scan(tmp_path / "in", seed=seed)
    with embedded_server(root, options=ServerOptions(is_private=False, prove=False, watch=True)) as server:
        client = InferenceServerClient(server.url)

        def replace_it() -> None:
            write_scannable_entry(root, toy_spec(postprocessing=[{"labels": [1]}], spacing_mm=(2.0, 1.0, 1.0)), 2)
            wait_for(lambda: client.is_model_ready("toy_scan", "2") and not client.is_model_ready("toy_scan", "1"))

        model = ServedModel("toy", (server.url,))
        segment_folder(tmp_path / "in", tmp_path / "undisturbed", model, BatchOptions())
        progress = AfterTheFirstCase(replace_it)
        report = segment_folder(
            tmp_path / "in", tmp_path / "out", model, BatchOptions(), progress_for=lambda _: progress
        )
        client.close()
    assert [(case.status, case.made_by.model_version) for case in report.cases] == [("ok", "1")] * 8
    assert any("windows were cut here: " in warning for warning in report.cases[-1].warnings)
    expected, found = labels_in(tmp_path / "undisturbed"), labels_in(tmp_path / "out")
    for name, labels in found.items():
        np.testing.assert_array_equal(labels, expected[name])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_folder_of_whole_scans_is_done_by_the_other_server_when_one_ends(
    server: RunningServer, repository: Path, tmp_path: Path, end: signal.Signals
) -> None:
    for seed in range(12):
        write_scan(tmp_path / "in", seed=seed)
    segment_folder(tmp_path / "in", tmp_path / "windows", model_at(server, "norms", "client"), BatchOptions())
    open_to_all = ServerOptions(is_private=False, prove=False)
    with (
        embedded_server(repository, ["norms", "norms_scan"], open_to_all) as stays,
        embedded_server(repository, ["norms", "norms_scan"], open_to_all) as ends,
    ):
        progress = AfterTheFirstCase(lambda: os.kill(ends.pid, end))
        model = ServedModel("norms", (ends.url, stays.url))
        report = segment_folder(
            tmp_path / "in", tmp_path / "out", model, BatchOptions(), progress_for=lambda _: progress
        )
    assert progress.has_happened
    assert [(case.status, case.made_by.transport) for case in report.cases] == [("ok", "whole scans")] * 12
    expected, found = labels_in(tmp_path / "windows"), labels_in(tmp_path / "out")
    assert len(found) == 12
    for name, labels in found.items():
        np.testing.assert_array_equal(labels, expected[name])
