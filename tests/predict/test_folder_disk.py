"""The output's disk is read-only, full, or closed to us for a while: an error per case at most, and the run goes on."""

import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from ctseg.errors import OutputError
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.report import Report, fold_report
from tests.support.label_maps import labels_of
from tests.support.live_triton import wait_for
from tests.support.threshold import ThresholdPredictor, write_scan


def mounts(*words: object) -> bool:
    return subprocess.run(list(map(str, words)), check=False, capture_output=True).returncode == 0


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


class Disk:
    """A disk of an output folder that can go away and come back."""

    def __init__(self, out: Path, kind: str) -> None:
        self.out = out
        self.kind = kind
        out.mkdir()
        needs_root = kind in ("read-only", "full")
        if needs_root and (os.geteuid() != 0 or not mounts("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", out)):
            pytest.skip("NEEDS ROOT AND MOUNTS: a disk that goes away and comes back")
        if kind == "no permission" and os.geteuid() == 0:
            pytest.skip("NO ROOT: root writes into every folder")

    def goes(self) -> None:
        if self.kind == "read-only":  # for all who come by its name; a file that is open keeps no mount from it
            wait_for(self._is_mounted_read_only)
        elif self.kind == "full":
            with (self.out / "ballast").open("wb", buffering=0) as file:
                while _is_written(file):
                    pass
        else:
            self._set_mode(0o555)

    def comes_back(self) -> None:
        if self.kind == "read-only":
            assert mounts("umount", "-l", self.out)
        elif self.kind == "full":
            (self.out / "ballast").unlink()
        else:
            self._set_mode(0o755)

    def remove(self) -> None:
        while mounts("umount", "-l", self.out):
            pass
        self._set_mode(0o755)

    def _is_mounted_read_only(self) -> bool:
        """Mount the folder over itself; refused if somebody has opened a file there meanwhile, perhaps for long."""
        assert mounts("mount", "--bind", self.out, self.out)
        is_read_only = mounts("mount", "-o", "remount,bind,ro", self.out)
        return is_read_only or not mounts("umount", "-l", self.out)

    def _set_mode(self, mode: int) -> None:
        for folder in (self.out, *(path for path in (self.out / ".ctseg").rglob("*") if path.is_dir())):
            folder.chmod(mode)


def _is_written(file: IO[bytes]) -> bool:
    try:
        return file.write(bytes(1 << 12)) > 0
    except OSError:
        return False


@pytest.fixture(params=["read-only", "full", "no permission"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    disk = Disk(tmp_path / "out", request.param)
    yield disk
    disk.remove()


class Interrupted(ThresholdPredictor):
    """Whose disk goes away with one of its calls, and comes back once so many cases were told of it."""

    def __init__(self, disk: Disk, *, at_call: int, back_after: int | None) -> None:
        super().__init__()
        self._disk = disk
        self._at_call = at_call
        self._back_after = back_after
        self.told = 0
        self._once = threading.Lock()
        self._is_gone = False

    def predict(self, patches):
        with self._once:
            if self.calls >= self._at_call and not self._is_gone:
                self._is_gone = True
                self._disk.goes()
        return super().predict(patches)

    def filter(self, record: logging.LogRecord) -> bool:
        if "tried again at the end of the run" in record.getMessage():
            self.told += 1
            if self.told == self._back_after:
                self._disk.comes_back()
        return True


def run(scans: Path, predictor: ThresholdPredictor, out: Path, **options: object) -> Report:
    return segment_cases(find_cases(scans, channels=1), predictor, out, BatchOptions(**options))


def files_in(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "locks" not in path.parts}


def test_a_disk_that_is_away_for_a_while_loses_no_case(scans: Path, disk: Disk) -> None:
    expected = {f"c{i}": write_scan(scans / f"c{i}.nii.gz", seed=i) for i in range(8)}
    predictor = Interrupted(disk, at_call=10, back_after=3)
    logger = logging.getLogger("ctseg.predict.case_work")
    logger.addFilter(predictor)
    try:
        report = run(scans, predictor, disk.out, save_probabilities=True)
    finally:
        logger.removeFilter(predictor)
    assert predictor.told >= 3
    assert report.finished
    assert {case.case: case.status for case in report.cases} == dict.fromkeys(expected, "ok")
    assert Report.model_validate_json((disk.out / "report.json").read_bytes()).cases == report.cases
    for name, labels in expected.items():
        assert np.array_equal(labels_of(disk.out / f"{name}.nii.gz"), labels)
        assert np.load(disk.out / f"{name}.npz")["probabilities"].shape[0] == 2
    left = {path for path in files_in(disk.out) if path.startswith((".ctseg/claims", ".ctseg/runs"))}
    assert left == set()


@pytest.mark.parametrize("disk", ["read-only", "no permission"], indirect=True)
def test_a_disk_that_stays_away_gives_an_error_per_case_and_the_next_run_finds_all_as_it_was(
    scans: Path, disk: Disk
) -> None:
    expected = {f"c{i}": write_scan(scans / f"c{i}.nii.gz", seed=i) for i in range(6)}
    run(scans, ThresholdPredictor(), disk.out)
    write_scan(scans / "c5.nii.gz", seed=5)
    report = run(scans, Interrupted(disk, at_call=10, back_after=None), disk.out)
    assert not report.finished
    assert report.went_away
    assert sorted(case.case for case in (*report.cases, *report.not_done)) == sorted(expected)
    failed = [case for case in report.cases if case.status != "ok"]
    assert failed or report.not_done  # where none was written before
    for case in failed:
        assert case.error.type == "OutputError"
        assert case.error.message.startswith(f"case {case.case}: ")
    assert all(np.array_equal(labels_of(disk.out / f"{name}.nii.gz"), labels) for name, labels in expected.items())
    disk.comes_back()
    again = run(scans, ThresholdPredictor(), disk.out)
    assert {case.case: case.status for case in again.cases} == dict.fromkeys(expected, "ok")
    left = {path for path in files_in(disk.out) if path.startswith((".ctseg/claims", ".ctseg/runs"))}
    assert left == set()
    assert {path for path in files_in(disk.out) if "/" not in path} == {
        "report.json", "report.csv", *(f"{name}.nii.gz" for name in expected)
    }  # fmt: skip


@pytest.mark.parametrize("disk", ["read-only", "no permission"], indirect=True)
def test_a_disk_that_every_case_finds_away_leaves_them_and_what_an_earlier_run_wrote(
    scans: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        write_scan(scans / f"{name}.nii.gz")
    before = run(scans, ThresholdPredictor(), disk.out)
    report = run(scans, Interrupted(disk, at_call=0, back_after=None), disk.out)
    assert report.cases == ()
    assert [(case.case, case.reason) for case in report.not_done] == [(name, "output disk away") for name in "abc"]
    assert report.went_away
    assert all(f"OutputError: case {name}: " in caplog.text for name in "abc")
    disk.comes_back()
    assert fold_report(disk.out).cases == before.cases
    assert {case.status for case in run(scans, ThresholdPredictor(), disk.out, continue_prediction=True).cases} == {
        "skipped"
    }


def test_a_full_disk_costs_no_label_map_of_an_earlier_run(scans: Path, tmp_path: Path) -> None:
    expected = {name: write_scan(scans / f"{name}.nii.gz", shape=(60, 60, 40)) for name in "abc"}
    disk = Disk(tmp_path / "out", "full")
    try:
        before = run(scans, ThresholdPredictor(), disk.out)
        disk.goes()
        with (disk.out / "ballast").open("rb+") as file:  # room for outcomes, none for a label map
            file.truncate((disk.out / "ballast").stat().st_size - (6 << 12))
        with suppress(OutputError):  # or the run finds no room to begin
            assert run(scans, ThresholdPredictor(), disk.out).went_away
        disk.comes_back()
        assert fold_report(disk.out).cases == before.cases
        for name, labels in expected.items():
            assert np.array_equal(labels_of(disk.out / f"{name}.nii.gz"), labels)
    finally:
        disk.remove()


def test_a_disk_that_is_away_at_the_begin_is_one_error(scans: Path, disk: Disk) -> None:
    write_scan(scans / "a.nii.gz")
    disk.goes()
    predictor = ThresholdPredictor()
    with pytest.raises(OutputError, match="out"):
        run(scans, predictor, disk.out)
    assert predictor.calls == 0
    disk.comes_back()
    assert [case.status for case in run(scans, predictor, disk.out).cases] == ["ok"]


def test_a_disk_that_stays_full_gives_an_error_per_case_and_nothing_half_written(scans: Path, tmp_path: Path) -> None:
    expected = {f"c{i}": write_scan(scans / f"c{i}.nii.gz", seed=i) for i in range(6)}
    disk = Disk(tmp_path / "out", "full")
    try:
        report = run(scans, Interrupted(disk, at_call=10, back_after=None), disk.out)
        assert sorted(case.case for case in (*report.cases, *report.not_done)) == sorted(expected)
        assert {case.reason for case in report.not_done} <= {"output disk away"}
        for case in report.cases:  # what is small, or comes when something else has gone, finds room
            assert case.status == "ok" or case.error.type == "OutputError"
        for name, labels in expected.items():  # where there is one, its outcome alone may have found none
            path = disk.out / f"{name}.nii.gz"
            assert not path.exists() or np.array_equal(labels_of(path), labels)
        disk.comes_back()
        again = run(scans, ThresholdPredictor(), disk.out)
        assert {case.case: case.status for case in again.cases} == dict.fromkeys(expected, "ok")
        assert {path for path in files_in(disk.out) if "/" not in path} == {
            "report.json", "report.csv", *(f"{name}.nii.gz" for name in expected)
        }  # fmt: skip
    finally:
        disk.remove()


@pytest.mark.parametrize("disk", ["read-only"], indirect=True)
def test_a_case_that_another_run_did_while_the_disk_was_away_here_is_not_done_again(
    scans: Path, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: write_scan(scans / f"{name}.nii.gz", seed=ord(name)) for name in "ab"}
    (tmp_path / "elsewhere").mkdir()
    assert mounts("mount", "--bind", disk.out, tmp_path / "elsewhere")
    monkeypatch.setattr("ctseg.predict.folder.CASES_IN_FLIGHT", 1)
    predictor, theirs = Interrupted(disk, at_call=0, back_after=2), []

    class Joined(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.getMessage().startswith("b: tried again"):
                theirs.append(run(scans / "b.nii.gz", ThresholdPredictor(), tmp_path / "elsewhere"))
            return predictor.filter(record)

    logger, joined = logging.getLogger("ctseg.predict.case_work"), Joined()
    logger.addFilter(joined)
    try:
        report = run(scans, predictor, disk.out)
    finally:
        logger.removeFilter(joined)
        mounts("umount", "-l", tmp_path / "elsewhere")
    assert {case.case: case.status for case in report.cases} == {"a": "ok", "b": "ok"}
    assert report.cases[1] == theirs[0].cases[0]
    for name, labels in expected.items():
        assert np.array_equal(labels_of(disk.out / f"{name}.nii.gz"), labels)
