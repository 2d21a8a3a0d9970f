"""Nothing that was measured is lost by what comes later."""

import pytest

from benchmarks.record import Record
from benchmarks.results import BenchmarkResult, Machine, Memory, StartUp
from ctseg.errors import OutputError, SetupError

OPENING = BenchmarkResult(
    mode="tiny",
    started="2026-11-27T00:00:00+00:00",
    machine=Machine(system="Linux", processor="a CPU", cpus=2, memory_gb=25.0, busy_cpus=0.0, python="3.11"),
    versions={"ctseg": "0.1.0"},
    scans=(),
)
MEMORY = Memory(classes=2, scan_shape=(8, 9, 10), patch_size=(4, 4, 4), peak_mb=10.0, allowed_mb=12.0)


def fail() -> Memory:
    raise SetupError("the reason")


def test_a_failed_step_is_named_and_the_next_goes_on(tmp_path):
    record = Record(tmp_path / "out", OPENING, minutes=None)
    record.step("first", fail, record.memory.append)
    record.step("second", lambda: MEMORY, record.memory.append)
    result = BenchmarkResult.model_validate_json((tmp_path / "out" / "benchmark.json").read_bytes())
    assert result.memory == (MEMORY,)
    assert [(p.step, p.message, p.is_failure) for p in result.problems] == [("first", "SetupError: the reason", True)]
    assert [(budget.figure, budget.met) for budget in result.budgets] == [("10 MiB", True)]
    assert "first: FAILED: SetupError: the reason" in (tmp_path / "out" / "benchmark.md").read_text()


def test_no_step_starts_after_the_minutes_given(tmp_path):
    record = Record(tmp_path, OPENING, minutes=-1.0)
    record.step("late", fail, record.memory.append)
    (problem,) = record.write().problems
    assert (problem.step, problem.message, problem.is_failure) == ("late", "left out: -1 minutes were over", False)


def test_a_bug_is_no_missing_figure(tmp_path):
    record = Record(tmp_path, OPENING, minutes=None)
    with pytest.raises(ZeroDivisionError):
        record.step("wrong", lambda: 1 / 0, record.memory.append)


def test_an_output_folder_that_cannot_be_made_is_said_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        Record(tmp_path / "file" / "out", OPENING, minutes=None)


def test_start_up_is_kept_too(tmp_path):
    record = Record(tmp_path, OPENING, minutes=None)
    record.startup = StartUp(
        client_import_s=(0.5,), client_imports_torch=False, first_compile_s=5.0, load_kernels_s=0.4
    )
    assert record.write().startup == record.startup
