"""What an output folder remembers: done cases, people's files, kills between two renames, two runs at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from ctseg.files.cases import find_cases
from ctseg.predict.claims import Claim, Claims
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import OutcomeStore, names_of_outputs
from ctseg.predict.report import Report
from tests.support.label_maps import labels_of
from tests.support.threshold import ThresholdPredictor, write_scan


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(scans: Path, out: Path, predictor: ThresholdPredictor | None = None, **options: object) -> dict[str, str]:
    """Segment a folder; return each case's status."""
    cases = find_cases(scans, channels=1, own=names_of_outputs)
    report = segment_cases(cases, predictor or ThresholdPredictor(), out, BatchOptions(**options))
    return {case.case: case.status for case in report.cases}


def folded(out: Path) -> dict[str, str]:
    report = Report.model_validate_json((out / "report.json").read_bytes())
    assert report.finished
    return {case.case: case.status for case in report.cases}


def test_outcomes_of_cases_that_a_run_does_not_touch_stay(scans: Path, out: Path) -> None:
    for name in "ab":
        (scans / name).mkdir()
        write_scan(scans / name / f"{name}.nii.gz")
    (scans / "b" / "bad.nii.gz").write_bytes(b"no scan")
    run(scans / "a", out)
    run(scans / "b", out)
    assert folded(out) == {"a": "ok", "b": "ok", "bad": "failed"}
    assert run(scans / "a", out, continue_prediction=True) == {"a": "skipped"}
    assert folded(out) == {"a": "ok", "b": "ok", "bad": "failed"}


def test_another_scan_under_the_same_name_is_segmented(
    scans: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(scans / "a.nii.gz", seed=1)
    run(scans, out)
    times = (scans / "a.nii.gz").stat()
    expected = write_scan(scans / "a.nii.gz", seed=2)
    os.utime(scans / "a.nii.gz", ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times does
    assert run(scans, out, continue_prediction=True) == {"a": "ok"}
    assert np.array_equal(labels_of(out / "a.nii.gz"), expected)
    assert "a: done again: its scan is not the one that was segmented" in caplog.text


@pytest.mark.parametrize("header", ["a.mhd", "a.nhdr"])
def test_another_file_of_voxels_beside_the_same_header_is_segmented(scans: Path, out: Path, header: str) -> None:
    def write(seed: int) -> np.ndarray:
        write_scan(scans / "twin.nii", seed=seed)
        image = sitk.ReadImage(str(scans / "twin.nii"))
        (scans / "twin.nii").unlink()
        sitk.WriteImage(image, str(scans / header))
        return sitk.GetArrayFromImage(image) > 0

    write(1)
    run(scans, out)
    before = (scans / header).read_bytes()
    expected = write(2)
    assert (scans / header).read_bytes() == before
    assert run(scans, out, continue_prediction=True) == {"a": "ok"}
    assert np.array_equal(labels_of(out / "a.nii.gz").T, expected)
    assert run(scans, out, continue_prediction=True) == {"a": "skipped"}
    assert [file.name for file in OutcomeStore(out).read("a").inputs] == [header, "a.raw"]
    (scans / "a.raw").unlink()
    assert run(scans, out, continue_prediction=True) == {"a": "failed"}


def test_a_scan_that_has_gone_fails_by_name(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz")
    cases = find_cases(scans, channels=1)
    (scans / "a.nii.gz").unlink()
    (case,) = segment_cases(cases, ThresholdPredictor(), out, BatchOptions()).cases
    assert case.error.type == "InputError"
    assert "a.nii.gz: cannot be read: No such file" in case.error.message


def test_the_same_bytes_with_other_times_are_not_segmented_again(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out)
    shutil.copy(scans / "a.nii.gz", scans / "copy")
    (scans / "copy").replace(scans / "a.nii.gz")
    os.utime(scans / "a.nii.gz", (1, 1))
    assert run(scans, out, continue_prediction=True) == {"a": "skipped"}


def test_a_case_that_fails_leaves_no_label_map_of_an_earlier_run(
    scans: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out, save_probabilities=True)
    (scans / "a.nii.gz").write_bytes(b"no scan")
    assert run(scans, out, continue_prediction=True) == {"a": "failed"}
    assert not (out / "a.nii.gz").exists()
    assert not (out / "a.npz").exists()
    assert "a: removed a.nii.gz, a.npz, which an earlier run had made" in caplog.text


def test_probabilities_of_an_earlier_run_do_not_stay_beside_new_labels(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz", seed=1)
    run(scans, out, save_probabilities=True)
    write_scan(scans / "a.nii.gz", seed=2)
    assert run(scans, out) == {"a": "ok"}
    assert not (out / "a.npz").exists()


def test_probabilities_that_were_damaged_are_nobodys_and_kept(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out, save_probabilities=True)
    (out / "a.npz").write_bytes(b"another program's")
    assert run(scans, out, continue_prediction=True, save_probabilities=True) == {"a": "kept"}
    assert (out / "a.npz").read_bytes() == b"another program's"
    assert run(scans, out, continue_prediction=True, save_probabilities=True, overwrite=True) == {"a": "ok"}
    assert np.load(out / "a.npz")["probabilities"].shape == (2, 12, 18, 20)


@pytest.mark.parametrize("again", [True, False])
def test_a_label_map_that_a_person_corrected_is_kept(
    scans: Path, out: Path, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out)
    corrected = labels_of(out / "a.nii.gz").copy()
    corrected[0, 0, 0] ^= 1
    nib.save(nib.Nifti1Image(corrected, nib.load(out / "a.nii.gz").affine), out / "a.nii.gz")
    predictor = ThresholdPredictor()
    for _ in range(2):
        assert run(scans, out, predictor, continue_prediction=again) == {"a": "kept"}
        assert np.array_equal(labels_of(out / "a.nii.gz"), corrected)
    assert predictor.calls == 0
    assert "a: kept: a.nii.gz: not made by ctseg, or changed since: left alone" in caplog.text
    assert folded(out) == {"a": "kept"}
    assert run(scans, out, continue_prediction=again, overwrite=True) == {"a": "ok"}


def test_a_label_map_that_is_corrected_while_its_case_runs_is_kept(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out)

    class Corrected(ThresholdPredictor):
        def predict(self, patches):
            (out / "a.nii.gz").write_bytes(b"corrected")
            return super().predict(patches)

    assert run(scans, out, Corrected()) == {"a": "kept"}
    assert (out / "a.nii.gz").read_bytes() == b"corrected"


def test_label_maps_of_an_older_ctseg_are_its_own_and_done_again(scans: Path, out: Path) -> None:
    expected = write_scan(scans / "a.nii.gz")
    run(scans, out)
    entry = json.loads((out / "report.json").read_text())["cases"][0]["outputs"][0]
    shutil.rmtree(out / ".ctseg")
    old = {"schema_version": 1, "cases": [{"case": "a", "output": entry["name"], "output_sha256": entry["sha256"]}]}
    (out / "report.json").write_text(json.dumps(old))
    assert run(scans, out, continue_prediction=True) == {"a": "ok"}
    assert np.array_equal(labels_of(out / "a.nii.gz"), expected)


def test_a_folder_without_memory_counts_as_somebody_elses(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out)
    shutil.rmtree(out / ".ctseg")
    (out / "report.json").unlink()
    assert run(scans, out) == {"a": "kept"}


def test_a_name_that_is_no_utf8_is_remembered(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz")
    name = os.fsdecode(b"f\xe4lle.nii.gz")
    (scans / "a.nii.gz").rename(scans / name)
    assert run(scans, out) == {r"f\xe4lle": "ok"}
    assert (out / name).exists()
    assert run(scans, out, continue_prediction=True) == {r"f\xe4lle": "skipped"}
    assert folded(out) == {r"f\xe4lle": "ok"}


def test_a_scan_that_is_written_to_while_it_is_read_fails_by_name(
    scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctseg.predict import staged_case

    write_scan(scans / "a.nii.gz")
    real = staged_case.read_volume

    def read_and_write(channels, reader):
        volume = real(channels, reader)
        write_scan(scans / "a.nii.gz", seed=9)
        return volume

    monkeypatch.setattr(staged_case, "read_volume", read_and_write)
    assert run(scans, out) == {"a": "failed"}
    message = Report.model_validate_json((out / "report.json").read_bytes()).cases[0].error.message
    assert "was written to while it was read" in message


def test_two_runs_at_once_do_each_case_once(scans: Path, out: Path) -> None:
    expected = {f"c{i}": write_scan(scans / f"c{i}.nii.gz", seed=i) for i in range(8)}
    predictors = [ThresholdPredictor(), ThresholdPredictor()]
    statuses: list[dict[str, str]] = []
    both = threading.Barrier(2)

    def one(predictor: ThresholdPredictor) -> None:
        both.wait(30)
        statuses.append(run(scans, out, predictor))

    threads = [threading.Thread(target=one, args=(predictor,)) for predictor in predictors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [dict.fromkeys(expected, "ok")] * 2
    runs = [case.made_by.run for case in Report.model_validate_json((out / "report.json").read_bytes()).cases]
    assert len(runs) == 8
    alone = ThresholdPredictor()
    run(scans, out.with_name("alone"), alone)
    assert sum(predictor.calls for predictor in predictors) == alone.calls
    for name, labels in expected.items():
        assert np.array_equal(labels_of(out / f"{name}.nii.gz"), labels)


@pytest.mark.parametrize("other", ["scan", "model"])
def test_what_another_run_did_meanwhile_with_another_scan_or_model_is_not_taken_for_this_ones(
    scans: Path,
    out: Path,
    tmp_path: Path,
    other: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ctseg.predict.folder.CASES_IN_FLIGHT", 1)
    expected = {name: write_scan(scans / f"{name}.nii.gz", seed=ord(name)) for name in "ab"}
    (tmp_path / "theirs").mkdir()
    write_scan(tmp_path / "theirs" / "b.nii.gz", seed=9 if other == "scan" else ord("b"))
    theirs = ThresholdPredictor(**({"network_sha256": "0" * 64} if other == "model" else {}))

    class Joined(ThresholdPredictor):
        def predict(self, patches):
            if self.calls == 0:
                run(tmp_path / "theirs", out, theirs)
            return super().predict(patches)

    ours = Joined()
    assert run(scans, out, ours) == {"a": "ok", "b": "ok"}
    assert "b: done again after another run did it: " in caplog.text
    assert OutcomeStore(out).read("b").made_by.spec_digest == ours.spec.digest
    for name, labels in expected.items():
        assert np.array_equal(labels_of(out / f"{name}.nii.gz"), labels)


def test_what_is_ctsegs_beside_a_corrected_label_map_stays_its_own(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz", seed=1)
    run(scans, out, save_probabilities=True)
    (out / "a.nii.gz").write_bytes(b"corrected")
    assert run(scans, out) == {"a": "kept"}
    (out / "a.nii.gz").unlink()
    write_scan(scans / "a.nii.gz", seed=2)
    assert run(scans, out) == {"a": "ok"}
    assert not (out / "a.npz").exists(), "of the earlier scan"


def test_a_corrected_label_map_among_the_scans_never_becomes_a_scan(scans: Path) -> None:
    write_scan(scans / "a_0000.nii.gz")
    run(scans, scans)
    (scans / "a.nii.gz").write_bytes(b"corrected")
    for _ in range(3):
        assert run(scans, scans) == {"a": "kept"}
    assert (scans / "a.nii.gz").read_bytes() == b"corrected"


def test_a_folder_of_scans_takes_its_own_label_maps_for_no_scans(scans: Path) -> None:
    expected = write_scan(scans / "a_0000.nii.gz")
    for again in (False, True, False):
        assert run(scans, scans, continue_prediction=again) == {"a": "skipped" if again else "ok"}
    assert np.array_equal(labels_of(scans / "a.nii.gz"), expected)


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.files.signals import signals_as_exit
from tests.support.threshold import ThresholdPredictor

class Signalled(ThresholdPredictor):
    has_sent = False

    def predict(self, patches):
        if self.calls >= 40 and not self.has_sent:
            self.has_sent = True
            os.kill(os.getpid(), int(sys.argv[3]))
        return super().predict(patches)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup or a shell's background job runs the tests
signal.signal(signal.SIGINT, signal.default_int_handler)
with signals_as_exit():
    cases = find_cases(Path(sys.argv[1]), channels=1)
    segment_cases(cases, Signalled(), Path(sys.argv[2]), BatchOptions(save_probabilities=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_told_to_end_leaves_whole_files_only(scans: Path, out: Path, number: signal.Signals) -> None:
    expected = {f"c{i}": write_scan(scans / f"c{i}.nii.gz", seed=i) for i in range(12)}
    words = [sys.executable, "-c", SIGNALLED, str(scans), str(out), str(int(number))]
    ended = subprocess.run(words, timeout=300, check=False, capture_output=True, text=True)
    assert ended.returncode == (-number if number == signal.SIGINT else 128 + number), ended.stderr
    done = folded(out)
    assert 0 < len(done) < 12
    assert set(done.values()) == {"ok"}
    files = {f"{case}{ending}" for case in done for ending in (".nii.gz", ".npz")}
    assert {path.name for path in out.iterdir()} == {*files, ".ctseg", "report.json", "report.csv"}
    assert list((out / ".ctseg" / "runs").iterdir()) == []
    assert list((out / ".ctseg" / "claims").iterdir()) == []
    again = run(scans, out, continue_prediction=True, save_probabilities=True)
    assert again == {case: "skipped" if case in done else "ok" for case in expected}


KILLED = """
import os, signal, sys
from pathlib import Path
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from tests.support.threshold import ThresholdPredictor

scans, out, at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
renamed = Path.replace

def replace(path, target):
    if at in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    return renamed(path, target)

Path.replace = replace
segment_cases(find_cases(scans, channels=1), ThresholdPredictor(), out, BatchOptions(save_probabilities=True))
"""


@pytest.mark.parametrize("at", ["out/a.nii.gz", "out/a.npz", "claims/a-", "outcomes/a-"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_kill_between_two_renames_is_told_from_a_persons_edit(scans: Path, out: Path, at: str, earlier: bool) -> None:
    write_scan(scans / "a.nii.gz", seed=1)
    if earlier:
        run(scans, out, save_probabilities=True)
    expected = write_scan(scans / "a.nii.gz", seed=2)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(scans), str(out), at], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run(scans, out, continue_prediction=True, save_probabilities=True) == {"a": "ok"}
    assert np.array_equal(labels_of(out / "a.nii.gz"), expected)
    assert {path.name for path in out.iterdir()} == {".ctseg", "a.nii.gz", "a.npz", "report.json", "report.csv"}
    assert list((out / ".ctseg" / "runs").iterdir()) == []
    assert list((out / ".ctseg" / "claims").glob("*.json")) == []


def test_an_outcome_that_was_damaged_is_as_none(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out)
    (outcome,) = OutcomeStore(out).folder.iterdir()
    outcome.write_text("{")
    assert run(scans, out, continue_prediction=True) == {"a": "kept"}  # nothing says any more that it is ctseg's


def test_a_replaced_scan_beside_a_corrected_label_map_is_told_as_long_as_it_is_so(scans: Path, out: Path) -> None:
    write_scan(scans / "a.nii.gz", seed=1)
    run(scans, out)
    was_segmented = OutcomeStore(out).read("a").inputs
    (out / "a.nii.gz").write_bytes(b"corrected")
    another = ", though the scan of this name is not the one that was segmented"
    for scan, suffix in [(1, ""), (2, another), (2, another), (1, "")]:
        write_scan(scans / "a.nii.gz", seed=scan)
        for options in ({}, {"continue_prediction": True}):
            assert run(scans, out, **options) == {"a": "kept"}
            outcome = OutcomeStore(out).read("a")
            assert outcome.warnings == (f"a.nii.gz: not made by ctseg, or changed since: left alone{suffix}",)
            assert outcome.inputs == was_segmented
    assert (out / "a.nii.gz").read_bytes() == b"corrected"


def test_why_a_case_is_done_again_is_told_once(
    scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(scans / "a.nii.gz", seed=1)
    run(scans, out)
    write_scan(scans / "a.nii.gz", seed=2)
    looks: list[str] = []

    def take(claims: Claims, case: str, **turn: bool) -> Claim | None:  # another run has the case at the first looks
        looks.append(case)
        return real(claims, case, **turn) if len(looks) > 2 else None

    real = Claims.take
    monkeypatch.setattr(Claims, "take", take)
    monkeypatch.setattr("ctseg.predict.folder._POLL_S", 0.01)
    assert run(scans, out, continue_prediction=True) == {"a": "ok"}
    assert caplog.text.count("a: done again: its scan is not the one that was segmented") == 1


@pytest.mark.parametrize("what", ["text", "folder", "pipe"])
def test_an_outcome_that_cannot_be_used_is_told_and_its_label_map_is_kept(
    what: str, scans: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(scans / "a.nii.gz")
    run(scans, out)
    (outcome,) = (out / ".ctseg" / "outcomes").iterdir()
    outcome.unlink()
    {"text": lambda: outcome.write_text("{"), "folder": outcome.mkdir, "pipe": lambda: os.mkfifo(outcome)}[what]()
    status = run(scans, out, continue_prediction=True)
    assert caplog.text.count(f"{outcome}: cannot be used: nothing is known of case a") == 1
    assert status == ({} if what == "folder" else {"a": "kept"})
    assert (out / "a.nii.gz").exists()
