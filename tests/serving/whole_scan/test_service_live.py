"""Whole scans on a real server: equal labels, one answer to each request, fair turns, giving up, refusals."""

from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from ctseg.files.volume import volume_from_array
from ctseg.predict.segmenter import segment_volume
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.live_triton import connected, wait_for
from tests.support.toy_models import toy_spec
from tests.support.whole_scans import (
    SPACING,
    Gate,
    Pending,
    ScanClient,
    marked_scan,
    write_gated_entry,
    write_scannable_entry,
)

pytestmark = pytest.mark.live

REGIONS = {
    "labels": [{"name": "whole", "values": [1, 2]}, {"name": "core", "values": [2]}, {"name": "rest", "values": [300]}],
    "regions_class_order": [1, 2, 300],
}
LONG = (24, 40, 56)


def volume(voxels: np.ndarray):
    z, y, x = SPACING
    return volume_from_array(voxels, np.diag([x, y, z, 1.0]))


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("scans") / "models"
    write_scannable_entry(root)
    write_scannable_entry(root, toy_spec("regions", **REGIONS))
    write_gated_entry(root, gate.folder)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CTSEG_SCAN_MOST_WAITING", "1000")
        with embedded_server(root, options=ServerOptions(prove=False)) as running:
            yield running


def test_labels_are_those_of_windows_that_the_client_cuts(server: RunningServer) -> None:
    voxels = np.random.default_rng(0).standard_normal((2, 9, 25, 31), dtype=np.float32)
    answer = ScanClient(server).send(voxels, id="mine", spec_digest=toy_spec().digest)
    with connected(server) as predictor:
        expected = segment_volume(volume(voxels), predictor)
    np.testing.assert_array_equal(answer.labels, expected)
    assert answer.labels.dtype == expected.dtype == np.uint8
    report = answer.report
    assert (report["request"], report["model"], report["version"], report["windows"]) == ("mine", "toy", 1, 2 * 4 * 4)
    assert report["digest"] == toy_spec().digest
    liver_ml = np.count_nonzero(expected == 1) * 3 / 1000
    assert report["volumes_ml"]["liver"] == pytest.approx(liver_ml, abs=1e-3)
    deflated = ScanClient(server).send(voxels, outputs=("labels_deflated", "report"))
    assert deflated.inflated == expected.tobytes()


def test_values_above_255_come_as_uint16(server: RunningServer) -> None:
    voxels = np.random.default_rng(1).standard_normal((2, 7, 11, 15), dtype=np.float32)
    with connected(server, "regions") as predictor:
        expected = segment_volume(volume(voxels), predictor)
    assert expected.max() == 300
    np.testing.assert_array_equal(ScanClient(server, "regions_scan").send(voxels).labels, expected)


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"voxels": marked_scan(1)[:1]}, "INVALID_ARGUMENT", "with 2 channels (CT, PET), found float32 (1, 6, 10, 14)"),
        ({"voxels": np.zeros((2, 6, 0, 14), np.int16)}, "INVALID_ARGUMENT", "found int16 (2, 6, 0, 14)"),
        ({"voxels": marked_scan(1) * np.nan}, "INVALID_ARGUMENT", "channel 0: expected a finite number in every voxel"),
        ({"spacing_mm": (3, 0, 1)}, "INVALID_ARGUMENT", "expected positive millimetres along (z, y, x)"),
        ({"spacing_mm": (5e-324, 1, 1)}, "INVALID_ARGUMENT", "expected positive millimetres along (z, y, x)"),
        ({"spacing_mm": (3, np.inf, 1)}, "INVALID_ARGUMENT", "expected positive millimetres along (z, y, x)"),
        ({"spacing_mm": (1e-9, 1, 1)}, "INVALID_ARGUMENT", "expected at least one voxel along each axis"),
        (
            {"spacing_mm": (1e9, 1e9, 1e9)},
            "INVALID_ARGUMENT",
            "windows, expected at most 1,000,000",
        ),
        ({"tile_step_size": "0.001"}, "INVALID_ARGUMENT", "tile_step_size: expected a step between windows"),
        ({"mirorring": False}, "INVALID_ARGUMENT", "expected of the parameters tile_step_size, mirroring, "),
        ({"mirroring": "perhaps"}, "INVALID_ARGUMENT", "mirroring: expected true or false, found 'perhaps'"),
        ({"memory_order": "z y"}, "INVALID_ARGUMENT", "memory_order: expected z, y and x"),
        ({"previous": np.zeros((6, 10, 14), np.uint16)}, "INVALID_ARGUMENT", "toy is no second stage of a cascade"),
        ({"spec_digest": "f" * 64}, "UNIMPLEMENTED", f"expected the spec {'f' * 12}, found {toy_spec().digest[:12]}"),
    ],
)
def test_what_cannot_be_segmented_is_refused_by_code_and_name(
    server: RunningServer, changes: dict, code: str, told: str
) -> None:
    failure = ScanClient(server).send(**{"voxels": marked_scan(1), **changes}).failure
    assert failure.startswith(f"[StatusCode.{code}]")
    assert told in failure


def accepted(client: ScanClient, mark: int, name: str) -> Pending:
    """Send a long scan, and wait until the server knows it."""
    pending = client.send(marked_scan(mark, LONG), id=name)
    wait_for(lambda: client.ask_about(name)["state"] != "unknown")
    return pending


def test_each_request_gets_one_answer_whatever_becomes_of_it(server: RunningServer, gate: Gate) -> None:
    client = ScanClient(server, "gated_scan")
    came = len(gate.calls)
    long = client.send(marked_scan(1, LONG), id="long")
    wait_for(lambda: gate.calls[came:])
    given_up = accepted(client, 2, "given up")
    waiting = [accepted(client, 3, f"waits {index}") for index in range(3)]
    assert client.ask_about("waits 2")["state"] == "waiting"
    wait_for(lambda: client.ask_about("given up")["windows"])
    failing = client.send(marked_scan(63), id="fails")
    wrong = client.send(marked_scan(1)[:1], id="wrong")
    unknown = client.ask_about("nobody")
    assert unknown["state"] == "unknown"
    assert unknown["running"] >= 3

    assert client.ask_about("long")["windows"] == client.ask_about("given up")["windows"] > 0
    assert client.ask_about("given up", "cancel")["request"] == "given up"
    client.ask_about("waits 2", "cancel")
    assert "CANCELLED" in waiting[2].failure, "one that waits for its turn ends at once"
    waiting[1].call.cancel()
    gate.let(10_000)
    assert "CANCELLED" in given_up.failure
    assert "out of luck" in failing.failure
    assert failing.failure.startswith("[StatusCode.INTERNAL]")
    assert wrong.failure.startswith("[StatusCode.INVALID_ARGUMENT]")
    assert long.labels.shape == waiting[0].labels.shape == LONG
    everything = [long, given_up, *waiting, failing, wrong]
    wait_for(lambda: client.ask_about("nobody")["running"] == 0)
    assert [len(pending.answers) for pending in everything] == [1] * len(everything)
    assert gate.calls[came:].count(2) < gate.calls[came:].count(1), "what nobody waits for is not computed"


def test_a_small_scan_begins_soon_behind_long_ones_which_share_alike(server: RunningServer, gate: Gate) -> None:
    client = ScanClient(server, "gated_scan")
    done = len(gate.calls)
    gate.let(done)
    long = [accepted(client, mark, f"long {mark}") for mark in range(11, 16)]
    assert client.ask_about("long 15")["state"] == "waiting"
    wait_for(lambda: [client.ask_about(f"long {mark}")["windows"] for mark in (11, 12, 13)].count(0) == 0)
    for step in range(done + 1, done + 31):
        gate.let(step)
        wait_for(lambda step=step: len(gate.calls) > step)
    shares = [gate.calls[done:].count(mark) for mark in (11, 12, 13)]
    assert min(shares) >= 30 // 3 // 2

    small = client.send(marked_scan(9), id="small")
    wait_for(lambda: client.ask_about("small")["windows"] == 1)
    came, step = len(gate.calls), done + 30
    while 9 not in gate.calls:
        step += 1
        gate.let(step)
        wait_for(lambda step=step: len(gate.calls) > step)
    running = 4
    assert len(gate.calls) - came <= 2 * running
    gate.let(10**9)
    assert small.labels.shape == (6, 10, 14)
    for pending in long[1:]:
        client.ask_about(f"long {11 + long.index(pending)}", "cancel")
    assert long[0].labels.shape == LONG


def test_hundreds_that_are_given_up_at_once_each_get_an_answer_and_are_forgotten(
    server: RunningServer, gate: Gate
) -> None:
    client = ScanClient(server, "gated_scan")
    gate.let(0)
    held = [client.send(marked_scan(1, LONG), id="twins") for _ in range(2)]
    many = [client.send(marked_scan(1, LONG), id=f"many {index}") for index in range(300)]
    wait_for(lambda: sum(client.ask_about("nobody")[count] for count in ("waiting", "running")) == len(held + many))
    for pending in many:
        pending.call.cancel()
    client.ask_about("twins", "cancel")
    gate.let(10**9)
    assert all("CANCELLED" in pending.failure for pending in held + many)
    wait_for(lambda: client.ask_about("nobody")["running"] == 0)
    assert {client.ask_about(f"many {index}")["state"] for index in range(0, 300, 10)} == {"unknown"}


def test_scans_that_failed_leave_nothing_in_shared_memory(server: RunningServer, gate: Gate) -> None:
    client = ScanClient(server, "gated_scan")
    gate.let(10**9)
    scan = marked_scan(63, (40, 100, 130))

    def held_bytes() -> int:
        assert "out of luck" in client.send(scan).failure
        wait_for(lambda: client.ask_about("nobody")["running"] == 0)
        return sum(stub.memory_info().shared for stub in stubs_of(server) if "gated_scan" in " ".join(stub.cmdline()))

    first = held_bytes()
    assert [held_bytes() for _ in range(6)][-1] < first + 3 * scan.nbytes


def stubs_of(server: RunningServer) -> list[psutil.Process]:
    return [child for child in psutil.Process(server.pid).children() if "python_backend_stub" in child.name()]
