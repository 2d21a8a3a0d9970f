"""Cases that were in flight when a run was killed come last and alone, so that the good ones behind them are done."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.predict.claims import Claims
from ctseg.predict.outcomes import OutcomeStore
from ctseg.predict.presence import OtherRuns, Presence
from ctseg.predict.report import Report
from tests.support.label_maps import labels_of
from tests.support.threshold import write_scan

RUN = r"""
import logging, os, signal, sys
from pathlib import Path
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.progress import Progress
from tests.support.threshold import ThresholdPredictor

class Deadly(ThresholdPredictor):
    def predict(self, patches):
        if patches.min() > 3000:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(patches)

class Told(Progress):
    begun = set()
    def stage_began(self, case, stage):
        if case not in self.begun:
            self.begun.add(case)
            os.write(1, f"begins {case}\n".encode())
    def case_done(self, outcome):
        super().case_done(outcome)
        os.write(1, f"ends {outcome.case} {outcome.status}\n".encode())

logging.basicConfig(format="%(message)s")
options = BatchOptions(continue_prediction=sys.argv[3] == "True")
segment_cases(find_cases(Path(sys.argv[1]), channels=1), Deadly(), Path(sys.argv[2]), options, progress=Told())
"""


TOLD = ": in flight when a run was killed, or fell silent: done last, one at a time"


def words(scans: Path, out: Path, again: bool) -> list[str]:
    return [sys.executable, "-c", RUN, str(scans), str(out), str(again)]


def run(scans: Path, out: Path, again: bool) -> tuple[int, list[str], str]:
    """Run in a process of its own; return its status, what began and ended in what order, and its log."""
    ended = subprocess.run(words(scans, out, again), timeout=120, check=False, capture_output=True, text=True)
    return ended.returncode, ended.stdout.splitlines(), ended.stderr


def write_deadly(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((20, 18, 12), 3100, np.int16), np.diag([1.0, 2.0, 3.0, 1.0])), path)


def done(out: Path) -> set[str]:
    return {outcome.case for _, outcome in OutcomeStore(out).all() if outcome is not None and outcome.status == "ok"}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize("again", [True, False])
def test_good_cases_are_done_whatever_a_deadly_one_among_them_does(scans: Path, tmp_path: Path, again: bool) -> None:
    out = tmp_path / "out"
    good = {f"c{i}": write_scan(scans / f"c{i}.nii.gz", seed=i) for i in (0, 1, 3, 4, 5, 6, 7, 8)}
    write_deadly(scans / "c2.nii.gz")
    status, _, _ = run(scans, out, again)
    assert status == -signal.SIGKILL
    for _ in range(3):  # at first two others were in flight with it; from the second kill on it is alone
        status, events, log = run(scans, out, again)
        assert status == -signal.SIGKILL
        told = next(line for line in log.splitlines() if line.endswith(TOLD))
        suspects = told.removesuffix(TOLD).split(", ")
        assert "c2" in suspects
        for before, event in zip(["", *events], events, strict=False):
            if event.removeprefix("begins ") in suspects:
                assert before == "" or before.startswith("ends"), "a suspect is alone"
        assert events[-1] == "begins c2"
    assert done(out) == set(good)
    write_scan(scans / "c2.nii.gz", seed=2)
    status, events, _ = run(scans, out, again)
    assert status == 0
    assert events[-1] == "ends c2 ok"
    report = Report.model_validate_json((out / "report.json").read_bytes())
    assert report.finished
    assert len(report.cases) == 9
    for name, labels in good.items():
        assert np.array_equal(labels_of(out / f"{name}.nii.gz"), labels)
    assert list((out / ".ctseg" / "claims").iterdir()) == []
    _, events, log = run(scans, out, again=False)
    assert len([event for event in events if event.startswith("begins")]) == 9, "nobody is suspected any more"
    assert TOLD not in log


def test_two_deadly_cases_do_not_hide_behind_each_other(scans: Path, tmp_path: Path) -> None:
    """Whichever killed the most runs comes last of all, so each suspect has its turn."""
    out = tmp_path / "out"
    good = [f"c{i}" for i in range(2, 8)]
    for i, name in enumerate(good):
        write_scan(scans / f"{name}.nii.gz", seed=i)
    for name in ("c0", "c1"):
        write_deadly(scans / f"{name}.nii.gz")
    for _ in range(5):  # the first may fall before the second is begun, which then falls among good ones
        assert run(scans, out, again=True)[0] == -signal.SIGKILL
    assert done(out) == set(good)
    shutil.copy(scans / "c2.nii.gz", scans / "c1.nii.gz")  # one of them is mended
    assert run(scans, out, again=True)[0] == -signal.SIGKILL
    assert run(scans, out, again=True)[0] == -signal.SIGKILL
    assert done(out) == {*good, "c1"}


def test_two_joined_runs_with_a_deadly_case_leave_only_that(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = [f"c{i}" for i in range(1, 10)]
    for i, name in enumerate(good):
        write_scan(scans / f"{name}.nii.gz", seed=i)
    write_deadly(scans / "c0.nii.gz")
    for _ in range(2):
        both = [
            subprocess.Popen(words(scans, out, True), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(2)
        ]
        assert [process.wait(120) for process in both] == [-signal.SIGKILL] * 2
    run(scans, out, again=True)
    assert done(out) == set(good)


def test_a_case_that_a_run_gave_back_is_a_suspect_only_if_it_was_one_before(tmp_path: Path) -> None:
    with Presence(tmp_path) as ended:
        claims = Claims(tmp_path, ended, OtherRuns(tmp_path))
        for case in ("plain", "putting"):
            claim = claims.take(case)
            assert claim is not None
            if case == "putting":
                with pytest.raises(OSError, match="away"), claims.putting(claim, {"a.nii.gz": "1"}):
                    raise OSError("away")
            claims.drop(claim)
        lost = claims.take("killed")  # as by a kill: nobody gives it back
        assert lost is not None
    with Presence(tmp_path) as second:
        claims = Claims(tmp_path, second, OtherRuns(tmp_path))
        assert [claims.suspicion(case) for case in ("plain", "putting", "killed")] == [0, 0, 1]
        assert claims.take("killed") is None
        taken = claims.take("killed", suspects=True)
        assert taken is not None
        assert claims.suspicion("killed") == 0, "it is worked on"
        claims.drop(taken)  # by Ctrl-C
        putting = claims.take("putting")
        assert putting is not None
        assert putting.left == {"a.nii.gz": "1"}
    with Presence(tmp_path) as third:
        claims = Claims(tmp_path, third, OtherRuns(tmp_path))
        assert claims.suspicion("killed") == 1
        assert claims.suspicion("putting") == 1, "its run was gone without a word"
