"""Which series of an input are cases, what these are called, and what is told of the rest."""

import logging
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import RTStructureSetStorage

from ctseg.errors import InputError, SetupError
from ctseg.files.cases import Case, find_cases
from ctseg.files.dicom.choosing import SeriesRules, slices_from_text
from ctseg.files.dicom.names import case_name, keywords_in
from ctseg.files.dicom.series import CtSeries, uid_digest
from ctseg.files.identity import known, stamp_of
from ctseg.files.scans import find_dicom
from tests.support.dicom_series import ct_series, other_object, set_tags, uid, write_series
from tests.support.scan_files import nobody

SHAPE = (4, 6, 5)
NAME = "Secret^Person"
SERIES = CtSeries(
    study_uid="1.2.3", series_uid="1.2.3.4", sop_class_uid="1.2.840.10008.5.1.4.1.1.2", study_id="", series_number=3,
    description="Thorax 1.0 B30f", kernel="B30f\\1", frame_of_reference_uid="", slices=(), rows=6, columns=5,
    orientation_lps=(1, 0, 0, 0, 1, 0), pixel_spacing_mm=(1, 1), step_lps_mm=(0, 0, 1), stored_dtype="int16",
)  # fmt: skip


def write(folder: Path, *, study: int = 1, series: int = 3, shape: tuple[int, int, int] = SHAPE, **tags: object) -> str:
    """Write a series, and return the name of its case."""
    datasets = ct_series(shape, study=study, series=series, patient_name=NAME, **tags).datasets  # type: ignore[arg-type]
    write_series(folder, datasets, names=[f"{NAME} {series} {index}" for index in range(shape[0])])
    return default_name(study, series)


def default_name(study: int, series: int) -> str:
    return f"study{study}-{uid_digest(uid(study))}_series{series}-{uid_digest(uid(study, series))}"


def write_nifti(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), path)


def cases_in(path: Path, **options: object) -> dict[str, Case]:
    return {case.name: case for case in find_cases(path, **{"channels": 1, **options})}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("study_id", "number", "told"),
    [
        ("7", 3, "study7-{}_series3-{}"), ("", None, "study-{}_series-{}"), ("20010203", 3, "study-{}_series3-{}"),
        ("Doe", -2, "study-{}_series-2-{}"), ("../4", 1, "study-{}_series1-{}"),
    ],
)  # fmt: skip
def test_names_hold_numbers_and_digests_alone(study_id: str, number: int | None, told: str) -> None:
    series = replace(SERIES, study_id=study_id, series_number=number)
    assert case_name(series, (), Path()) == told.format(uid_digest("1.2.3"), uid_digest("1.2.3.4"))


@pytest.mark.parametrize(
    ("words", "tags", "told"),
    [
        (("PatientID",), {"PatientID": "0042"}, "0042"),
        (("PatientName", "SeriesNumber"), {"PatientName": "Müller^Anna=山田", "SeriesNumber": "3"},
         "Müller_Anna_山田_3"),
        (("PatientID", "StudyDate"), {"PatientID": " ../../etc\n\x1b[2J "}, "etc_2J_noStudyDate"),
        (("PatientID",), {"PatientID": "../../con"}, "case_con"),
        (("PatientID",), {"PatientID": "AUX.1"}, "case_AUX.1"), (("PatientID",), {"PatientID": "e\u0301"}, "\xe9"),
        (("SeriesDescription",), {"SeriesDescription": "x" * 200}, "x" * 64),
        (("SeriesDescription",), {"SeriesDescription": "\udcff.."}, "noSeriesDescription"),
    ],
)  # fmt: skip
def test_names_that_are_asked_for_are_fit_for_files(words: tuple[str, ...], tags: dict[str, str], told: str) -> None:
    assert case_name(replace(SERIES, tags=tuple(tags.items())), words, Path()) == told


@pytest.mark.parametrize("word", ["Patient", "PixelData", "ReferencedStudySequence", "patientid", ""])
def test_words_of_which_no_name_can_be_made_are_refused(word: str) -> None:
    with pytest.raises(SetupError, match=f"{word}: expected DICOM keywords") as caught:
        keywords_in(["folder", "PatientID", word])
    assert caught.value.settings == ("case_name_from",)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (SeriesRules(), None), (SeriesRules(("thorax 1.0*",)), None), (SeriesRules(("Abdomen*", "*B30F")), None),
        (SeriesRules(("Thorax",)), "description"), (SeriesRules(kernels=("B3*",)), None),
        (SeriesRules(kernels=("B30f",)), None), (SeriesRules(kernels=("B7*",)), "kernel"),
        (SeriesRules(("Abdomen",), ("B7*",)), "description"),
    ],
)  # fmt: skip
def test_rules_are_patterns(rules: SeriesRules, told: str | None) -> None:
    assert rules.against(SERIES) == told


def test_brackets_in_a_pattern_are_brackets() -> None:
    series = replace(SERIES, description="Thorax [1.0] B30f")
    assert SeriesRules(("thorax [1.0]*",)).against(series) is None
    assert SeriesRules(("Thorax [[]1.0]*", "Thorax [1.0[]*", "[T]horax*")).against(series) == "description"


def test_numbers_of_slices_are_ranges() -> None:
    found = {text: slices_from_text(text) for text in ("50-", "50-400", "-400", " 120 ")}
    assert list(found.values()) == [(50, None), (50, 400), (1, 400), (120, 120)]
    for text in ("", "-", "a", "5-4-3", "1.5", "٣x"):
        with pytest.raises(ValueError, match="expected a number of slices"):
            slices_from_text(text)
    with pytest.raises(ValueError, match="expected a number of slices"):
        SeriesRules(least_slices=9, most_slices=8)


def test_every_series_of_a_tree_is_a_case_and_the_rest_is_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / NAME
    names = {
        write(root / NAME / "a", study=1, series=3),
        write(root / NAME / "a", study=1, series=4),
        write(root / "b" / "c", study=2, series=3),
    }
    write(root / NAME / "a", study=1, series=1, shape=(1, 6, 5), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    like = ct_series(SHAPE).datasets[0]
    write_series(root / "b", [other_object(like, RTStructureSetStorage, "RTSTRUCT")], names=["x.dcm"])
    (root / "b" / "notes.txt").write_text(NAME)
    (root / ".hidden").mkdir()
    write(root / ".hidden", study=9)
    (root / "b" / "up").symlink_to(root)
    with caplog.at_level(logging.DEBUG):
        cases = cases_in(root)
    assert set(cases) == names
    assert all(case.problem is None and len(case.paths) == SHAPE[0] for case in cases.values())
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        "the input: passed over 1 × RTSTRUCT, 1 × localizer; 1 file ending in .txt, "
        "1 link to a folder that has been looked into"
    )


def test_many_files_on_a_slow_share_are_looked_at_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {write(tmp_path, series=number) for number in range(20)}
    monkeypatch.setattr("ctseg.files.scans._SLOW_S", 0.0)
    cases = cases_in(tmp_path)
    assert set(cases) == names
    assert all(case.problem is None and len(case.paths) == SHAPE[0] for case in cases.values())


def test_series_that_the_rules_leave_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = write(tmp_path, series=3)
    write(tmp_path, series=4, SeriesDescription="Abdomen")
    write(tmp_path, series=5, shape=(2, 6, 5))
    rules = SeriesRules(("Thorax*",), least_slices=3)
    with caplog.at_level(logging.INFO):
        assert list(cases_in(tmp_path, series=rules)) == [kept]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "the input: 2 series not chosen (1 by description, 1 by slices)")
    ]
    with pytest.raises(InputError, match=r"fits the rules, found 3 series not chosen \(3 by kernel\)") as caught:
        cases_in(tmp_path, series=SeriesRules(kernels=("Q*",)))
    assert "series" in caught.value.settings
    assert [item.not_chosen for item in find_dicom(tmp_path, series=rules).series] == [None, "description", "slices"]


def test_dicom_and_other_formats_are_cases_of_one_input(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz")
    write_nifti(tmp_path / "sub" / "late.nii.gz")
    here, below = write(tmp_path, series=3), write(tmp_path / "sub", series=4)
    assert set(cases_in(tmp_path)) == {"scan", here}
    assert set(cases_in(tmp_path, recursive=True)) == {"scan", here, "sub_late", below}
    (tmp_path / "scan.nii.gz").unlink()
    assert set(cases_in(tmp_path)) == {here, below}, "DICOM at any depth, others only where that is asked for"


def test_hidden_files_are_no_slices(tmp_path: Path) -> None:
    write(tmp_path)
    write_series(tmp_path, ct_series(SHAPE, study=2).datasets[:1], names=[".hidden"])
    assert list(cases_in(tmp_path)) == [default_name(1, 3)]


def test_a_series_that_cannot_be_read_is_a_failed_case_beside_good_ones(tmp_path: Path) -> None:
    good, bad = write(tmp_path, series=3), default_name(1, 4)
    datasets = ct_series((6, 6, 5), series=4, patient_name=NAME).datasets
    del datasets[2]
    write_series(tmp_path, datasets, names=[f"{NAME}.{index}" for index in range(5)])
    cases = cases_in(tmp_path)
    assert set(cases) == {good, bad}
    assert cases[good].problem is None
    problem = cases[bad].problem
    assert problem is not None
    assert problem.startswith(f"case {bad}: series 4 (")
    assert "Secret" not in problem
    assert str(tmp_path) not in problem


def test_a_file_stands_for_its_series_in_its_folder(tmp_path: Path) -> None:
    wanted = write(tmp_path, series=3)
    write(tmp_path, series=4)
    write(tmp_path / "sub", series=3, shape=(5, 6, 5))
    write_nifti(tmp_path / "scan.nii.gz")
    (case,) = cases_in(tmp_path / f"{NAME} 3 2").values()
    assert (case.name, len(case.paths)) == (wanted, SHAPE[0])
    like = ct_series(SHAPE).datasets[0]
    (path,) = write_series(tmp_path, [other_object(like, RTStructureSetStorage, "RTSTRUCT")], names=["x"])
    with pytest.raises(InputError, match="expected a DICOM file of a CT series, found 1 × RTSTRUCT") as caught:
        cases_in(path)
    assert str(tmp_path) not in str(caught.value)


def test_two_series_of_one_name_are_both_refused_without_a_path(tmp_path: Path) -> None:
    write(tmp_path / "a", series=3)
    write(tmp_path / "b", series=4)
    write(tmp_path / "c", study=2, series=4, PatientID="77")
    cases = cases_in(tmp_path, case_name_from=("PatientID",))
    assert set(cases) == {"0042", "77"}
    problem = cases["0042"].problem
    assert problem is not None
    assert re.search(r"found series 3 \(\w+\) of study \w+, series 4 \(\w+\) of study \w+, which share it", problem)
    assert set(cases_in(tmp_path, case_name_from=("folder", "StudyID", "SeriesNumber"))) == {
        "a_1_3", "b_1_4", "c_2_4",
    }  # fmt: skip
    assert set(cases_in(tmp_path / "a", case_name_from=("folder",))) == {"a"}


def test_names_that_only_capitals_tell_apart_are_one(tmp_path: Path) -> None:
    write(tmp_path / "a", PatientID="Ab")
    write(tmp_path / "b", study=2, PatientID="aB")
    write(tmp_path / "c", study=3, PatientID="ac")
    (shared, own) = cases_in(tmp_path, case_name_from=("PatientID",)).values()
    assert "which share it" in (shared.problem or "")
    assert (own.name, own.problem) == ("ac", None)


def test_a_model_of_several_channels_takes_no_dicom_series(tmp_path: Path) -> None:
    name = write(tmp_path)
    problem = cases_in(tmp_path, channels=2)[name].problem
    assert problem is not None
    assert "expected 2 channels, found one DICOM series" in problem


def test_a_folder_that_cannot_be_read_fails_without_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = write(tmp_path / "p1")
    closed = os.fsdecode(os.fsencode(NAME) + b"\xfc")
    write(tmp_path / closed, series=4)
    really = os.scandir

    def scandir(folder: object) -> object:
        if str(folder).endswith(closed):
            raise PermissionError(13, "Permission denied", str(folder))
        return really(folder)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    cases = cases_in(tmp_path)
    (failed,) = set(cases) - {good}
    assert re.fullmatch(r"folder-\w{8}", failed)
    problem = cases[failed].problem
    assert problem == f"case {failed}: a folder in the input cannot be read: Permission denied"
    find_dicom(tmp_path)
    assert "the input: 1 folder that cannot be read" in caplog.text


def test_a_slice_that_cannot_be_read_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        Path(folder).chmod(0o755)
        (Path(folder) / "empty.dcm").touch()
        (Path(folder) / "link").symlink_to("nowhere")
        with nobody(Path(folder) / f"{NAME} 3 3", 0o000):
            (case,) = cases_in(Path(folder)).values()
            (alone,) = cases_in(Path(folder) / f"{NAME} 3 0").values()
    told = "3 files beside its own cannot be read: slices at its ends may be missing"
    for found in (case, alone):
        assert len(found.paths) == SHAPE[0] - 1
        assert found.channels[0].series is not None
        assert found.channels[0].series.warnings == (told,)
    assert "the input: passed over 1 × empty file, 2 × file that cannot be opened" in caplog.text


def test_without_its_packages_dicom_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    for module in [name for name in sys.modules if name.startswith("ctseg.files.dicom.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for path in (tmp_path, tmp_path / f"{NAME} 3 0"):
        with pytest.raises(SetupError, match=r"reading DICOM needs pydicom.*extra 'dicom'"):
            cases_in(path)
    write_nifti(tmp_path / "scan.nii.gz")
    assert list(cases_in(tmp_path)) == ["scan"]
    assert "DICOM is passed over, 4 of the files: reading DICOM needs pydicom" in caplog.text


def test_what_stands_in_traces_names_nobody(tmp_path: Path) -> None:
    write(tmp_path / NAME, SeriesDescription=NAME, StudyID=NAME)
    assert "Secret" not in repr((find_cases(tmp_path, channels=1), find_dicom(tmp_path), find_dicom(tmp_path).series))


def test_a_scan_is_its_slices_whatever_they_are_called(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (part,) = next(iter(cases_in(tmp_path).values())).parts
    before = known(part)
    assert before.name == part.label == f"series 3 ({uid_digest(uid(1, 3))}) of study {uid_digest(uid(1))}"
    assert before.is_still(part)
    for index, path in enumerate(sorted((tmp_path / "a").iterdir())):
        path.rename(tmp_path / "a" / f"{100 - index}.ima")
    (renamed,) = next(iter(cases_in(tmp_path).values())).parts
    assert before.is_still(renamed)
    datasets = ct_series(SHAPE, patient_name=NAME).datasets
    set_tags(datasets[1], RescaleIntercept="-1000")
    write_series(tmp_path / "b", datasets)
    (changed,) = next(iter(cases_in(tmp_path / "b").values())).parts
    assert not before.is_still(changed)
    (tmp_path / "a" / "100.ima").unlink()
    with pytest.raises(OSError, match="No such file") as caught:
        stamp_of(renamed)
    assert str(tmp_path) not in str(caught.value)
    assert not before.is_still(renamed)
    (fewer,) = next(iter(cases_in(tmp_path / "a").values())).parts
    assert not before.is_still(fewer)
