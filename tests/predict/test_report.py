"""report.json and report.csv: folded from the outcomes, whoever wrote them."""

import csv
import json
import os
import stat

import pytest

from ctseg.errors import InputError, OutputError
from ctseg.files.identity import KnownFile
from ctseg.predict.contract import contract_of
from ctseg.predict.model_notes import write_model_note
from ctseg.predict.outcomes import MadeBy, Options, Outcome, OutcomeStore, StageSeconds, error_of
from ctseg.predict.presence import OtherRuns, Presence
from ctseg.predict.report import REPORT_NAME, TABLE_NAME, Report, adopt_earlier_report, begin_report, fold_report
from tests.support.toy_models import toy_spec

OPTIONS = Options(tile_step_size=0.5, mirroring=True)
MADE_BY = MadeBy(run="r", model="m", model_version="1", spec_digest="a" * 64, options=OPTIONS)


@pytest.fixture
def store(tmp_path):
    store = OutcomeStore(tmp_path)
    store.folder.mkdir(parents=True)
    return store


def test_the_fold_holds_every_outcome_in_order_of_names(tmp_path, store):
    for name in ("b", "a", "c"):
        store.write(name, Outcome(case=name, status="ok", made_by=MADE_BY, volumes_ml={"liver": 1.5}))
    store.write("d", Outcome(case="d", status="failed", error=error_of(InputError("case d: empty"))))
    report = fold_report(tmp_path)
    assert Report.model_validate_json((tmp_path / REPORT_NAME).read_bytes()) == report
    assert [(case.case, case.status) for case in report.cases] == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "ok"),
        ("d", "failed"),
    ]
    rows = list(csv.DictReader((tmp_path / TABLE_NAME).read_text().splitlines()))
    assert [(row["case"], row["liver ml"], row["error"]) for row in rows[2:]] == [
        ("c", "1.5", ""), ("d", "", "case d: empty"),
    ]  # fmt: skip


def test_the_table_says_who_made_what_from_which_bytes(tmp_path, store):
    scan = KnownFile(name="a_0000.nii.gz", sha256="1" * 64)
    labels = KnownFile(name="a.nii.gz", sha256="2" * 64)
    made_by = MADE_BY.model_copy(update={"servers": ("gpu1:8001", "gpu2:8001"), "part": "0/4"})
    outcome = Outcome(
        case="a", status="ok", made_by=made_by, inputs=(scan,), outputs=(labels,), volumes_ml={"liver": 1.5},
        warnings=("odd", "very"), seconds=StageSeconds(total=2.5), windows=8, bytes_sent=10, bytes_received=20,
        ended="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    store.write("a", outcome)
    fold_report(tmp_path)
    (row,) = csv.DictReader((tmp_path / TABLE_NAME).read_text().splitlines())
    assert row == {
        "case": "a", "status": "ok", "liver ml": "1.5", "seconds": "2.5", "windows": "8", "bytes_sent": "10",
        "bytes_received": "20", "model": "m", "error": "", "failed_formats": "", "warnings": "odd; very",
        "inputs": f"a_0000.nii.gz {'1' * 64}", "outputs": f"a.nii.gz {'2' * 64}", "model_version": "1",
        "spec_digest": "a" * 64, "parity": "untested", "tile_step_size": "0.5", "mirroring": "True",
        "servers": "gpu1:8001 gpu2:8001", "run": "r", "part": "0/4", "ended": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def test_a_spreadsheet_takes_no_name_in_the_table_for_a_formula_and_json_has_it_as_it_is(tmp_path, store):
    label, case = "=1+1", "@SUM(A1)"
    store.write(case, Outcome(case=case, status="ok", volumes_ml={label: 1.5}, warnings=("-2 is odd",)))
    report = fold_report(tmp_path)
    (row,) = csv.DictReader((tmp_path / TABLE_NAME).read_text().splitlines())
    assert (row["case"], row["'=1+1 ml"], row["warnings"]) == ("'@SUM(A1)", "1.5", "'-2 is odd")
    assert (report.cases[0].case, dict(report.cases[0].volumes_ml)) == (case, {label: 1.5})


def test_the_report_has_the_values_of_the_labels_of_each_model_that_worked_in_the_folder(tmp_path, store):
    spec, other = toy_spec(), toy_spec(patch_size=(6, 10, 16))
    for each in (spec, other):
        write_model_note(tmp_path, contract_of(each))
    made_by = MADE_BY.model_copy(update={"spec_digest": spec.digest})
    store.write("a", Outcome(case="a", status="ok", made_by=made_by))
    (note,) = fold_report(tmp_path).models.values()
    assert note.labels == {"liver": (1,), "tumour": (2,)}
    assert note.channels == ("CT", "PET")


def test_the_last_of_several_runs_to_leave_finds_the_report_finished(tmp_path, store):
    store.write("a", Outcome(case="a", status="ok"))
    with Presence(tmp_path):
        with Presence(tmp_path):
            pass
        assert not fold_report(tmp_path).finished
    assert fold_report(tmp_path).finished


@pytest.mark.parametrize("begins", [True, False])
def test_a_run_that_begins_or_ends_while_the_report_is_folded_is_in_it(tmp_path, store, begins):
    store.write("a", Outcome(case="a", status="ok"))

    class Others(OtherRuns):
        asked = 0

        def living(self):
            self.asked += 1
            return ["another"] if begins == (self.asked > 1) else []

    assert fold_report(tmp_path, Others(tmp_path)).finished != begins


def test_a_run_that_begins_marks_the_report_as_unfinished(tmp_path, store):
    store.write("a", Outcome(case="a", status="ok", made_by=MADE_BY))
    fold_report(tmp_path)
    begin_report(tmp_path)
    assert not Report.model_validate_json((tmp_path / REPORT_NAME).read_bytes()).finished
    assert [case.case for case in fold_report(tmp_path).cases] == ["a"]


def test_an_outcome_that_comes_while_the_report_is_folded_is_in_it(tmp_path, store, monkeypatch):
    store.write("a", Outcome(case="a", status="ok"))
    real, late = OutcomeStore.all, [Outcome(case="b", status="ok")]

    def all_and_one_more(self):
        yield from real(self)
        if late:
            self.write("b", late.pop())

    monkeypatch.setattr(OutcomeStore, "all", all_and_one_more)
    assert [case.case for case in fold_report(tmp_path).cases] == ["a", "b"]


def test_a_damaged_outcome_is_told_and_the_others_are_folded(tmp_path, store, caplog):
    store.write("a", Outcome(case="a", status="ok"))
    (store.folder / "b-0.json").write_text("{")
    assert [case.case for case in fold_report(tmp_path).cases] == ["a"]
    assert "b-0.json: cannot be used" in caplog.text


def test_the_report_of_an_older_ctseg_says_what_was_its_own(tmp_path, store):
    old_cases = [{"case": "a", "status": "ok", "output": "a.nii.gz", "output_sha256": "0" * 64}, {"case": "b"}]
    (tmp_path / REPORT_NAME).write_text(json.dumps({"schema_version": 1, "cases": old_cases}))
    adopt_earlier_report(tmp_path, store)
    (outcome,) = [outcome for _, outcome in store.all()]
    assert outcome == Outcome(case="a", status="ok", outputs=(KnownFile(name="a.nii.gz", sha256="0" * 64),))
    store.write("a", Outcome(case="a", status="failed"))
    adopt_earlier_report(tmp_path, store)
    assert [outcome.status for _, outcome in store.all()] == ["failed"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 9}', '{"schema_version": 1, "cases": [1]}'])
def test_a_report_that_is_none_is_told(tmp_path, store, text, caplog):
    (tmp_path / REPORT_NAME).write_text(text)
    adopt_earlier_report(tmp_path, store)
    assert store.written() == {}
    assert "report.json is no report of ctseg that can be used" in caplog.text


def test_no_report_is_no_news(tmp_path, store, caplog):
    adopt_earlier_report(tmp_path, store)
    assert caplog.text == ""


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        begin_report(tmp_path / "nowhere")


def test_report_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        begin_report(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / REPORT_NAME).stat().st_mode) == 0o644


def test_errors_not_raised_on_purpose_are_told_as_unexpected():
    assert error_of(InputError("case x: empty")).message == "case x: empty"
    assert error_of(KeyError("k")).message == "unexpected: KeyError('k')"


def test_a_disk_that_every_case_finds_full_went_away_and_one_that_took_a_case_did_not():
    full = Outcome(case="a", status="failed", error=error_of(OutputError("case a: No space left")))
    other = Outcome(case="b", status="failed", error=error_of(InputError("case b: empty")))
    skipped = Outcome(case="c", status="skipped")
    done = Outcome(case="d", status="ok")
    for cases, away in [
        ((full,), True), ((full, skipped), True), ((full, done), False), ((full, other), False), ((skipped,), False),
        ((), False),
    ]:  # fmt: skip
        assert Report(finished=True, written="", cases=cases).went_away == away
    assert Report(finished=False, written="", cases=(done,)).went_away, "the report could not be written"
