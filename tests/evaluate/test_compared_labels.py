"""Where the names of labels come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from ctseg.errors import InputError, SpecError
from ctseg.evaluate.compared_labels import (
    ComparedLabels,
    labels_named_beside,
    labels_named_in,
    labels_of_dataset,
    labels_of_values,
    with_ignore_label,
)
from ctseg.predict.model_notes import ModelNote
from ctseg.predict.notes import write_note

DATASET: dict[str, Any] = {
    "labels": {"background": 0, "second": 2, "first": 1, "ignore": 3},
    "channel_names": {"0": "CT"},
    "file_ending": ".nii.gz",
    "overwrite_image_reader_writer": "NibabelIO",
}
DEMO = Path(__file__).parents[2] / "model_repository"


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_labels_of_a_data_set_are_in_nnunets_order_and_its_regions_in_their_own() -> None:
    plain = labels_of_dataset(DATASET, source="dataset.json")
    assert list(plain.values.items()) == [("first", (1,)), ("second", (2,))]
    assert (plain.keys, plain.ignore_label, plain.reader) == ({"first": "1", "second": "2"}, 3, "NibabelIO")
    regions = {"background": 0, "core": 2, "whole": [2, 1], "one": [1]}
    found = labels_of_dataset({"labels": regions}, source="dataset.json")
    assert list(found.values.items()) == [("core", (2,)), ("whole", (2, 1)), ("one", (1,))]
    assert found.keys == {"core": "2", "whole": "(2, 1)", "one": "(1,)"}


@pytest.mark.parametrize("model", ["sarcoma", "composition"])
def test_labels_of_a_model_come_from_its_entry_and_from_its_spec(model: str) -> None:
    folder = DEMO / model
    spec = json.loads((folder / "ctseg.json").read_text())
    expected = {label["name"]: tuple(label["values"]) for label in spec["labels"] if label["values"] != [0]}
    for path in (folder, folder / "ctseg.json"):
        assert labels_named_in(path).values == expected
    assert labels_named_in(folder).reader == spec["reader"]


def test_labels_come_from_a_folder_and_from_plans_with_a_data_set_beside_them(tmp_path: Path) -> None:
    write(tmp_path / "dataset.json", DATASET)
    plans = write(tmp_path / "plans.json", {"plans_name": "nnUNetPlans", "configurations": {}})
    for path in (tmp_path, tmp_path / "dataset.json", plans):
        assert list(labels_named_in(path).values) == ["first", "second"]


def test_file_that_names_no_labels_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected ctseg.json .* or dataset.json"):
        labels_named_in(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        labels_named_in(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SpecError, match=r"broken.json: is not JSON"):
        labels_named_in(tmp_path / "broken.json")
    for wrong in ({}, {"labels": {"a": "b"}}, {"labels": {"background": 0}}, {"labels": {"a": 1, "ignore": 1}}):
        with pytest.raises(InputError, match=r"expected labels as nnU-Net's dataset\.json has them"):
            labels_named_in(write(tmp_path / "wrong.json", wrong))
    with pytest.raises(InputError, match=r"an ignore label that is none of the labels that are compared, found 1 "):
        labels_of_values([1], 1)


@pytest.mark.parametrize("value", [-1, 65_536, 70_000])
def test_values_that_no_label_map_has_are_refused_wherever_they_are_named(tmp_path: Path, value: int) -> None:
    told = f"expected values from 0 to 65535, as label maps have them, found {value}: name values"
    for labels in ({"a": value}, {"a": 1, "b": [1, value]}, {"a": 1, "ignore": value}):
        with pytest.raises(InputError, match=rf"wrong\.json: .*{told}"):
            labels_named_in(write(tmp_path / "wrong.json", {"labels": labels}))
    for values, ignored in (([2, value], None), ([2], value)):
        with pytest.raises(InputError, match=told) as error:
            labels_of_values(values, ignored)
        assert error.value.settings == ("label_values", "ignore_label")
    with pytest.raises(InputError, match=told) as error:
        with_ignore_label(ComparedLabels({"a": (1,)}), value)
    assert error.value.settings == ("ignore_label",)
    if value < 0:
        return
    (tmp_path / "out" / ".ctseg" / "models").mkdir(parents=True)
    note = ModelNote(name="m", labels={"a": (value,)}, channels=("CT",))
    write_note(tmp_path / "out" / ".ctseg" / "models" / f"{'a' * 64}.json", note)
    with pytest.raises(InputError, match=f"out: the model that wrote its label maps: {told}"):
        labels_named_beside(tmp_path / "out", tmp_path / "references")


def test_highest_and_lowest_value_of_a_label_map_can_be_compared() -> None:
    assert labels_of_values([0, 65_534], 65_535).values == {"0": (0,), "65534": (65_534,)}
    assert with_ignore_label(ComparedLabels({"a": (1,)}), 0).ignore_label == 0


def test_data_set_beside_the_references_comes_before_the_model_that_wrote_the_label_maps(tmp_path: Path) -> None:
    references, labels = tmp_path / "data" / "labelsTr", tmp_path / "out"
    for folder in (references, labels):
        folder.mkdir(parents=True)
    assert labels_named_beside(labels, references) is None
    notes = labels / ".ctseg" / "models"
    write_note(notes / "one.json", ModelNote(channels=("CT",), labels={"liver": (1,)}))
    write_note(notes / "two.json", ModelNote(channels=("CT",), labels={"liver": (1,)}))  # a newer version of it
    assert labels_named_beside(labels, references) == ComparedLabels({"liver": (1,)})
    write_note(notes / "three.json", ModelNote(channels=("CT",), labels={"spleen": (1,)}))
    assert labels_named_beside(labels, references) is None
    write(references.parent / "dataset.json", DATASET)
    found = labels_named_beside(labels, references)
    assert found is not None
    assert list(found.values) == ["first", "second"]
