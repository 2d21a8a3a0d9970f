"""``ctseg evaluate``: what is printed and written, nnU-Net's spellings, and the exit status."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.cli.main import main

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def write(path: Path, end: int, *, value: int = 1) -> None:
    """Write a label map with a box of 4 x 4 x (end - 2) voxels of a value."""
    labels = np.zeros((12, 11, 13), np.uint8)
    labels[3:7, 3:7, 2:end] = value
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels, AFFINE), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    labels, references = tmp_path / "labels", tmp_path / "data" / "labelsTr"
    (tmp_path / "data").mkdir()
    for case, end in (("good", 8), ("bad", 5), ("fair", 7)):
        write(labels / f"{case}.nii.gz", end)
        write(references / f"{case}.nii.gz", 8)
    dataset = {"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(dataset))
    return labels, references


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_worst_case_comes_first_and_three_files_are_written(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    labels, references = folders
    assert run("evaluate", "-i", labels, "-r", references) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first = next(place for place, line in enumerate(lines) if line and line[0] == "bad")
    assert [line[:2] for line in lines[first : first + 3]] == [
        ["bad", "0.6667"],
        ["fair", "0.9091"],
        ["good", "1.0000"],
    ]
    assert lines[first][2] == "9.00"  # three slices of 3 mm
    assert next(line for line in lines if line[:1] == ["tumour"])[:5] == ["tumour", "3", "0.8586", "0.6667", "3.00"]
    for name in ("evaluation.json", "evaluation.csv", "summary.json"):
        assert (labels / name).is_file()
    assert json.loads((labels / "summary.json").read_text())["mean"]["1"]["Dice"] == pytest.approx(0.85859, abs=1e-5)


def test_files_go_where_they_are_asked_to_and_json_is_the_document(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, references = folders
    words = ("evaluate", "-i", labels, "-r", references, "--json", "--tolerance-mm", 2, 4.5)
    assert run(*words, "-o", tmp_path / "out") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert printed["tolerances_mm"] == [2, 4.5]
    assert printed["surface_definition"].startswith("surface-distance 0.1 (DeepMind): elements of 2x2x2")
    assert sorted(path.name for path in labels.iterdir()) == ["bad.nii.gz", "fair.nii.gz", "good.nii.gz"]


def test_missing_and_refused_cases_are_named_and_make_the_status_1(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    labels, references = folders
    (labels / "fair.nii.gz").rename(labels / "other.nii.gz")
    assert run("evaluate", "-i", labels, "-r", references) == 1
    out = capsys.readouterr().out
    assert "fair: no label map" in out
    assert "no reference: other" in out
    assert "2 compared, 1 without a label map, 1 without a reference: " in out
    assert run("evaluate", "-i", labels, "-r", references, "--chill") == 0
    (labels / "bad.nii.gz").write_bytes(b"")
    capsys.readouterr()
    assert run("evaluate", "-i", labels, "-r", references, "--chill") == 1
    assert "case bad: " in capsys.readouterr().out


def test_nothing_to_compare_is_wrong_usage(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, references = folders
    (tmp_path / "empty").mkdir()
    assert run("evaluate", "-i", tmp_path / "empty", "-r", references) == 2
    assert "found no label maps and 3 references (bad, fair, good)" in capsys.readouterr().err
    assert run("evaluate", "-i", tmp_path / "nowhere", "-r", references) == 2
    assert run("evaluate", "-i", labels, "-r", references, "-m", tmp_path / "empty") == 2
    assert "(see --spec)" in capsys.readouterr().err


def test_nnunets_own_words_are_taken(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels, references = folders
    dataset, plans = tmp_path / "data" / "dataset.json", tmp_path / "plans.json"
    plans.write_text("{}")
    assert run("evaluate", "-i", labels, "-r", references) == 0
    expected = (labels / "summary.json").read_text()
    by_folder, by_simple = tmp_path / "folder.json", tmp_path / "simple.json"
    words = ("-djfile", dataset, "-pfile", plans, "-o", by_folder, "-np", 2)
    assert run("evaluate_folder", references, labels, *words) == 0
    assert run("evaluate_simple", references, labels, "-l", 1, "-il", 7, "-o", by_simple) == 0
    assert by_folder.read_text() == by_simple.read_text() == expected


def test_ignore_label_without_labels_is_refused_and_so_are_labels_named_twice(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, references = folders
    assert run("evaluate", "-i", labels, "-r", references, "-il", 1) == 2
    assert (
        "InputError: expected an ignore label that is none of the labels that are compared, found 1 among them"
        in capsys.readouterr().err
    )
    assert run("evaluate", "-i", labels, "-r", references, "-l", 1, "-m", tmp_path / "data") == 2
    assert "labels are named twice" in capsys.readouterr().err


def test_name_of_a_case_moves_no_cursor(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    labels, references = folders
    for folder in folders:
        write(folder / "a\x1b[2Jb.nii.gz", 8)
    assert run("evaluate", "-i", labels, "-r", references) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("-l", 1, 70_000), ("-l", -1), ("-l", 1, "-il", 70_000), ("-il", -1), ("-il", 65_536)]
)
def test_value_that_no_label_map_has_is_wrong_usage_and_the_flag_is_named(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], words: tuple[object, ...]
) -> None:
    labels, references = folders
    assert run("evaluate", "-i", labels, "-r", references, *words) == 2
    told = capsys.readouterr().err
    assert "InputError: expected values from 0 to 65535, as label maps have them, found " in told
    assert str(words[-2] if "-il" in words else words[0]) in told.rpartition("(see ")[2]


def test_file_in_place_of_a_folder_is_told_so(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    labels, references = folders
    for one, other in ((labels / "bad.nii.gz", references), (labels, references / "bad.nii.gz")):
        assert run("evaluate", "-i", one, "-r", other) == 2
        assert "bad.nii.gz: expected a folder of label maps, found a file: name" in capsys.readouterr().err


def test_name_of_a_case_breaks_no_line(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    labels, references = folders
    for folder in folders:
        write(folder / "two\nlines.nii.gz", 8)
    write(references / "un\nseen.nii.gz", 8)
    write(labels / "un\nasked.nii.gz", 8)
    assert run("evaluate", "-i", labels, "-r", references) == 1
    out = capsys.readouterr().out
    assert "two\\nlines" in out
    assert "\nun\\nseen: no label map\nno reference: un\\nasked\n" in out
