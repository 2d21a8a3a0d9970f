"""Names and values of labels from files: the same labels from every form."""

import json
from pathlib import Path

import pytest

from ctseg.cli.main import main
from ctseg.errors import InputError
from ctseg.train.label_lists import read_label_list
from tests.support.small_datasets import pairs

WANTED = {"background": 0, "left lung": 1, "tumor": 2}
ITK_SNAP = """################################################
# ITK-SnAP Label Description File
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "left lung"
    2     0  255    0        1  1  1    "tumor"
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset.json", json.dumps({"channel_names": {"0": "CT"}, "labels": WANTED, "numTraining": 1})),
        ("dataset.json", json.dumps({"modality": {"0": "CT"}, "labels": {"0": "BG", "2": "tumor", "1": "left lung"}})),
        ("classes.json", json.dumps({"1": "left lung", "2": "tumor"})),
        ("classes.json", json.dumps({"left lung": 1, "tumor": 2})),
        ("names.csv", "1,left lung\n2,tumor\n"),
        ("names.csv", "name;value\nleft lung;1\ntumor;2\n"),
        ("names.csv", '\ufeffvalue,colour,name\n0,black,nothing\n1,red,"left lung"\n\n2,green,tumor\n'),
        ("names.tsv", "left lung\t1\ntumor\t2\n"),
        ("labels.txt", ITK_SNAP),
    ],
)
def test_every_form_gives_the_same_labels(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_label_list(tmp_path / name).labels == WANTED


def test_a_colour_table_of_3d_slicer_gives_its_names(tmp_path: Path) -> None:
    (tmp_path / "a.ctbl").write_text("# Color table\n0 Background 0 0 0 0\n1 lung 220 20 60 255\n2 tumor 0 0 9 255\n")
    assert read_label_list(tmp_path / "a.ctbl").labels == {"background": 0, "lung": 1, "tumor": 2}


def test_regions_and_channels_come_from_a_dataset_json(tmp_path: Path) -> None:
    content = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = read_label_list(tmp_path / "dataset.json")
    assert (found.channel_names, found.regions_class_order) == (("CT", "PET"), (1, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,lung\nx,tumor\n", "line 2: expected a value and a name, found 'x,tumor'"),
        ("1,lung\n1,tumor\n", "value 1 is both 'lung' and 'tumor'"),
        ("1,lung\n2,lung\n", "'lung' has the values 1 and 2"),
        ("# nothing\n", "no labels"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_label_list(tmp_path / "names.csv")


def test_a_hundred_labels_need_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = pairs(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "names.csv").write_text("".join(f"{value},part{value}\n" for value in range(1, 105)))
    words = ["dataset", "create", "-d", "Dataset009_Toy", "--images", str(images), "--labels", str(labels)]
    words += ["--nnUNet_raw", str(tmp_path / "raw")]
    assert main([*words, "--labels_from", str(tmp_path / "names.csv")]) == 0
    content = json.loads((tmp_path / "raw" / "Dataset009_Toy" / "dataset.json").read_text())
    assert list(content["labels"].items())[:2] == [("background", 0), ("part1", 1)]
    assert len(content["labels"]) == 105
    assert main([*words, "--labels_from", str(tmp_path / "names.csv"), "--label", "a=1"]) == 2
    assert "give the labels once" in capsys.readouterr().err
    assert main([*words, "--labels_from", str(tmp_path / "gone.csv")]) == 2
    assert "gone.csv: no such file (see --labels_from)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "better"), [("1=lung", "--label lung=1"), ("lung:1", "--label lung=1"), ("lung", "--label lung=1")]
)
def test_a_label_the_other_way_round_is_told_the_right_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, better: str
) -> None:
    images, labels = pairs(tmp_path)
    words = ["-d", "Dataset009_Toy", "--images", str(images), "--labels", str(labels), "--nnUNet_raw", str(tmp_path)]
    assert main(["dataset", "create", *words, "--label", word]) == 2
    assert f"expected NAME=VALUE or NAME=VALUE,VALUE, such as {better}" in capsys.readouterr().err
