"""The command ``recipe``."""

import json
from pathlib import Path

import pytest

from ctseg.cli.main import main
from ctseg.recipe import Recipe
from ctseg.serving.entries import read_recipe
from tests.support.toy_models import toy_spec, write_toy_entry

OTHERS = (
    {"name": "background", "values": (0,)},
    {"name": "liver", "values": (1,)},
    {"name": "rib", "values": (2,)},
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for spec in (toy_spec("organs"), toy_spec("bones", labels=OTHERS), toy_spec("twin")):
        write_toy_entry(root, spec)
    return root


def written(repository: Path, *words: str) -> Recipe:
    assert main(["recipe", "-m", "together", "--repository", str(repository), *words]) == 0
    found = read_recipe(repository / "together")
    assert found is not None
    return found[0]


def test_a_union_names_every_label_once(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = written(repository, "--union", "organs", "bones")
    assert capsys.readouterr().out == f"{repository / 'together'}: version 1, union of organs, bones\n"
    step = recipe.step.model_dump()
    assert [part["values"] for part in step["parts"]] == [{1: 1, 2: 2}, {1: 1, 2: 3}]
    assert {label["name"]: label["values"] for label in step["labels"]} == {"liver": (1,), "tumour": (2,), "rib": (3,)}


def test_an_ensemble_and_a_crop_are_written(repository: Path) -> None:
    assert written(repository, "--ensemble", "organs", "twin").step.kind == "ensemble"
    crop = written(repository, "--crop", "organs", "bones", "--labels", "tumour", "--margin_mm", "20").step
    assert crop.model_dump(mode="json") == {
        "kind": "crop", "finder": {"kind": "model", "model": "organs"}, "labels": [2], "margin_mm": 20.0,
        "inside": {"kind": "model", "model": "bones"}, "nothing_found": "empty",
    }  # fmt: skip


def test_a_file_may_hold_a_whole_recipe_or_its_step(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    step = {"kind": "model", "model": "organs"}
    path.write_text(json.dumps(step))
    assert written(repository, "--file", str(path)).step.kind == "model"
    path.write_text(json.dumps({"step": step, "presentation": {"liver": {"display_name": "Liver"}}}))
    recipe = written(repository, "--file", str(path))
    assert recipe.presentation["liver"].display_name == "Liver"
    path.write_text(recipe.to_json())
    assert written(repository, "--file", str(path)) == recipe


def test_a_file_of_codes_goes_into_the_recipe_and_not_into_its_digest(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "codes.csv"
    path.write_text('Structure,DicomRGBColor\nrib,"230,210,180"\n')
    plain = written(repository, "--union", "organs", "bones")
    recipe = written(repository, "--union", "organs", "bones", "--codes", str(path))
    assert recipe.presentation["rib"].colour == (230, 210, 180)
    assert recipe.digest == plain.digest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ensemble", "organs", "bones"), "SpecError: together: an ensemble needs members of the same labels"),
        (("--union", "organs", "nowhere"), "SetupError: nowhere is not in "),
        (("--union", "../organs", "organs"), "SetupError: '../organs' is no name of a model"),
        (("--crop", "organs", "bones"), "a crop needs the labels of organs whose box counts (see --labels)"),
        (("--crop", "organs", "bones", "--labels", "rib"), "organs has no label 'rib'; it has liver, tumour"),
        (("--cascade", "organs", "bones"), "SpecError: together: bones is no second stage of a cascade"),
        (("--ensemble", "organs"), "SpecError: recipe together: "),
        (("--union", "organs", "bones", "--margin_mm", "0"), "SetupError: only a crop has margin_mm (see --margin_mm)"),
        (("--ensemble", "organs", "twin", "--postprocess_previous"), "only a cascade has postprocess_previous"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_written(
    words: tuple[str, ...], told: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "-m", "together", "--repository", str(repository), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (repository / "together").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"step": {}, "colour": 1}', '{"step": {"kind": "x"}}', "[" * 10**6])
def test_a_file_that_is_no_recipe_is_refused(
    text: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    assert main(["recipe", "-m", "together", "--repository", str(repository), "--file", str(path)]) == 2
    assert "SpecError: " in capsys.readouterr().err


def test_a_recipe_is_no_member_of_another_one(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(repository, "--ensemble", "organs", "twin")
    assert main(["recipe", "-m", "more", "--repository", str(repository), "--union", "together", "bones"]) == 2
    told = f"together is a recipe: only models are members; put its step, which is in {repository / 'together'}"
    assert told in capsys.readouterr().err


def test_a_misspelled_field_is_told_and_nothing_that_follows_from_it(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.json"
    part = {"step": {"kind": "model", "model": "organs"}, "value": {"1": 1}}
    path.write_text(json.dumps({"kind": "union", "parts": [part], "labels": [{"name": "liver", "values": [1]}]}))
    assert main(["recipe", "-m", "together", "--repository", str(repository), "--file", str(path)]) == 2
    wrong = "step.union.parts.0"
    assert capsys.readouterr().err == (
        f"SpecError: recipe together: {wrong}.values: Field required; {wrong}.value: Extra inputs are not permitted\n"
    )
