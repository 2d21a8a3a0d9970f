"""The benchmark measures what it says, and one command gives a whole, valid result. No time is asserted."""

import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.budgets import budgets_of
from benchmarks.experiments.trace import trace_of
from benchmarks.measured_process import run_measured
from benchmarks.page import page_of
from benchmarks.results import BenchmarkResult, Floor, Micro, ProgramRun, ReplayRun, Span
from benchmarks.scans import collect_scans
from ctseg.errors import SetupError

GRANDCHILD = """
import time
held = bytearray(b"x") * (200 << 20)
until = time.process_time() + 0.5
while time.process_time() < until:
    pass
time.sleep(1.5)
"""
PARENT = f"""
import subprocess, sys
print("before", flush=True)
subprocess.run([sys.executable, "-c", {GRANDCHILD!r}], check=True)
"""


def test_memory_and_cpu_of_grandchildren_count():
    measured, marker_s = run_measured([sys.executable, "-c", PARENT], marker="before")
    assert 200 <= measured.peak_mb < 400
    assert 0.5 <= measured.cpu_s < 3
    assert measured.client_cpu_s < measured.cpu_s
    assert marker_s is not None
    assert marker_s < measured.wall_s


def test_a_watched_file_is_noted_when_it_appears(tmp_path):
    path = tmp_path / "made"
    code = f"import time; time.sleep(0.5); open({str(path)!r}, 'w').close(); time.sleep(0.3)"
    measured, _ = run_measured([sys.executable, "-c", code], watch=[path, tmp_path / "never"])
    assert 0.5 <= measured.watched_s[path] <= measured.wall_s
    assert tmp_path / "never" not in measured.watched_s


def test_a_failed_command_tells_the_end_of_its_output():
    with pytest.raises(SetupError, match=r"status 3.*\n.*the reason"):
        run_measured([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])


def test_a_command_that_takes_too_long_is_ended_with_its_children():
    with pytest.raises(SetupError, match="not done within"):
        run_measured([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"], timeout_s=1.0)


def program_run(**changes):
    return ProgramRun(**{"wall_s": 9.0, "cpu_s": 3.0, "client_cpu_s": 2.5, "peak_mb": 100.0, **changes})


def test_budgets_are_ratios_to_the_reference():
    floor = Floor(
        model="sleeps", sleep_ms=100.0, scans=2, megavoxels=4.0, windows=40,
        replays=(ReplayRun(concurrency=2, batch=4, wall_s=4.0), ReplayRun(concurrency=2, batch=4, wall_s=5.0)),
        folders=(program_run(folder_s=4.1), program_run(folder_s=4.3), program_run(folder_s=8.0)),
        startup_client_cpu_s=0.5,
    )  # fmt: skip
    assert floor.ratio == pytest.approx(4.3 / 4.0)
    assert floor.client_cpu_s_per_megavoxel == pytest.approx(2.0 / 4.0)
    micro = Micro(
        function="export", classes=2, source_shape=(4, 4, 4), target_shape=(8, 8, 8),
        nnunet_s=(9.0, 8.0), ctseg_s=(0.2, 0.25), nnunet_extra_mb=10, ctseg_extra_mb=11,
    )  # fmt: skip
    found = {budget.what: (budget.figure, budget.met) for budget in budgets_of(None, [], [floor], [micro], [])}
    assert found["logits to labels, 8x8x8, 2 classes"] == ("40.0 x", True)
    assert found["memory of logits to labels, 8x8x8, 2 classes"] == ("11 against 10 MiB", False)
    assert found["folder of 2 scans, sleeps"] == ("1.075 x", False)


def span(row, stage, begin, end):
    return Span(row=row, stage=stage, begin=begin, end=end)


def test_the_server_is_busy_while_any_of_its_instances_computes():
    client = [span("a", "read", 100.0, 101.0), span("a", "network", 101.0, 109.0), span("a", "write", 109.0, 110.0)]
    proof, *server = [
        span("server", "compute", begin, end)
        for begin, end in ((90.0, 91.0), (102.0, 104.0), (103.0, 106.0), (107.0, 108.0))
    ]
    trace = trace_of("model", None, client, [proof, *server], windows=3, client_cpu_s=1.0)
    assert (trace.folder_s, trace.scans) == (10.0, 1)
    assert trace.busy_share == pytest.approx(5.0 / 10.0)
    assert trace.busy_share_between == pytest.approx(5.0 / 6.0)
    assert [(s.row, s.begin) for s in trace.spans][:2] == [("a", 0.0), ("a", 1.0)]


def test_made_scans_differ_from_those_given_and_one_is_long(ct_piece, tmp_path):
    small, big = collect_scans(ct_piece.parent, tmp_path / "scans", ct_piece, more=True, large_planes=70)
    assert [scan.case for scan in small] == ["piece", "piece_mirrored", "piece_turned"]
    assert [scan.case for scan in big] == ["chest", "chest_mirrored", "long"]
    files = [tmp_path / "scans" / f"{scan.case}_0000.nii.gz" for scan in (*small, big[-1])]
    assert len({path.read_bytes() for path in files}) == 4
    assert big[-1].shape == (70, *small[0].shape[1:])
    assert big[-1].spacing_mm[0] == pytest.approx(small[0].spacing_mm[0] / round(small[0].spacing_mm[0]))


def test_a_folder_without_scans_is_refused(tmp_path, capsys):
    assert main(["--tiny", "-i", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "found none" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.live
def test_one_command_measures_everything(ct_piece, tmp_path, capsys):
    assert main(["--tiny", "-i", str(ct_piece.parent), "-o", str(tmp_path)]) == 0, capsys.readouterr()
    result = BenchmarkResult.model_validate_json((tmp_path / "benchmark.json").read_bytes())

    assert [(scan.case, scan.shape) for scan in result.scans] == [("piece", (30, 98, 80))]
    (row,) = result.end_to_end
    assert row.megavoxels == pytest.approx(30 * 98 * 80 / 1e6)
    assert row.agreement.equal_share > 0.99
    (run,) = row.ctseg.runs
    assert run.windows is not None
    assert run.windows > 8
    assert run.bytes_sent == run.windows * 16 * 32 * 32 * 4
    assert run.bytes_received == 3 * run.bytes_sent
    assert run.server_start_s is not None
    assert run.folder_s is not None
    assert run.server_start_s + run.folder_s < run.wall_s
    for program in (row.nnunet, row.ctseg):
        assert len(program.runs) == len(program.startup) == 1
        for measured in (*program.runs, *program.startup):
            assert 0 < measured.client_cpu_s <= measured.cpu_s
            assert measured.peak_mb > 50

    sleeping, real = result.floor
    assert (sleeping.sleep_ms, real.sleep_ms) == (5.0, None)
    assert sleeping.windows == real.windows == run.windows
    assert sleeping.replay_s >= run.windows * 0.005, "the model sleeps for every window"
    assert sleeping.folder_s >= run.windows * 0.005

    for trace in result.traces:
        stages = {span.stage for span in trace.spans}
        assert stages == {"read", "prepare", "network", "restore", "write", "compute"}
        assert 0 < trace.busy_share <= trace.busy_share_between <= 1
    assert [trace.sleep_ms for trace in result.traces] == [5.0, None]
    assert (tmp_path / "benchmark_trace.png").stat().st_size > 10_000

    alone = row.model_copy(update={"nnunet": None, "agreement": None, "note": "nnU-Net would need 99 GB"})
    page = page_of(result.model_copy(update={"end_to_end": (alone,)}))
    assert "ctseg alone: nnU-Net would need 99 GB" in page

    shares = {micro.function: micro.equal_share for micro in result.micro}
    assert set(shares) == {"prepare", "export", "blend"}
    assert all(share is not None and share > 0.99 for share in shares.values()), shares
    assert [memory.classes for memory in result.memory] == [3]
    assert result.startup is not None
    assert not result.startup.client_imports_torch
    assert not result.problems
    assert "these figures mean nothing" in (tmp_path / "benchmark.md").read_text()
