"""What a folder run costs beside its cases is measured on runs that did them."""

from pathlib import Path

import pytest

from benchmarks.experiments import many_cases


def test_every_case_is_done_once_and_skipped_once(tmp_path: Path) -> None:
    result = many_cases.measure(12, tmp_path / "scratch")
    assert result.cases == 12
    assert result.first.fsyncs > result.alone.fsyncs >= 12
    assert 0 < result.again.fsyncs < 12, "nothing is written of a case that is done"
    assert all(spent.cpu_s > 0 for spent in (result.alone, result.first, result.again, result.fold))
    assert not (tmp_path / "scratch").exists()


def test_a_line_is_printed_for_each_number_of_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert many_cases.main(["-o", str(tmp_path / "scratch"), "--cases", "2", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["2", "3"]
