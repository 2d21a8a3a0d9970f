"""One command gives a whole, valid result. No time is asserted."""

import subprocess
import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.page import page_of
from benchmarks.results import BenchmarkResult


def test_the_benchmark_itself_loads_neither_torch_nor_nnunet():
    code = "import sys, benchmarks.run; print(sorted({'torch', 'nnunetv2', 'monai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_folder_without_scans_is_refused(tmp_path, capsys):
    assert main(["--tiny", "-i", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "found none: give another folder (see --input)" in capsys.readouterr().err


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
    for dicom in result.dicom:
        assert len(dicom.pydicom_s) == (dicom.encoding != "JPEG lossless")
        assert 0 < dicom.ctseg_headers_s[0] < dicom.ctseg_s[0]
    assert [dicom.encoding for dicom in result.dicom] == ["uncompressed", "JPEG lossless", "JPEG 2000 lossless"]
    assert result.startup is not None
    assert not result.startup.client_imports_torch
    assert not result.problems
    assert "these figures mean nothing" in (tmp_path / "benchmark.md").read_text()
