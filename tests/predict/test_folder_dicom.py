"""A folder of DICOM series: their label maps, and which of them are done again."""

import logging
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.files.cases import find_cases
from ctseg.files.dicom.series import uid_digest
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.report import Report
from ctseg.predict.review import review_folder
from tests.support.dicom_series import SyntheticSeries, ct_series, set_tags, uid, write_series
from tests.support.threshold import ThresholdPredictor

SHAPE = (8, 16, 16)
OPTIONS = BatchOptions(mirroring=False, continue_prediction=True, output_formats=("nifti",))
GOOD, BAD = (f"study1-{uid_digest(uid(1))}_series{number}-{uid_digest(uid(1, number))}" for number in (3, 4))


def series(number: int = 3) -> SyntheticSeries:
    return ct_series(SHAPE, series=number, pixel_spacing_mm=(2.0, 1.0), slice_spacing_mm=3.0)


def run(scans: Path, out: Path) -> Report:
    predictor = ThresholdPredictor()
    return segment_cases(find_cases(scans, channels=1), predictor, out, OPTIONS)


def statuses(report: Report) -> dict[str, str]:
    return {case.case: case.status for case in report.cases}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A series that is whole, and one without its third slice."""
    write_series(tmp_path / "in", series().datasets)
    datasets = series(4).datasets
    write_series(tmp_path / "in" / "sub", [*datasets[:2], *datasets[3:]])
    return tmp_path / "in"


def test_a_series_is_segmented_and_one_that_is_refused_fails_by_its_name(scans: Path, tmp_path: Path) -> None:
    report = run(scans, tmp_path / "out")
    assert statuses(report) == {GOOD: "ok", BAD: "failed"}
    (error,) = (case.error for case in report.cases if case.error is not None)
    assert error.type == "InputError"
    assert error.message.startswith(f"case {BAD}: series 4 (")
    assert str(tmp_path) not in error.message
    image = nib.load(tmp_path / "out" / f"{GOOD}.nii.gz")
    truth = series()
    assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), truth.hu > 0)
    np.testing.assert_allclose(image.affine, truth.affine_ras, atol=1e-4)
    (known,) = next(case.inputs for case in report.cases if case.case == GOOD)
    assert known.name == f"series 3 ({uid_digest(uid(1, 3))}) of study {uid_digest(uid(1))}"


def test_a_series_is_done_until_a_slice_changes_comes_or_goes(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    run(scans, out)
    assert statuses(run(scans, out)) == {GOOD: "skipped", BAD: "failed"}
    assert dict(review_folder(out, scans).left).keys() == {BAD}
    (scans / "elsewhere").mkdir()
    for index in range(SHAPE[0]):
        (scans / f"IM{index + 1:04d}").rename(scans / "elsewhere" / f"{9 - index}.ima")
    assert statuses(run(scans, out)) == {GOOD: "skipped", BAD: "failed"}, "another name makes no other scan"

    def is_done_again() -> None:
        assert review_folder(out, scans).left[0] == (GOOD, "its scan is not the one that was segmented")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert statuses(run(scans, out)) == {GOOD: "ok", BAD: "failed"}
        assert f"{GOOD}: done again: its scan is not the one that was segmented" in caplog.text

    changed = series().datasets
    set_tags(changed[4], RescaleIntercept="-1000")
    write_series(scans / "elsewhere", [changed[4]], names=["5.ima"])
    is_done_again()
    longer = ct_series((9, *SHAPE[1:]), pixel_spacing_mm=(2.0, 1.0), slice_spacing_mm=3.0).datasets[-1]
    write_series(scans, [longer])
    is_done_again()
    (scans / "elsewhere" / "9.ima").unlink()
    is_done_again()


def test_a_series_that_cannot_be_read_any_more_fails_without_a_path(scans: Path, tmp_path: Path) -> None:
    cases = [case for case in find_cases(scans, channels=1) if case.problem is None]
    assert pickle.loads(pickle.dumps(cases)) == cases  # as it goes to a worker
    (scans / "IM0003").unlink()
    report = segment_cases(cases, ThresholdPredictor(), tmp_path / "out", OPTIONS)
    (error,) = (case.error for case in report.cases if case.error is not None)
    assert error.type == "InputError"
    assert f"study {uid_digest(uid(1))}" in error.message
    assert str(tmp_path) not in error.message
