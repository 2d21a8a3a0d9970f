"""A server sees links to what it can load, and nothing else."""

from pathlib import Path

import pytest

from ctseg.container.view import names_in, served_view
from ctseg.recipe import Recipe
from ctseg.serving.entries import list_entries, list_recipes
from ctseg.serving.recipe_entry import publish_recipe
from tests.support.container_entries import L4, OLD, RTX, built
from tests.support.toy_models import toy_spec, write_toy_entry
from tests.support.whole_scans import write_scannable_entry


def seen(view: Path, name: str = "m") -> list[str]:
    return sorted(path.name for path in (view / name).iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("builds", "fitting", "served"),
    [
        ([L4, L4, L4], None, ["2", "3"]),
        ([OLD, L4], None, ["2"]),  # a plan of another TensorRT would end the server
        ([L4, RTX], 1, ["1"]),
        ([L4, RTX], 2, ["2"]),
        ([L4, RTX, L4], 3, ["3"]),
    ],
)
def test_a_server_sees_the_plans_for_its_machine(
    tmp_path: Path, builds: list[dict[str, str]], fitting: int | None, served: list[str]
) -> None:
    entries = [built(tmp_path / "models", *builds)]
    known = {} if fitting is None else {"m": fitting}
    for grows in (False, True):
        assert seen(served_view(entries, tmp_path / "view", known, grows=grows)) == (
            served if not grows or len(served) < 2 else ["1", "2", "3"]
        )
        assert (tmp_path / "view" / "m" / "config.pbtxt").read_text() == "x"


def test_the_view_holds_models_only_and_under_model_control_their_later_versions(tmp_path: Path) -> None:
    (tmp_path / "models" / "lost+found").mkdir(parents=True)
    entries = [built(tmp_path / "models", L4, L4)]
    for grows, expected in ((False, ["1", "2"]), (True, ["1", "2", "3"])):
        view = served_view(entries, tmp_path / "view", {}, grows=grows)
        assert [path.name for path in view.iterdir()] == ["m"]
        (tmp_path / "models" / "m" / "3").mkdir(exist_ok=True)
        assert seen(view) == expected


def test_recipes_are_seen_whole(tmp_path: Path) -> None:
    root = tmp_path / "models"
    spec = write_toy_entry(root, toy_spec("m"))
    step = {"kind": "model", "model": "m"}
    recipe = Recipe.model_validate({"name": "r", "members": [{"model": "m", "digest": spec.digest}], "step": step})
    publish_recipe(root, recipe)
    recipes, entries = list_recipes(root), list_entries(root)
    assert [(item.name, item.version, item.recipe) for item in recipes] == [("r", 1, recipe)]
    assert [entry.name for entry in entries] == ["m"]
    view = served_view(entries, tmp_path / "view", {}, recipes)
    assert sorted(path.name for path in view.iterdir()) == ["m", "r"]
    assert (view / "r" / "1" / "model.py").is_file()


@pytest.mark.parametrize("grows", [False, True])
def test_whole_scans_are_served_by_the_versions_whose_networks_are(tmp_path: Path, grows: bool) -> None:
    root = tmp_path / "models"
    for number in (1, 2, 3):
        write_scannable_entry(root, toy_spec("m"), version=number)
    write_toy_entry(root, toy_spec("m"), version=4)
    write_toy_entry(root, toy_spec("patches"))
    write_scannable_entry(root, toy_spec("gone"))
    entries = [entry for entry in list_entries(root) if entry.name != "gone"]
    view = served_view(entries, tmp_path / "view", {}, grows=grows)
    assert names_in(view) == ["m", "m_scan", "patches"]
    assert (seen(view), seen(view, "m_scan")) == (
        (["1", "2", "3", "4"], ["1", "2", "3"]) if grows else (["3", "4"], ["3"])
    )
    assert "ctseg_scan.3" in (view / "m_scan" / "config.pbtxt").read_text()
    assert seen(served_view(entries, view, {"m": 1}), "m_scan") == ["1"]
