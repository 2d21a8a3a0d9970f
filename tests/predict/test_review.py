"""Whether a folder is done, held against its input; no model is asked."""

import shutil
from pathlib import Path

import pytest

from ctseg.errors import InputError, OutputError, SetupError
from ctseg.files.cases import find_cases
from ctseg.predict.contract import contract_of
from ctseg.predict.folder import segment_cases
from ctseg.predict.model_notes import write_model_note
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import names_of_outputs
from ctseg.predict.presence import Presence
from ctseg.predict.report import Report
from ctseg.predict.review import review_folder
from tests.support.scan_files import nobody
from tests.support.threshold import ThresholdPredictor, write_scan
from tests.support.toy_models import toy_spec


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_scan(tmp_path / "in" / f"{name}.nii.gz")
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(scans: Path, out: Path) -> Report:
    cases = find_cases(scans, channels=1, own=names_of_outputs)
    return segment_cases(cases, ThresholdPredictor(), out, BatchOptions())


def test_a_folder_that_is_done_leaves_nothing(scans: Path, out: Path) -> None:
    run(scans, out)
    (out / "report.json").write_text("{")
    (out / "report.csv").unlink()
    review = review_folder(out, scans)
    assert (review.left, review.working) == ((), ())
    assert review.report == Report.model_validate_json((out / "report.json").read_bytes())
    assert [case.case for case in review.report.cases] == ["a", "b", "c"]
    assert review.report.finished
    assert (out / "report.csv").exists()


def test_what_is_not_done_is_named_with_its_reason(scans: Path, out: Path) -> None:
    (scans / "b.nii.gz").write_bytes(b"no scan")
    run(scans, out)
    write_scan(scans / "a.nii.gz", seed=9)
    (out / "c.nii.gz").unlink()
    write_scan(scans / "d.nii.gz")
    left = dict(review_folder(out, scans).left)
    assert list(left) == ["a", "b", "c", "d"]
    assert left["a"] == "its scan is not the one that was segmented"
    assert left["b"].startswith("b.nii.gz: ")
    assert left["c"] == "c.nii.gz has gone"
    assert left["d"] == "no outcome: not begun, or cut off"
    assert list(dict(review_folder(out).left)) == ["b", "c"]
    assert dict(review_folder(out, scans / "d.nii.gz").left) == {"d": left["d"]}


def test_what_a_person_corrected_is_not_left(scans: Path, out: Path) -> None:
    run(scans, out)
    (out / "a.nii.gz").write_bytes(b"corrected")
    assert [case.status for case in run(scans, out).cases] == ["kept", "ok", "ok"]
    assert review_folder(out, scans).left == ()


def test_own_label_maps_beside_the_scans_are_no_cases(scans: Path) -> None:
    for name in "abc":
        (scans / f"{name}.nii.gz").rename(scans / f"{name}_0000.nii.gz")
    run(scans, scans)
    assert review_folder(scans, scans).left == ()


def test_a_run_that_works_in_the_folder_is_told_and_the_report_is_not_finished(scans: Path, out: Path) -> None:
    run(scans, out)
    with Presence(out) as presence:
        review = review_folder(out, scans)
        assert review.working == (presence.run,)
        assert not review.report.finished
    assert review_folder(out, scans).report.finished


def test_the_number_of_channels_is_that_of_the_model_that_worked_there(tmp_path: Path, scans: Path, out: Path) -> None:
    for name in "abc":
        (scans / f"{name}.nii.gz").rename(scans / f"{name}_0001.nii.gz")  # one channel: a_0001 is the case
    out.mkdir()
    write_model_note(out, contract_of(ThresholdPredictor().spec))
    assert list(dict(review_folder(out, scans).left)) == ["a_0001", "b_0001", "c_0001"]
    assert list(dict(review_folder(out, scans, channels=2).left)) == ["a", "b", "c"]
    write_model_note(out, contract_of(toy_spec()))
    with pytest.raises(SetupError, match="models of 1 and 2 channels") as caught:
        review_folder(out, scans)
    assert caught.value.settings == ("channels",)


def test_a_folder_without_memory_or_an_input_without_scans_is_refused(scans: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"found no \.ctseg"):
        review_folder(out, scans)
    run(scans, out)
    with pytest.raises(InputError, match="expected a scan or a folder"):
        review_folder(out, tmp_path / "nowhere")
    shutil.rmtree(out / ".ctseg")
    with pytest.raises(SetupError, match=r"found no \.ctseg"):
        review_folder(out, scans)


def test_a_memory_that_this_user_may_not_read_is_told(scans: Path, out: Path) -> None:
    run(scans, out)
    with nobody(out / ".ctseg", 0o000), pytest.raises(OutputError, match="cannot be looked at: Permission denied"):
        review_folder(out)
    assert review_folder(out).left == ()


def test_cases_of_sub_folders_are_looked_at_where_that_is_asked_for(tmp_path: Path, out: Path) -> None:
    for name in ("p1", "p2"):
        (tmp_path / "in" / name).mkdir(parents=True)
        write_scan(tmp_path / "in" / name / "ct.nii.gz")
    cases = find_cases(tmp_path / "in", channels=1, recursive=True)
    segment_cases(cases[:1], ThresholdPredictor(), out, BatchOptions())
    review = review_folder(out, tmp_path / "in", recursive=True)
    assert review.left == (("p2_ct", "no outcome: not begun, or cut off"),)


def test_kept_cases_are_named_and_are_not_done_where_their_scan_is_another(scans: Path, out: Path) -> None:
    run(scans, out)
    for name in "ab":
        (out / f"{name}.nii.gz").write_bytes(b"corrected")
    write_scan(scans / "b.nii.gz", seed=9)
    run(scans, out)
    review = review_folder(out, scans)
    assert review.left == (("b", "its scan is not the one that was segmented"),)
    assert review.kept == (("a", "kept: a.nii.gz: not made by ctseg, or changed since: left alone"),)
