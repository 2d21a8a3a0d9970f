"""``ctseg report``: exit codes and lines; no model, no server."""

import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.cli.main import main as ctseg
from ctseg.files.cases import find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.presence import Presence
from tests.support.dicom_series import ct_series, write_series
from tests.support.threshold import ThresholdPredictor, write_scan


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Scans a and b, of which a is segmented."""
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for name in "ab":
        write_scan(scans / f"{name}.nii.gz")
    segment_cases(find_cases(scans, channels=1)[:1], ThresholdPredictor(), out, BatchOptions())
    return scans, out


def report(*words: object) -> int:
    return ctseg(["report", *map(str, words)])


def test_a_case_that_nobody_began_is_named_and_exits_1(folders, capsys):
    scans, out = folders
    assert report("-o", out, "-i", scans) == 1
    assert capsys.readouterr().out.splitlines() == [
        "b: no outcome: not begun, or cut off",
        "1 of 2 cases are not done",
        f"1 done, 0 failed: {out / 'report.json'}",
    ]
    assert report("-o", out) == 0
    segment_cases(find_cases(scans, channels=1)[1:], ThresholdPredictor(), out, BatchOptions())
    assert report("-o", out, "-i", scans) == 0


def test_a_case_that_failed_is_named_and_exits_1(folders, capsys):
    scans, out = folders
    (scans / "b.nii.gz").write_bytes(b"")
    segment_cases(find_cases(scans, channels=1)[1:], ThresholdPredictor(), out, BatchOptions())
    for words in (("-o", out), ("-o", out, "-i", scans)):
        assert report(*words) == 1
        assert "b: b.nii.gz: " in capsys.readouterr().out


def test_a_run_that_works_there_is_named(folders, capsys):
    _, out = folders
    with Presence(out) as presence:
        report("-o", out)
    assert f"{presence.run} still works in {out}" in capsys.readouterr().out


def test_a_folder_that_is_none_of_ctsegs_exits_2(folders, tmp_path, capsys):
    assert report("-o", tmp_path) == 2
    assert "found no .ctseg in it" in capsys.readouterr().err


@pytest.mark.parametrize("channels", ["0", "x"])
def test_channels_are_a_number(folders, channels):
    with pytest.raises(SystemExit) as caught:
        report("-o", folders[1], "--channels", channels)
    assert caught.value.code == 2


def test_it_loads_neither_kernels_nor_a_server(folders):
    program = (
        "import sys\nfrom ctseg.cli.main import main\n"
        f"assert main(['report', '-o', {str(folders[1])!r}, '-i', {str(folders[0])!r}]) == 1\n"
        "assert not {'torch', 'numba', 'tritonclient', 'grpc'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_kept_is_named_and_exits_0(folders, capsys):
    scans, out = folders
    segment_cases(find_cases(scans, channels=1), ThresholdPredictor(), out, BatchOptions())
    (out / "a.nii.gz").write_bytes(b"corrected")
    segment_cases(find_cases(scans, channels=1), ThresholdPredictor(), out, BatchOptions())
    assert report("-o", out, "-i", scans) == 0
    assert "a: kept: a.nii.gz: not made by ctseg, or changed since: left alone\n" in capsys.readouterr().out


def test_pages_are_written_and_the_last_line_is_their_address(folders, capsys):
    scans, out = folders
    assert report("-o", out, "-i", scans, "--html", "--quiet") == 1, "b is not done"
    index = out / "report" / "index.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"page, with patient data: {index.as_uri()}"
    page = index.read_text(encoding="utf-8")
    assert 'href="cases/a.html"' in page
    assert "no outcome: not begun, or cut off" in page
    assert (out / "report" / "cases" / "a.html").is_file()
    assert report("-o", out, "-i", scans, "--single", "a") == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("/out/report/a.html")


def test_pages_without_an_input_say_how_scans_are_shown(folders, capsys):
    scans, out = folders
    assert report("-o", out, "--html", "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "the pages show no scan: name the folder of scans with -i"
    assert not (out / "report" / "cases" / "a.html").exists()
    report("-o", out, "-i", scans, "--html", "--quiet")
    capsys.readouterr()
    report("-o", out, "--html", "--quiet")
    assert capsys.readouterr().out.splitlines()[-3:-1] == [
        "the pages show no scan: name the folder of scans with -i",
        "1 case had a page of an earlier call, which is removed: there is nothing to show on it now",
    ]


def test_references_show_scores_in_pages_and_are_refused_without_pages(folders, capsys):
    scans, out = folders
    references = out.with_name("references")
    references.mkdir()
    (references / "a.nii.gz").write_bytes((out / "a.nii.gz").read_bytes())
    with pytest.raises(SystemExit, match="2"):
        report("-o", out, "-i", scans, "-r", references)
    assert "add --html" in capsys.readouterr().err
    report("-o", out, "-i", scans, "-r", references, "--html", "--quiet")
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "Dice, lowest" in page
    assert '<td class="number" data-sort="1.0">1</td>' in page
    (references / "a.nii.gz").write_bytes(b"")
    report("-o", out, "-i", scans, "-r", references, "--html", "--quiet")
    assert "not compared: case a: " in (out / "report" / "index.html").read_text(encoding="utf-8")


def test_a_dicom_series_is_shown_as_the_files_of_a_scan_are(tmp_path, capsys):
    pytest.importorskip("pydicom")
    scans, out = tmp_path / "in", tmp_path / "out"
    write_series(scans / "series", ct_series((6, 18, 12), pixel_spacing_mm=(2.0, 1.0), slice_spacing_mm=3.0).datasets)
    cases = find_cases(scans, channels=1)
    segment_cases(cases, ThresholdPredictor(), out, BatchOptions())
    assert report("-o", out, "-i", scans, "--html") == 0
    (page,) = (out / "report" / "cases").glob("*.html")
    assert page.stem == cases[0].name
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 3
    assert "Doe" not in page.read_text(encoding="utf-8"), "nor is the patient named"
