"""One command measures a folder over links; what its page says follows from its rows. No time is asserted."""

import pytest

from benchmarks.machine import this_machine
from benchmarks.network.__main__ import main
from benchmarks.network.clients import ClientsResult
from benchmarks.network.page import page_of
from benchmarks.network.results import FolderRun, Link, NetworkResult, NetworkRow

HERE = Link(kind="none")
SLOW = Link(kind="namespaces", gbit_s=1.0, carries_gbit_s=0.94)


def row(way: str, link: Link, folder_s: float) -> NetworkRow:
    run = FolderRun(folder_s=folder_s, client_cpu_s=1, server_cpu_s=8, up_mb=1, down_mb=2, transport="grpc", windows=9)
    return NetworkRow(classes=25, way=way, link=link, scans=2, megavoxels=32, runs=(run, run, run), labels_equal=True)


def test_the_page_holds_whole_scans_against_the_budget_and_windows_against_nothing():
    rows = (row("windows", HERE, 10), row("whole scans", SLOW, 12), row("windows", SLOW, 60))
    result = NetworkResult(
        is_check=False, started="2026-11-27T12:00:00", machine=this_machine(), versions={}, sleep_ms=60,
        patch_size=(128, 128, 128), scan="chest", rows=rows,
    )  # fmt: skip
    page = page_of(result)
    assert "25 classes, whole scans over 1 Gbit/s: 1.20 x: MISSED, promised 1.1 x." in page
    assert "25 classes, windows over 1 Gbit/s: 6.00 x." in page
    assert "| 0.250 |" in page, "8 CPU s of the server for 32 million voxels"


def test_the_least_share_is_that_of_the_client_that_waited_longest():
    ends = ((1.0, 2.0, 3.0, 4.0), (3.9, 6.0, 7.0, 8.0))
    assert ClientsResult(seconds=8, waits_s=ends, ends_s=ends).least_share == 0.25


@pytest.mark.full
@pytest.mark.live
def test_one_command_measures_windows_and_whole_scans_over_a_link(ct_piece, tmp_path, capsys):
    assert main(["--tiny", "-i", str(ct_piece.parent), "-o", str(tmp_path)]) == 0, capsys.readouterr()
    result = NetworkResult.model_validate_json((tmp_path / "network.json").read_bytes())
    ways = [(row.way, row.link.kind == "none", row.runs[0].transport) for row in result.rows]
    assert ways == [
        ("windows", True, "shared memory"), ("whole scans", True, "whole scans"),
        ("whole scans", False, "whole scans"), ("windows", False, "grpc"),
    ]  # fmt: skip
    assert all(row.labels_equal for row in result.rows)
    scan, windows = result.rows[2].runs[0], result.rows[3].runs[0]
    voxels_mb = 2 * 30 * 98 * 80 * 2 / 1e6
    assert voxels_mb < scan.up_mb < 1.2 * voxels_mb + 0.1, "a whole scan goes up once, as int16"
    answers_mb = windows.windows * 3 * 16 * 32 * 32 * 4 / 1e6
    assert answers_mb < windows.down_mb < 1.2 * answers_mb + 0.1
    (clients,) = result.clients
    assert 0 < clients.median_wait_s <= clients.longest_wait_s <= clients.seconds
