"""Whole scans on a real server that others may ask: readiness, gauges, floods, bombs, foreign ids."""

import json
import re
import urllib.request
from collections.abc import Iterator

import pytest

from ctseg.container import readiness
from ctseg.container.drain import drain, unfinished_scans
from ctseg.recipe import Recipe
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.recipe_entry import publish_recipe
from ctseg.serving.server import embedded_server
from ctseg.serving.whole_scan.stopping import stopping_file
from tests.support.live_triton import free_port, wait_for
from tests.support.toy_models import toy_spec
from tests.support.whole_scans import Gate, ScanClient, marked_scan, write_gated_entry, write_scannable_entry

pytestmark = pytest.mark.live

REGIONS = {
    "labels": [{"name": "whole", "values": [1, 2]}, {"name": "core", "values": [2]}, {"name": "rest", "values": [300]}],
    "regions_class_order": [1, 2, 300],
}
MOST_WAITING = 2


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("container") / "models"
    spec = write_scannable_entry(root)
    write_scannable_entry(root, toy_spec("regions", **REGIONS))
    write_gated_entry(root, gate.folder)
    member = {"model": "toy", "digest": spec.digest}
    publish_recipe(
        root, Recipe.model_validate({"name": "r", "members": [member], "step": {"kind": "model", "model": "toy"}})
    )
    options = ServerOptions(prove=False, http_port=0, metrics_port=free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTSEG_SCAN_LANES", "1")
        patch.setenv("CTSEG_SCAN_MEMORY_GB", "0.05")
        patch.setenv("CTSEG_SCAN_MOST_WAITING", str(MOST_WAITING))
        patch.setenv("CTSEG_SCAN_MOST_WINDOWS", "600_000")
        with embedded_server(root, options=options) as running:
            yield running


def metric(server: RunningServer, name: str, model: str) -> float:
    assert server.metrics_url is not None
    with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(rf'^{name}{{model="{model}",version="1"}} (\S+)$', text, re.MULTILINE)
    assert len(found) == 1, text
    return float(found[0])


@pytest.mark.parametrize(("name", "of_scan"), [("toy", False), ("toy_scan", True), ("regions_scan", True), ("r", True)])
def test_readiness_asks_each_model_what_it_takes(server: RunningServer, name: str, of_scan: bool) -> None:
    (key,) = server.headers.values()
    assert server.http_url is not None
    assert readiness.Server(server.http_url, {"ctseg": key}).infer(name, "1") == of_scan


def test_a_flood_is_refused_with_figures_while_others_are_served(server: RunningServer, gate: Gate) -> None:
    client = ScanClient(server, "gated_scan")
    long = (24, 40, 56)
    scans = [client.send(marked_scan(1, long), id="first")]
    wait_for(lambda: gate.calls)
    scans += [client.send(marked_scan(2, long)) for _ in range(MOST_WAITING)]
    wait_for(lambda: client.ask_about("first")["waiting"] == MOST_WAITING)
    assert metric(server, "ctseg_scans_waiting", "gated") == MOST_WAITING
    assert metric(server, "ctseg_scans_running", "gated") == 1
    for _ in range(3):
        failure = client.send(marked_scan(3, long)).failure
        assert failure.startswith("[StatusCode.UNAVAILABLE]")
        assert f"expected at most {MOST_WAITING} waiting scans of 4 GB, found {MOST_WAITING + 1} of" in failure
    assert ScanClient(server).send(marked_scan(4)).labels.shape == (6, 10, 14), "another model's are served"
    gate.let(10_000)
    assert [scan.labels.shape for scan in scans] == [long] * len(scans)
    wait_for(lambda: client.ask_about("first")["running"] == 0)
    wait_for(lambda: metric(server, "ctseg_scans_running", "gated") == 0)
    assert metric(server, "ctseg_scans_waiting", "gated") == 0
    assert metric(server, "ctseg_scans_waiting", "toy") == 0


def test_an_id_that_nobody_told_finds_nothing(server: RunningServer, gate: Gate) -> None:
    gate.let(0)
    client, came = ScanClient(server, "gated_scan"), len(gate.calls)
    scan = client.send(marked_scan(5), id="5f0c")
    nameless = client.send(marked_scan(6))
    wait_for(lambda: len(gate.calls) > came)
    for foreign in ("", "5f0", "5F0C", "*"):
        assert client.ask_about(foreign, "cancel")["state"] == "unknown"
        assert client.ask_about(foreign)["windows"] == 0
    gate.let(10_000)
    assert scan.labels.shape == nameless.labels.shape == (6, 10, 14)


def test_a_spacing_that_asks_for_too_much_memory_is_refused_with_the_figures(server: RunningServer) -> None:
    failure = ScanClient(server).send(marked_scan(1), (120.0, 40.0, 40.0)).failure
    assert failure.startswith("[StatusCode.INVALID_ARGUMENT]")
    assert "in 0.05 GB (allowed), found one that would take 0.4" in failure


def test_a_spacing_that_asks_for_too_many_windows_is_refused_with_the_figures(server: RunningServer) -> None:
    failure = ScanClient(server).send(marked_scan(1), (150.0, 50.0, 50.0)).failure
    assert failure.startswith(
        "[StatusCode.INVALID_ARGUMENT] up to 970,299 windows, expected at most 600,000: is the sp"
    )


def test_a_shape_without_its_bytes_is_refused(server: RunningServer) -> None:
    (key,) = server.headers.values()
    assert server.http_url is not None
    asking = readiness.Server(server.http_url, {"ctseg": key})
    for shape in ([2, 100_000, 100_000, 100_000], [2, -1, 1, 1], [2, 2**62, 2, 2]):
        sent = [
            {"name": "voxels_int16", "datatype": "INT16", "shape": shape, "parameters": {"binary_data_size": 8}},
            {"name": "spacing_mm", "datatype": "FP64", "shape": [3], "data": [3.0, 1.0, 1.0]},
        ]
        head = json.dumps({"inputs": sent}).encode()
        length = {"Inference_Header_Content_Length": str(len(head))}
        with pytest.raises(readiness.NoAnswerError, match=r"status [45]00"):
            asking.ask("POST", "/v2/models/toy_scan/infer", head + bytes(8), **length)
    assert ScanClient(server).send(marked_scan(1)).labels.shape == (6, 10, 14)


def test_a_server_that_is_to_stop_takes_no_more_scans_and_finishes_those_that_it_has(
    server: RunningServer, gate: Gate
) -> None:
    gate.let(0)
    client, came = ScanClient(server, "gated_scan"), len(gate.calls)
    scan = client.send(marked_scan(7), id="stays")
    wait_for(lambda: len(gate.calls) > came)
    (served,) = server.log.parent.glob("models")
    assert server.metrics_url is not None
    port = int(server.metrics_url.split(":")[2].partition("/")[0])
    try:
        assert drain(served, 0, lambda: unfinished_scans(port)) == 1
        failure = client.send(marked_scan(8)).failure
        assert failure.startswith("[StatusCode.UNAVAILABLE] this server is stopping")
        gate.let(10_000)
        assert drain(served, 600, lambda: unfinished_scans(port)) == 0
        assert scan.labels.shape == (6, 10, 14)
    finally:
        stopping_file(served).unlink()
