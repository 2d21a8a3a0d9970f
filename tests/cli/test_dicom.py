"""``ctseg dicom list``: what is there, what would be segmented, and why not."""

import json
import re
from pathlib import Path

import pytest

from ctseg.cli.main import main as ctseg
from ctseg.files.dicom.series import uid_digest
from ctseg.files.digests import sha256_of_file
from ctseg.files.identity import KnownFile
from ctseg.predict.outcomes import Outcome, OutcomeStore
from tests.support.dicom_series import ct_series, uid, write_series

SHAPE = (4, 6, 5)
LOCALIZER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}


def name_of(series: int) -> str:
    return f"study1-{uid_digest(uid(1))}_series{series}-{uid_digest(uid(1, series))}"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A series that is read, a short one with another kernel, one without its middle, a localizer."""
    write_series(tmp_path / "a", ct_series(SHAPE, SeriesDescription="[red]Thorax 1.0\x1b[2J").datasets)
    write_series(tmp_path / "b", ct_series((2, 6, 5), series=4, ConvolutionKernel="B70s").datasets)
    gap = ct_series((6, 6, 5), series=5).datasets
    del gap[2]
    write_series(tmp_path / "c", gap)
    write_series(tmp_path / "d", ct_series((1, 6, 5), series=1, **LOCALIZER).datasets)
    (tmp_path / "a" / "notes.txt").write_text("no DICOM")
    return tmp_path


def test_a_table_says_what_is_taken_and_why_not(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctseg(["dicom", "list", str(scans), "--series_kernel", "b30*"]) == 1
    told = capsys.readouterr()
    study = uid_digest(uid(1))
    lines = {line.split()[1]: line for line in told.out.splitlines() if line.strip().startswith(f"{study} ")}
    assert list(lines) == ["3", "4", "5", "1"]
    assert name_of(3) in lines["3"]
    assert r"[red]Thorax 1.0\x1b[2J" in lines["3"]
    assert "5 x 6" in lines["3"]
    assert "0.8 x 0.8 x 2.5" in lines["3"]
    assert lines["3"].endswith(" yes")
    assert lines["4"].endswith("no: kernel does not fit")
    assert "refused: " in lines["5"]
    assert lines["1"].endswith("no: localizer, 1 file")
    assert told.out.splitlines()[-1] == (
        "1 of 3 series would be segmented; 1 series not chosen (1 by kernel); left out: 1 × localizer"
    )
    assert told.err == ""


def test_json_says_the_same_for_programs(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctseg(["dicom", "list", str(scans), "--json", "--series_slices", "3-4"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_number = {series["number"]: series for series in found["series"]}
    assert {number: (series["taken"], series["not_chosen"]) for number, series in by_number.items()} == {
        3: (True, None), 4: (False, "slices"), 5: (False, "slices"),
    }  # fmt: skip
    good = by_number[3]
    assert (good["case"], good["kernel"], good["slices"], good["voxels_xy"], good["spacing_mm_xyz"]) == (
        name_of(3), "B30f", 4, [5, 6], [0.8, 0.8, 2.5],
    )  # fmt: skip
    assert good["study"] == uid_digest(uid(1))
    assert by_number[5]["problem"] is not None
    assert [(item["what"], item["files"]) for item in found["left_out"]] == [("localizer", 1)]


def test_series_of_one_name_are_told(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctseg(["dicom", "list", str(scans), "--case_name_from", "PatientID", "--series_slices", "2-4"]) == 1
    assert "refused: 2 series would have the case's name" in capsys.readouterr().out
    assert ctseg(["dicom", "list", str(scans), "--case_name_from", "PatientID", "folder", "--series_slices", "-4"]) == 0
    assert " 0042_a " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--case_name_from", "Patient"], "Patient: expected DICOM keywords .*see --case_name_from"),
        (["--series_slices", "9-2"], "expected a number of slices"),
        (["--series_slices", "many"], "expected a number of slices such as 50-"),
    ],
)
def test_wrong_words_exit_2(scans: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    try:
        status = ctseg(["dicom", "list", str(scans), *words])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    assert re.search(told, capsys.readouterr().err)


def test_no_dicom_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "begins").write_bytes(b"\x08\x00\x05\x00" + bytes(30))
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "nowhere"):
        assert ctseg(["dicom", "list", str(path)]) == 2
    assert "expected DICOM files, found none" in capsys.readouterr().err


def test_a_narrow_terminal_gets_lines_that_can_be_read(
    scans: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert ctseg(["dicom", "list", str(scans)]) == 1
    lines = capsys.readouterr().out.splitlines()
    study, series = uid_digest(uid(1)), uid_digest(uid(1, 3))
    first = lines.index(rf"study {study}   series 3 ({series})   description [red]Thorax 1.0\x1b[2J")
    assert lines[first + 1 : first + 3] == [
        "    slices 4   voxels (x, y) 5 x 6   mm (x, y, z) 0.8 x 0.8 x 2.5   kernel B30f",
        f"    {name_of(3)}: yes",
    ]
    assert "    no: localizer, 1 file" in lines
    assert max(map(len, lines)) <= 80


def test_what_ctseg_has_written_beside_series_hides_none(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = ["dicom", "list", str(scans), "--series_slices", "4"]
    assert ctseg(listed) == 0
    before = capsys.readouterr().out
    (scans / "mine.nii.gz").write_bytes(b"a label map")
    mine = KnownFile(name="mine.nii.gz", sha256=sha256_of_file(scans / "mine.nii.gz"))
    (scans / ".ctseg" / "outcomes").mkdir(parents=True)
    OutcomeStore(scans).write("mine", Outcome(case="mine", status="ok", outputs=(mine,)))
    assert ctseg(listed) == 0
    assert capsys.readouterr() == (before, "")


def test_a_series_for_label_maps_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = ct_series(SHAPE).datasets
    for dataset in datasets:
        del dataset.FrameOfReferenceUID
    write_series(tmp_path, datasets)
    assert ctseg(["dicom", "list", str(tmp_path)]) == 0
    assert "yes; it has no FrameOfReferenceUID: label maps alone can be written" in capsys.readouterr().out
