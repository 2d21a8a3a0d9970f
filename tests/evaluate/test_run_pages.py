"""The pages of a run: a row for every case, and why one has no viewer."""

import base64
import html
import io
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctseg.errors import InputError
from ctseg.evaluate.evaluation import Evaluation
from ctseg.evaluate.folder import evaluate_folder
from ctseg.evaluate.pages import run
from ctseg.evaluate.pages.rendering import number
from ctseg.evaluate.pages.run import page_names, write_run_pages
from ctseg.files.identity import printable
from ctseg.predict.outcomes import StageSeconds
from tests.support.run_pages import OBLIQUE, RunFolder, phantom

REGIONS = {"whole": (1, 2, 3), "core": (2, 3)}


def index_of(folder: RunFolder) -> str:
    return (folder.output / "report" / "index.html").read_text(encoding="utf-8")


def row_of(page: str, case: str) -> str:
    return next(row for row in re.findall(r"<tr id=.*?</tr>", page, flags=re.S) if f'data-sort="{case}"' in row)


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.add("one", *phantom(), warnings=("liver touches the edge",), agreement={"liver": 0.91, "spleen": 0.83})
    return folder


def test_every_case_has_a_row_that_says_what_became_of_it(folder):
    folder.add_failed("two", "case two: expected a CT")
    kept = folder.add("three", *phantom())
    folder.store.write(
        "three", kept.model_copy(update={"status": "kept", "warnings": ("somebody's own stands there",)})
    )
    written = write_run_pages(
        folder.output,
        folder.report,
        cases=folder.cases,
        left=[("two", "case two: expected a CT"), ("four", "not begun")],
    )
    page = index_of(folder)
    assert "done" in row_of(page, "one")
    assert "liver touches the edge" in row_of(page, "one")
    assert "0.83" in row_of(page, "one")
    assert row_of(page, "one").count("data:image/jpeg") == 3
    assert text_of(row_of(page, "two")).count("expected a CT") == 1
    assert "somebody&#39;s own stands there" in row_of(page, "three")
    assert "not begun" in row_of(page, "four")
    assert written.with_viewer == (1 if (folder.output / "report/niivue.js").exists() else 0)
    for fact in ("abdomen", folder.digest, "proven", "localhost:8001", "0.5 of a patch", "2026-11-28T04:00:00"):
        assert fact in page
    assert "network" in text_of(page)


def test_volumes_and_scores_stand_in_the_row_by_the_models_names(folder):
    volumes = folder.report.cases[0].volumes_ml.values()
    references = folder.root / "references"
    references.mkdir()
    _, labels = phantom()
    nib.save(nib.Nifti1Image(np.where(labels == 2, 0, labels).astype(np.uint8).T, OBLIQUE), references / "one.nii.gz")
    found = evaluate_folder(folder.output, references)
    renamed = Evaluation.model_validate(
        {**found.model_dump(), "labels": {f"other {name}": values for name, values in found.labels.items()},
         "cases": [{**case.model_dump(), "labels": {f"other {name}": scores for name, scores in case.labels.items()}}
                   for case in found.cases]}
    )  # fmt: skip
    for evaluation in (found, renamed):
        write_run_pages(folder.output, folder.report, cases=folder.cases, evaluation=evaluation, references=references)
        row = row_of(index_of(folder), "one")
        cells = [text_of(cell) for cell in re.findall(r"<td.*?</td>", row, flags=re.S)]
        assert cells[3:6] == [number(volume) for volume in volumes]
        assert "0.667" in cells, "the mean of 1, 0 and 1"
        assert "0" in cells, "the lowest"
    if (folder.output / "report" / "niivue.js").exists():  # a checkout may have been made without npm
        assert "reference" in (folder.output / "report" / "cases" / "one.html").read_text()


def test_a_scan_that_is_gone_or_another_leaves_the_row_and_says_so(folder):
    for name in ("moved", "changed"):
        folder.add(name, *phantom())
    (folder.scans / "moved_0000.nii.gz").unlink()
    shutil.copy(folder.scans / "one_0000.nii.gz", folder.scans / "changed_0000.nii.gz")
    hu, _ = phantom()
    nib.save(nib.Nifti1Image((hu + 1).T.astype(np.int16), OBLIQUE), folder.scans / "changed_0000.nii.gz")
    written = write_run_pages(folder.output, folder.report, cases=folder.cases)
    page = index_of(folder)
    assert "its scan is not among the scans of the input" in row_of(page, "moved")
    assert "its scan is not the one that was segmented" in row_of(page, "changed")
    assert [case for case, _ in written.without] == ["changed", "moved"]
    for name in ("moved", "changed"):
        assert "data:image" not in row_of(page, name)
        assert not (folder.output / "report" / "cases" / f"{name}.html").exists()
    assert "data:image" in row_of(page, "one")


def test_without_an_input_the_index_still_has_all_numbers(folder):
    written = write_run_pages(folder.output, folder.report)
    row = row_of(index_of(folder), "one")
    assert "nobody said where its scan is" in row
    assert "liver touches the edge" in row
    assert written.with_viewer == 0


def test_a_label_map_that_was_changed_is_shown_and_told(folder):
    _, labels = phantom()
    labels[labels == 2] = 1
    nib.save(nib.Nifti1Image(labels.T, OBLIQUE), folder.output / "one.nii.gz")
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    assert "was changed since ctseg wrote it" in row_of(index_of(folder), "one")
    (folder.output / "one.nii.gz").unlink()
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    assert "one.nii.gz has gone" in row_of(index_of(folder), "one")
    assert not (folder.output / "report" / "cases" / "one.html").exists(), "an old page would show what is gone"


def test_what_is_not_ctsegs_stays_in_the_folder_of_pages(folder):
    cases = folder.output / "report" / "cases"
    cases.mkdir(parents=True)
    (cases / "mine.html").write_text("my own notes")
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    assert (cases / "mine.html").read_text() == "my own notes"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from ctseg.evaluate.pages.run import write_run_pages
from ctseg.files.cases import find_cases
from ctseg.predict.report import fold_report
output, how = Path(sys.argv[1]), sys.argv[2]
done = lambda case: os.kill(os.getpid(), int(how)) if how else None
write_run_pages(output, fold_report(output), cases=find_cases(output.parent / "scans", channels=1), case_done=done)
"""


@pytest.mark.parametrize("how", ["killed", "terminated", "full"])
def test_pages_of_an_earlier_time_stay_whole_where_new_ones_are_cut_off(folder, how):
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    pages = folder.output / "report"
    before = contents(pages)
    folder.add("two", *phantom())
    _, labels = phantom()
    labels[labels == 2] = 1
    nib.save(nib.Nifti1Image(labels.T, OBLIQUE), folder.output / "one.nii.gz")
    number_of = {"killed": str(int(signal.SIGKILL)), "terminated": str(int(signal.SIGTERM)), "full": ""}[how]
    limit = 8000 if how == "full" else resource.RLIM_INFINITY

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(folder.output), number_of],
        capture_output=True, text=True, check=False, preexec_fn=limited,
    )  # fmt: skip
    assert done.returncode == {"killed": -9, "terminated": 143, "full": 1}[how], done.stderr
    assert how != "full" or f"OutputError: {pages}/cases/" in done.stderr
    assert contents(pages) == before
    hidden = [path.name for path in folder.output.glob(".report*")]
    assert len(hidden) == (how == "killed"), "what a kill leaves is hidden"
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    assert {path.name for path in (pages / "cases").iterdir()} == {"one.html", "two.html"}
    assert [path.name for path in folder.output.glob(".report*")] == []


def test_a_kill_between_the_old_pages_and_the_new_loses_neither_pages_nor_what_is_not_ctsegs(folder):
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    pages = folder.output / "report"
    (pages / "notes.txt").write_text("mine")
    for single in (None, "one"):
        pages.rename(folder.output / ".report.replaced")
        write_run_pages(folder.output, folder.report, cases=folder.cases, single=single)
        assert (pages / "notes.txt").read_text() == "mine"
        assert (pages / "cases" / "one.html").is_file()
        assert not (folder.output / ".report.replaced").exists()


def test_what_lies_beside_pages_goes_with_them_and_keeps_who_may_enter(folder):
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    write_run_pages(folder.output, folder.report, cases=folder.cases, single="one")
    pages = folder.output / "report"
    (pages / "notes" / "empty").mkdir(parents=True)
    (pages / "notes" / "read_only.txt").write_text("mine")
    (pages / "notes" / "read_only.txt").chmod(0o444)
    (pages / "link").symlink_to("nowhere")
    pages.chmod(0o750)
    elsewhere = folder.root / "elsewhere"
    pages.rename(elsewhere)
    pages.symlink_to(elsewhere)
    single = (pages / "one.html").read_bytes()
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    assert pages.is_symlink()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o750
    assert (elsewhere / "one.html").read_bytes() == single
    assert (elsewhere / "notes" / "read_only.txt").read_text() == "mine"
    assert (elsewhere / "notes" / "empty").is_dir()
    assert (elsewhere / "link").readlink() == Path("nowhere")


def test_new_pages_are_for_those_whom_the_process_lets_in(folder):
    earlier = os.umask(0o077)
    try:
        write_run_pages(folder.output, folder.report, cases=folder.cases)
    finally:
        os.umask(earlier)
    for path in ((folder.output / "report"), *(folder.output / "report").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_how_many_cases_lost_their_page_is_told(folder):
    for name in ("two", "three"):
        folder.add(name, *phantom())
    assert write_run_pages(folder.output, folder.report, cases=folder.cases).removed == 0
    (folder.scans / "two_0000.nii.gz").unlink()
    assert write_run_pages(folder.output, folder.report, cases=folder.cases).removed == 1
    assert write_run_pages(folder.output, folder.report).removed == 2
    assert list((folder.output / "report" / "cases").iterdir()) == []


def test_regions_have_the_colour_of_the_smallest_and_both_rows(tmp_path):
    folder = RunFolder(tmp_path, labels=REGIONS, colours={"core": (1, 2, 3)})
    folder.add("one", *phantom())
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    page = (folder.output / "report" / "cases" / "one.html").read_text()
    if 'id="scene"' in page:
        assert '"name": "whole", "places": [1, 2, 3]' in page
        assert '"name": "core", "places": [2, 3], "colour": "#010203"' in page


def test_models_that_worked_in_one_folder_each_have_their_labels_and_facts(folder):
    other = RunFolder(folder.root, labels={"bone": (1,)}, model="skeleton")
    hu, labels = phantom()
    other.add("two", hu, np.where(labels == 1, 1, 0).astype(np.uint8))
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    page = index_of(folder)
    assert {"abdomen", "skeleton"} <= set(re.findall(r"<h2>(.*?)</h2>", page))
    assert "bone" in (folder.output / "report" / "cases" / "two.html").read_text()
    assert "liver" not in text_of((folder.output / "report" / "cases" / "two.html").read_text())


def test_pages_have_names_that_every_system_takes():
    names = page_names(["case_1", "Case", "case", "a/b", "ünïcode", "con", "x" * 300, "..", "-rf", "a b", "dot."])
    assert names["case_1"] == "case_1.html"
    files = list(names.values())
    assert len({file.casefold() for file in files}) == len(files)
    for file in files:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,110}\.html", file), file
        assert file.partition(".")[0].casefold() != "con"


@pytest.mark.parametrize(
    "name",
    [
        "<script>\x0b",
        "%2f..%2fetc",
        "x" * 235,
        "\u202egnp.exe",
        "a#b?c&d\"e'f",
        "%41",
        "javascript:1",
        "tab\there",
        "\udcff",
    ],
)
def test_a_case_of_any_name_has_its_row_its_pictures_and_a_page_that_its_link_finds(tmp_path, name):
    folder = RunFolder(tmp_path)
    folder.add(name, *phantom((6, 8, 10)))
    assert write_run_pages(folder.output, folder.report, cases=folder.cases).without == ()
    page = index_of(folder)
    (link,) = re.findall(r'<td class="case"[^>]*><a href="([^"]*)">', page)
    assert re.fullmatch(r"cases/[A-Za-z0-9_][A-Za-z0-9_.-]*\.html", link), "no character of a link means anything"
    case = (folder.output / "report" / link).read_text(encoding="utf-8")
    for text in (page, case):
        assert html.escape(printable(name)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
        assert not any(character in text for character in ("<script>\x0b", "\u202e", "\x0b"))
    assert page.count("data:image/jpeg") == 3


def test_stages_have_the_sum_of_all_cases_and_the_seconds_of_the_middle_one(tmp_path):
    folder = RunFolder(tmp_path)
    for name, seconds in (("one", 7.0), ("two", 1.5), ("three", 3.25)):
        folder.add(name, *phantom((6, 7, 8)), seconds=StageSeconds(network=seconds, total=seconds))
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    stages = index_of(folder).partition("Where the time went")[2]
    assert "network 11.8 3.25" in text_of(stages.partition("</table>")[0])


def test_an_unknown_case_is_refused_with_those_that_are_there(folder):
    with pytest.raises(InputError, match="expected a case 'two', found one"):
        write_run_pages(folder.output, folder.report, cases=folder.cases, single="two")


def test_without_the_viewer_pages_are_made_and_say_why(folder, monkeypatch, caplog):
    monkeypatch.setattr(run, "viewer_script", lambda: None)
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    page = (folder.output / "report" / "cases" / "one.html").read_text()
    assert "built without its viewer" in page
    assert page.count("data:image/jpeg") == 3
    assert "built without its viewer" in index_of(folder)
    caplog.clear()
    write_run_pages(folder.output, folder.report, cases=folder.cases, single="one")
    assert "built without its viewer" in caplog.text


def test_a_page_says_that_it_holds_patient_data(folder):
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    for path in (folder.output / "report").rglob("*.html"):
        assert "This page holds patient data" in path.read_text()


def test_where_nothing_was_found_pictures_are_of_what_the_reference_has(tmp_path):
    folder = RunFolder(tmp_path)
    hu, labels = phantom()
    folder.add("one", np.full_like(hu, 40), np.zeros_like(labels))
    references = tmp_path / "references"
    references.mkdir()
    nib.save(nib.Nifti1Image(np.where(labels == 1, 1, 0).astype(np.uint8).T, OBLIQUE), references / "one.nii.gz")
    write_run_pages(folder.output, folder.report, cases=folder.cases, references=references)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]*)", row_of(index_of(folder), "one"))
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)
        assert np.count_nonzero(np.ptp(pixels, axis=2) > 60) > 20, "the outline is in all three planes"
    assert len(pictures) == 3
