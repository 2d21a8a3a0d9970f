"""report.json: valid at every moment, and what may be skipped when a run goes on."""

import json
import os
import stat

import pytest

from ctseg.errors import InputError, OutputError
from ctseg.files.digests import sha256_of_file
from ctseg.predict.report import (
    REPORT_NAME,
    CaseReport,
    Options,
    Report,
    ReportWriter,
    error_of,
    read_finished_cases,
)

HEAD = Report(
    model="m", model_version="1", spec_digest="a" * 64, url="localhost:1",
    options=Options(tile_step_size=0.5, mirroring=True), started="2026-01-01T00:00:00+00:00",
)  # fmt: skip


def finished(folder, name: str) -> CaseReport:
    (folder / f"{name}.nii.gz").write_bytes(name.encode())
    return CaseReport(
        case=name, status="ok", output=f"{name}.nii.gz", output_sha256=sha256_of_file(folder / f"{name}.nii.gz")
    )


def test_report_is_valid_on_disk_after_each_case(tmp_path):
    writer = ReportWriter(tmp_path, HEAD)
    for i, name in enumerate(["b", "a", "c"]):
        assert len(Report.model_validate_json((tmp_path / REPORT_NAME).read_bytes()).cases) == i
        writer.add(finished(tmp_path, name))
    cases = json.loads((tmp_path / REPORT_NAME).read_text())["cases"]
    assert [case["case"] for case in cases] == ["a", "b", "c"]


def test_finished_cases_need_the_same_spec_the_same_options_and_an_untouched_output(tmp_path):
    writer = ReportWriter(tmp_path, HEAD)
    for name in ("kept", "changed", "lost"):
        writer.add(finished(tmp_path, name))
    writer.add(CaseReport(case="broken", status="failed", error=error_of(InputError("x"))))
    (tmp_path / "changed.nii.gz").write_bytes(b"other")
    (tmp_path / "lost.nii.gz").unlink()
    assert set(read_finished_cases(tmp_path, HEAD)) == {"kept"}
    other_spec = HEAD.model_copy(update={"spec_digest": "b" * 64})
    other_options = HEAD.model_copy(update={"options": Options(tile_step_size=0.5, mirroring=False)})
    assert read_finished_cases(tmp_path, other_spec) == {}
    assert read_finished_cases(tmp_path, other_options) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 9}'])
def test_an_unreadable_earlier_report_means_nothing_is_finished(tmp_path, text):
    (tmp_path / REPORT_NAME).write_text(text)
    assert read_finished_cases(tmp_path, HEAD) == {}


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        ReportWriter(tmp_path / "nowhere", HEAD)


def test_errors_not_raised_on_purpose_are_told_as_unexpected():
    assert error_of(InputError("case x: empty")).message == "case x: empty"
    assert error_of(KeyError("k")) == error_of(KeyError("k"))
    assert error_of(KeyError("k")).message == "unexpected: KeyError('k')"


def test_report_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        ReportWriter(tmp_path, HEAD)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / REPORT_NAME).stat().st_mode) == 0o644
