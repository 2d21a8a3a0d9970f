"""The formats of a case: which are written, what becomes of those that cannot be, and what a run that goes on makes."""

import logging
from pathlib import Path

import pytest

from ctseg.cli.main import main as ctseg
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import CaseError, FailedFormat, MadeBy, Options, Outcome, OutcomeStore
from ctseg.predict.report import fold_report
from ctseg.predict.review import review_folder
from tests.support.dicom_series import ct_series, write_series
from tests.support.threshold import ThresholdPredictor, write_scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in" / "a.nii.gz")
    return tmp_path / "in"


def run(folder: Path, predictor: ThresholdPredictor | None = None, **options: object):
    cases = find_cases(folder, channels=1)
    return segment_cases(cases, predictor or ThresholdPredictor(), folder.parent / "out", BatchOptions(**options))


def test_a_format_that_cannot_be_written_is_told_before_the_network_and_the_others_stay(folder, caplog):
    (case,) = run(folder, output_formats=("nifti", "dicom_seg", "dicom_rtstruct")).cases
    assert case.status == "ok"
    assert [file.name for file in case.outputs] == ["a.nii.gz"]
    assert [(failed.format, failed.foreseen) for failed in case.failed_formats] == [
        ("dicom_seg", True),
        ("dicom_rtstruct", True),
    ]
    assert "no DICOM series" in case.failed_formats[0].error.message
    assert [record.message for record in caplog.records if "dicom_seg cannot be written" in record.message] != []
    assert (folder.parent / "out" / "report.csv").read_text().count("dicom_rtstruct: a scan that is no DICOM") == 1


def test_a_case_of_which_nothing_can_be_written_fails_without_the_network(folder):
    predictor = ThresholdPredictor()
    (case,) = run(folder, predictor, output_formats=("dicom_sr",)).cases
    assert (case.status, case.error.type, predictor.calls) == ("failed", "InputError", 0)
    assert case.error.message.count("no DICOM series") == 2  # the report, and the segmentation that it refers to


def test_a_name_too_long_for_one_format_stops_no_other(tmp_path):
    write_series(tmp_path / "in", ct_series((8, 16, 16), PatientID="a" * 60, StudyDescription="b" * 60,
                                            SeriesDescription="c" * 60, ProtocolName="d" * 60).datasets)  # fmt: skip
    words = ("PatientID", "StudyDescription", "SeriesDescription", "ProtocolName")
    cases = find_cases(tmp_path / "in", channels=1, case_name_from=words)
    options = BatchOptions(output_formats=("nifti", "dicom_seg", "dicom_rtstruct"), continue_prediction=True)
    for status in ("ok", "skipped"):
        (case,) = segment_cases(cases, ThresholdPredictor(), tmp_path / "out", options).cases
        assert (case.status, [Path(file.name).suffixes[-2] for file in case.outputs]) == (status, [".nii", ".seg"])
        ((failed, told),) = ((failed.format, failed.error.message) for failed in case.failed_formats)
        assert (failed, told.partition(":")[0]) == (
            "dicom_rtstruct", "its .rtstruct.dcm file would have a name of 256 bytes, and the output folder takes 255",
        )  # fmt: skip


def test_what_headers_refuse_is_not_tried_again_and_stays_a_failure(folder, caplog):
    formats = ("nifti", "dicom_seg")
    run(folder, output_formats=formats)
    caplog.clear()
    predictor = ThresholdPredictor()
    (case,) = run(folder, predictor, output_formats=formats, continue_prediction=True).cases
    assert (case.status, predictor.calls) == ("skipped", 0)
    assert [failed.format for failed in case.failed_formats] == ["dicom_seg"]
    (case,) = run(folder, predictor, continue_prediction=True).cases  # which is not asked for any more
    assert (case.status, predictor.calls, case.failed_formats) == ("skipped", 0, ())
    assert review_folder(folder.parent / "out").left == ()
    run(folder, predictor, output_formats=formats, continue_prediction=True)
    ((_, why),) = review_folder(folder.parent / "out").left
    assert why.startswith("failed: dicom_seg: a scan that is no DICOM series")


def test_report_says_which_formats_failed_and_its_exit_status_does(tmp_path, capsys):
    store = OutcomeStore(tmp_path)
    store.folder.mkdir(parents=True)
    made_by = MadeBy(
        run="r", model="m", model_version="1", spec_digest="a" * 64, options=Options(tile_step_size=0.5, mirroring=True)
    )
    failed = FailedFormat(format="dicom_rtstruct", error=CaseError(type="InputError", message="too large"))
    store.write("a", Outcome(case="a", status="ok", made_by=made_by, failed_formats=(failed,)))
    fold_report(tmp_path)
    assert review_folder(tmp_path).left == (("a", "failed: dicom_rtstruct: too large"),)
    assert ctseg(["report", "-o", str(tmp_path)]) == 1
    assert "1 done, 0 failed, 1 without dicom_rtstruct" in capsys.readouterr().out


def test_formats_and_types_that_do_not_exist_are_the_callers_mistake():
    with pytest.raises(ValueError, match="expected some of the formats"):
        BatchOptions(output_formats=("dicom_seg", "tiff"))
    with pytest.raises(ValueError, match="expected some of the formats"):
        BatchOptions(output_formats=())
    with pytest.raises(ValueError, match="binary or labelmap"):
        BatchOptions(segmentation_type="BINARY")


def test_a_folder_without_dicom_says_nothing_of_codes(folder, caplog):
    caplog.set_level(logging.INFO)
    assert run(folder, codes_required=True).cases[0].status == "ok"
    assert "codes" not in caplog.text
