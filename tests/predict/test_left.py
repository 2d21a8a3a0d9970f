"""A server that goes away for good, and a run that is stopped: what is not done is left, and not failed."""

import csv
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.errors import ServerAwayError, ServerUnavailableError
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.left import read_left
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import OutcomeStore
from ctseg.predict.parts import Part
from ctseg.predict.progress import Progress
from ctseg.predict.report import Report
from ctseg.predict.review import review_folder
from tests.predict.test_ledger import SIGNALLED, folded
from tests.support.threshold import ThresholdPredictor, write_scan

AWAY = ServerAwayError("threshold: every server has been away for 5 s")


class Leaves(ThresholdPredictor):
    """A server that goes away for good before a call; those that wait for it learn of it one after the other."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self._call = call

    def predict(self, patches):
        if self.calls >= self._call:
            raise AWAY
        return super().predict(patches)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for i in range(8):
        write_scan(tmp_path / "in" / f"c{i}.nii.gz", seed=i)
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(scans: Path, out: Path, predictor: ThresholdPredictor | None = None, **options: object) -> Report:
    cases = find_cases(scans, channels=1)
    return segment_cases(cases, predictor or ThresholdPredictor(), out, BatchOptions(**options))


def calls_for_all(scans: Path, out: Path) -> int:
    predictor = ThresholdPredictor()
    run(scans, out.with_name("alone"), predictor)
    return predictor.calls


def report_in(out: Path) -> Report:
    return Report.model_validate_json((out / "report.json").read_bytes())


def names(report: Report) -> tuple[set[str], set[str]]:
    """Return the cases that ended, and those that were left."""
    return {case.case for case in report.cases}, {case.case for case in report.not_done}


def test_a_server_that_is_away_for_good_ends_the_run_and_leaves_the_rest(
    scans: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = run(scans, out, Leaves(calls_for_all(scans, out) // 2))
    ended, left = names(report)
    assert ended
    assert left
    assert ended | left == {f"c{i}" for i in range(8)}
    assert not ended & left
    assert {case.status for case in report.cases} == {"ok"}
    assert {case.reason for case in report.not_done} == {"server away"}
    assert report.went_away
    assert names(report_in(out)) == (ended, left)
    rows = {
        row["case"]: (row["status"], row["error"])
        for row in csv.DictReader((out / "report.csv").read_text().splitlines())
    }
    assert {case for case, row in rows.items() if row == ("not done", "server away")} == left
    assert {path.name.removesuffix(".nii.gz") for path in out.glob("*.nii.gz")} == ended
    assert list((out / ".ctseg" / "claims").glob("*.json")) == []
    assert caplog.text.count("ServerAwayError: ") == 1
    assert f"{len(left)} of 8 cases are not done: server away" in caplog.text
    assert dict(review_folder(out, scans).left) == dict.fromkeys(sorted(left), "not done: server away")


def test_what_was_left_is_done_by_the_next_run_and_then_left_no_more(scans: Path, out: Path) -> None:
    run(scans, out, Leaves(calls_for_all(scans, out) // 2))
    done, _ = names(report_in(out))
    report = run(scans, out, continue_prediction=True)
    assert {case.case for case in report.cases if case.status == "skipped"} == done
    assert not report.went_away
    assert report_in(out).not_done == ()
    assert folded(out) == {f"c{i}": "ok" for i in range(8)}
    assert review_folder(out, scans).left == ()
    assert not list((out / ".ctseg" / "left").iterdir())


def test_an_older_outcome_and_label_map_of_a_case_that_is_left_stay(scans: Path, out: Path) -> None:
    run(scans, out)
    before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    report = run(scans, out, Leaves(0))
    assert names(report) == (set(), {f"c{i}" for i in range(8)})
    assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == before
    assert {case.status for case in report_in(out).cases} == {"ok"}
    assert len(report_in(out).not_done) == 8


def test_a_case_that_needs_no_server_keeps_its_own_error(scans: Path, out: Path) -> None:
    (scans / "a_bad.nii.gz").write_bytes(b"no scan")
    report = run(scans, out, Leaves(0))
    assert [(case.case, case.status) for case in report.cases] == [("a_bad", "failed")]
    assert len(report.not_done) == 8


def test_a_case_whose_windows_are_all_back_still_ends_when_the_server_is_away(tmp_path: Path, out: Path) -> None:
    scans, is_writing, is_away = tmp_path / "two", threading.Event(), threading.Event()
    scans.mkdir()
    write_scan(scans / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.full((20, 18, 12), 2000, np.int16), np.diag([1.0, 2.0, 3.0, 1.0])), scans / "b.nii.gz")

    class Half(ThresholdPredictor):
        """Goes away with the brighter case, once the other has all its windows."""

        max_in_flight = 16

        def predict(self, patches):
            if patches.max() > 1000:
                assert is_writing.wait(300)
                raise AWAY
            return super().predict(patches)

    class Waits(Progress):
        """Lets the one case be written only once the other has learned that the server is away."""

        def stage_began(self, case, stage):
            if (case, stage) == ("a", "write"):
                is_writing.set()
                assert is_away.wait(300)

        def stage_ended(self, case, stage):
            if (case, stage) == ("b", "network"):
                is_away.set()

    report = segment_cases(find_cases(scans, channels=1), Half(), out, BatchOptions(), progress=Waits())
    assert names(report) == ({"a"}, {"b"})


def test_a_server_that_fails_without_being_away_for_good_fails_cases_as_before(scans: Path, out: Path) -> None:
    predictor = ThresholdPredictor()
    predictor.fails_with = ServerUnavailableError("threshold at gpu1:8001: connection refused")
    report = run(scans, out, predictor)
    assert {case.status for case in report.cases} == {"failed"}
    assert report.not_done == ()


def test_parts_that_are_left_at_once_are_all_counted(scans: Path, out: Path) -> None:
    for part_id in range(2):
        run(scans, out, Leaves(0), part=Part(part_id, 2))
    assert names(report_in(out))[1] == {f"c{i}" for i in range(8)}
    run(scans, out, part=Part(0, 2))
    assert names(report_in(out))[1] == {f"c{i}" for i in range(1, 8, 2)}


def test_what_another_run_does_meanwhile_is_not_left(scans: Path, out: Path) -> None:
    class Helped(Leaves):
        max_in_flight = 1

        def predict(self, patches):
            if not list((out / ".ctseg" / "outcomes").iterdir()):
                segment_cases(find_cases(scans, channels=1)[5:], ThresholdPredictor(), out, BatchOptions())
            return super().predict(patches)

    report = run(scans, out, Helped(0))
    ended, left = names(report)
    assert ended == {"c5", "c6", "c7"}
    assert left == {f"c{i}" for i in range(5)}
    assert names(report_in(out)) == (ended, left)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_counts_what_it_leaves(scans: Path, out: Path, number: signal.Signals) -> None:
    for i in range(8, 12):
        write_scan(scans / f"c{i}.nii.gz", seed=i)
    words = [sys.executable, "-c", SIGNALLED, str(scans), str(out), str(int(number))]
    ended = subprocess.run(words, timeout=300, check=False, capture_output=True, text=True)
    done, left = names(report_in(out))
    assert left
    assert done | left == {f"c{i}" for i in range(12)}
    assert {case.reason for case in report_in(out).not_done} == {"stopped"}
    assert not report_in(out).went_away
    assert f"{len(left)} of 12 cases are not done: stopped" in ended.stderr
    assert read_left(out, OutcomeStore(out).written()) == report_in(out).not_done
