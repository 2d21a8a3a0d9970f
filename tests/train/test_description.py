"""``dataset.json`` in other orders and words: understood, and told by what to write."""

import json
from pathlib import Path
from typing import Any

import pytest

from ctseg.errors import InputError
from ctseg.train.dataset import DatasetDescription
from ctseg.train.description import number_ranges, read_declared
from ctseg.train.verify import verify_dataset
from tests.support.small_datasets import SOUND, labels, raw_dataset, write


def declared(folder: Path, content: dict[str, Any]) -> tuple[Any, list[tuple[str, str]]]:
    (folder / "dataset.json").write_text(json.dumps(content))
    found, problems = read_declared(folder / "dataset.json")
    return found, [(problem.kind, problem.message) for problem in problems]


def test_the_order_of_nnunet_v1_is_one_problem_with_the_labels_to_write(tmp_path: Path) -> None:
    dataset = raw_dataset(tmp_path, content={**SOUND, "labels": {"0": "background", "1": "tumor"}})
    assert [(problem.kind, problem.message) for problem in verify_dataset(dataset).problems] == [
        (
            "nnunet_v1",
            "dataset.json: labels are in the order of nnU-Net v1 and of the Decathlon, numbers first; v2 has the names "
            'first: write "labels": {"background": 0, "tumor": 1}',
        )
    ]


def test_every_word_of_the_decathlon_is_told_in_those_of_nnunet(tmp_path: Path) -> None:
    decathlon = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "Clear", "2": "TZ", "1": "PZ"},
        "training": [], "test": [],
    }  # fmt: skip
    found, told = declared(tmp_path, decathlon)
    assert (found.channel_names, found.labels) == (("T2", "ADC"), {"background": 0, "TZ": 2, "PZ": 1})
    assert told == [
        (
            "nnunet_v1",
            "dataset.json: 'modality' is the word of nnU-Net v1 and of the Decathlon: write "
            '"channel_names": {"0": "T2", "1": "ADC"}',
        ),
        (
            "nnunet_v1",
            "dataset.json: labels are in the order of nnU-Net v1 and of the Decathlon, numbers first; v2 has the names "
            'first: write "labels": {"background": 0, "TZ": 2, "PZ": 1}',
        ),
        ("num_training", "dataset.json: numTraining is missing: write the number of training cases"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["background", "tumor"]}, 'labels are a list: write "labels": {"background": 0, "tumor": 1}'),
        ({"labels": {"background": "0", "tumor": "1"}}, "labels are numbers in quotes: write"),
        ({"labels": {"background": 0, "tumor": "one"}}, "found tumor: 'one'"),
        ({"labels": {"Background": 0, "tumor": 1}}, "'background' must be 0, found 0 for 'Background': rename it"),
        ({"labels": 3}, "labels are 3: expected values by name"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, 'two labels have the same value: {"a": 1, "b": 1}'),
        ({"labels": {"background": 0, "tumor": 255}}, "consecutive from 0, found 0, 255: 1 to 254 missing"),
        ({"channel_names": ["CT"]}, 'channel_names are a list: write "channel_names": {"0": "CT"}'),
        ({"channel_names": {"CT": 0}}, "channel_names are {'CT': 0}: write their names by number"),
        ({"numTraining": "5"}, "numTraining is '5': write the number"),
        ({"dataset": {"a": "a.nii.gz"}}, 'dataset: expected {"case": {"images"'),
    ],
)
def test_what_is_in_another_form_is_one_problem(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, told = declared(tmp_path, {**SOUND, **change})
    assert len(told) == 1
    assert message in told[0][1]


def test_missing_entries_are_told_with_what_to_write(tmp_path: Path) -> None:
    dataset = raw_dataset(tmp_path, content={})
    text = str(verify_dataset(dataset))
    for part in (
        'channel_names are missing: write "channel_names": {"0": "CT"}',
        'labels are missing: write "labels": {"background": 0, …}',
        '\'file_ending\' is missing, and 10 of 10 files end in .nii.gz: write "file_ending": ".nii.gz"',
        "numTraining is missing",
    ):
        assert part in text
    assert "5 cases, 4 problems" in text


def test_python_gets_the_same_sentence_for_labels_that_are_turned_round() -> None:
    with pytest.raises(InputError, match="numbers first; v2 has the names first"):
        DatasetDescription(("CT",), {"0": "background", "1": "tumor"})  # type: ignore[dict-item]


def test_label_maps_of_nothing_but_background_are_told_by_name(tmp_path: Path) -> None:
    dataset = raw_dataset(tmp_path)
    for case in ("case1", "case3"):
        write(dataset / "labelsTr" / f"{case}.nii.gz", labels(0))
    report = verify_dataset(dataset, nnunet_check=False)
    assert report.problems == ()
    assert report.notes == (
        "2 label maps hold nothing but background: case1, case3; right where nothing is to be found",
    )


def test_a_label_that_no_case_has_is_noted_and_no_label_at_all_is_a_problem(tmp_path: Path) -> None:
    dataset = raw_dataset(tmp_path, content={**SOUND, "labels": {"background": 0, "tumor": 1, "node": 2}})
    report = verify_dataset(dataset, nnunet_check=False)
    assert report.problems == ()
    assert report.notes == ("no label map has node (2): a model learns nothing of what is never there",)
    for file in (dataset / "labelsTr").iterdir():
        write(file, labels(0))
    (problem,) = verify_dataset(dataset, nnunet_check=False).problems
    assert problem.message == (
        "no label map holds anything but background, and the data set has the labels tumor (1), node (2)"
    )


@pytest.mark.parametrize(("name", "noted"), [("CTT", True), ("CT_venous", True), ("ct", False), ("T1", False)])
def test_a_channel_called_nearly_as_ct_is_noted(tmp_path: Path, name: str, noted: bool) -> None:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    dataset = raw_dataset(tmp_path, content={**SOUND, "channel_names": {"0": name}})
    notes = verify_dataset(dataset, nnunet_check=False).notes
    assert (
        any(f"channel 0 is called {name!r}, so each image is normalised by its own mean" in n for n in notes) is noted
    )
    assert (get_normalization_scheme(name) is CTNormalization) is (name == "ct")


def test_what_is_long_and_unknown_is_cut_short(tmp_path: Path) -> None:
    dataset = raw_dataset(tmp_path, content={**SOUND, "labels": {"all": {str(i): f"rib_{i}" for i in range(99)}}})
    (message,) = {p.message for p in verify_dataset(dataset, nnunet_check=False).problems}
    assert message.startswith("dataset.json: labels need whole numbers, or lists of these, found all: {'0': 'rib_0', ")
    assert len(message) < 200


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('{"background": 0, "a": [[1]]}', "labels need whole numbers, or lists of these, found a: [[1]]"),
        ('{"background": 0, "a": 99999999999999999999}', "found 0, 99999999999999999999: 1 to 65534 missing"),
        ('{"background": 0, "a": -1, "b": 1}', "found -1 to 1: negative values are not allowed"),
        ('{"tumor": 1}', """label 'background' must be 0, found none: write "background": 0"""),
        ('{"background": 0, "a\\nb": 1}', "names of labels need letters that can be printed, found 'a\\nb'"),
        ('{"background": 0, "a": 1, "a": 2}', "not JSON: 'a' stands there twice, as 1 and as 2"),
    ],
)
def test_labels_of_any_kind_are_told_by_what_is_wrong(tmp_path: Path, labels: str, message: str) -> None:
    dataset = raw_dataset(tmp_path)
    text = json.dumps({**SOUND, "labels": "HERE"}).replace('"HERE"', labels)
    (dataset / "dataset.json").write_text(text)
    assert message in str(verify_dataset(dataset, nnunet_check=False))


def test_of_a_region_the_values_that_no_label_map_has_are_noted(tmp_path: Path) -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (note,) = verify_dataset(raw_dataset(tmp_path, content={**SOUND, **regions}), nnunet_check=False).notes
    assert note == "no label map has whole (2), core (2): a model learns nothing of what is never there"


def test_numbers_are_told_in_ranges() -> None:
    assert number_ranges([255, 3, 1, 2, 0, 7, 8]) == "0 to 3, 7, 8, 255"
    assert number_ranges(range(0, 40, 2)).endswith("22 and 8 more")
