"""Recipes: what is read, what is refused, and what they mean for their members."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from ctseg.errors import SpecError
from ctseg.model_spec import MAX_SPEC_BYTES, ModelSpec
from ctseg.presentation import LabelPresentation
from ctseg.recipe import MAX_DEPTH, Recipe
from tests.support.toy_models import toy_spec

ORGANS = toy_spec("organs")
BONES = toy_spec("bones")
SECOND = toy_spec(
    "second",
    previous_stage={
        "model": "organs",
        "digest": ORGANS.digest,
        "labels": [1, 2],
        "resampling": {"function": "resample_data_or_seg_to_shape"},
    },
)
SPECS = {spec.name: spec for spec in (ORGANS, BONES, SECOND)}

ONE = {"kind": "model", "model": "organs"}
OTHER = {"kind": "model", "model": "bones"}
CASCADE = {"kind": "cascade", "previous": "organs", "model": "second"}
ENSEMBLE = {
    "kind": "ensemble",
    "members": [CASCADE, OTHER],
    "postprocessing": [{"kind": "keep_largest", "labels": [1]}],
}
CROP = {"kind": "crop", "finder": ONE, "labels": [1], "margin_mm": 20, "inside": OTHER, "nothing_found": "empty"}
UNION = {
    "kind": "union",
    "parts": [{"step": ONE, "values": {"1": 300}}, {"step": OTHER, "values": {"1": 7, "2": 8}}],
    "labels": [{"name": "liver", "values": [300]}, {"name": "bone", "values": [7, 8]}],
}


def raw(step: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    names = sorted({name for name in SPECS if f'"{name}"' in json.dumps(step)})
    members = [{"model": name, "digest": SPECS[name].digest} for name in names]
    return {"schema_version": 1, "name": "together", "members": members, "step": step, **changes}


def recipe(step: Mapping[str, Any], **changes: Any) -> Recipe:
    return Recipe.from_json(json.dumps(raw(step, **changes)), source="f")


@pytest.mark.parametrize("step", [ONE, CASCADE, ENSEMBLE, CROP, UNION, {**CROP, "finder": CASCADE, "inside": UNION}])
def test_a_recipe_is_read_as_it_was_written(step: Mapping[str, Any]) -> None:
    found = recipe(step)
    found.check(SPECS)
    assert Recipe.from_json(found.to_json(), source="f") == found
    assert found.to_json() == json.dumps(json.loads(found.to_json()), sort_keys=True, separators=(",", ":"))


def test_the_digest_is_of_what_changes_labels() -> None:
    found = recipe(UNION)
    assert recipe(UNION, presentation={"liver": {"colour": [1, 2, 3]}}).digest == found.digest
    assert recipe({**UNION, "parts": UNION["parts"][::-1]}).digest != found.digest
    other = [{"model": "bones", "digest": "0" * 64}, {"model": "organs", "digest": ORGANS.digest}]
    assert recipe(UNION, members=other).digest != found.digest


def test_labels_are_those_of_the_result() -> None:
    assert recipe(CROP).labels(SPECS) == BONES.named_values
    assert recipe(CASCADE).labels(SPECS) == SECOND.named_values
    assert recipe(ENSEMBLE).labels(SPECS) == SECOND.named_values
    assert recipe(UNION).labels(SPECS) == {"liver": (300,), "bone": (7, 8)}


@pytest.mark.parametrize(
    ("step", "changes", "told"),
    [
        (ONE, {"schema_version": 2}, "recipe schema_version 2 is unknown"),
        (ONE, {"schema_version": True}, "recipe schema_version True is unknown"),
        (ONE, {"colour": "red"}, "colour: Extra inputs"),
        (ONE, {"name": "organs"}, "has the name of its member"),
        (ONE, {"name": "../x"}, "name:"),
        (ONE, {"members": []}, "members"),
        (ONE, {"members": [{"model": "bones", "digest": "0" * 64}]}, "members that the steps name, ['organs']"),
        (ONE, {"members": [{"model": "organs", "digest": "0" * 64}] * 2}, "members ['organs'] stand there twice"),
        ({"kind": "vote", "model": "organs"}, {}, "step: Input tag 'vote'"),
        ({**ENSEMBLE, "members": [ONE]}, {}, "at least 2"),
        ({**ENSEMBLE, "members": [ONE, CROP]}, {}, "Input tag 'crop'"),
        ({**CROP, "margin_mm": -1}, {}, "margin_mm"),
        ({**CROP, "nothing_found": "guess"}, {}, "nothing_found"),
        ({**CROP, "labels": []}, {}, "labels"),
        ({**UNION, "labels": UNION["labels"][:1]}, {}, "values [7, 8] of the union have no name"),
        ({**UNION, "labels": [*UNION["labels"], {"name": "lung", "values": [5]}]}, {}, "values [5] that no part"),
        ({**UNION, "parts": [{"step": ONE, "values": {"1": 0}}]}, {}, "expected values from 1 to 65535, found [0]"),
        ({**UNION, "parts": [{"step": ONE, "values": {"1": 65_536}}]}, {}, "found [65536]"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(step: Mapping[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        recipe(step, **changes)
    assert told in str(caught.value)
    assert str(caught.value).startswith("f: ")


def test_steps_that_are_nested_too_deep_are_refused() -> None:
    step: Mapping[str, Any] = ONE
    for _ in range(MAX_DEPTH - 1):
        step = {**CROP, "finder": step}
    recipe(step).check(SPECS)
    with pytest.raises(SpecError, match=f"more than {MAX_DEPTH} deep"):
        recipe({**CROP, "finder": step})


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "x" * (MAX_SPEC_BYTES + 1)])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^f: "):
        Recipe.from_json(text, source="f")


REGIONS = {
    "labels": [{"name": "whole", "values": [1, 2]}, {"name": "core", "values": [2]}],
    "regions_class_order": [1, 2],
}


@pytest.mark.parametrize(
    ("step", "specs", "told"),
    [
        (ONE, {"organs": toy_spec("organs", max_batch_size=9)}, "expected the member organs with the spec"),
        ({"kind": "model", "model": "second"}, {}, "second is the second stage of a cascade"),
        ({**CASCADE, "previous": "bones"}, {}, "second was built after organs with the spec"),
        ({**CASCADE, "model": "bones"}, {}, "bones is no second stage"),
        ({"kind": "cascade", "previous": "second", "model": "organs"}, {}, "second is a second stage itself"),
        ({**CROP, "labels": [9]}, {}, "the finder of a crop gives [1, 2], and not [9]"),
        ({**UNION, "parts": [{"step": ONE, "values": {"9": 300, "1": 7, "2": 8}}]}, {}, "takes values [9] of organs"),
        ({**ENSEMBLE, "postprocessing": [{"kind": "keep_largest", "labels": [5]}]}, {}, "names labels [5]"),
        ({"kind": "ensemble", "members": [ONE, OTHER]}, {"bones": REGIONS}, "members of the same labels"),
        (UNION, {"bones": {"reader": "NibabelIO"}}, "the same scans, found reader NibabelIO of bones and SimpleITKIO"),
        (UNION, {"bones": {"file_ending": ".nrrd"}}, "found file ending .nrrd of bones"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_members_is_refused(step: Mapping[str, Any], specs: dict[str, Any], told: str) -> None:
    changed = {name: spec if isinstance(spec, ModelSpec) else toy_spec(name, **spec) for name, spec in specs.items()}
    found = {**SPECS, **changed}
    members = [
        {"model": name, "digest": SPECS[name].digest if isinstance(specs.get(name), ModelSpec) else found[name].digest}
        for name in (item["model"] for item in raw(step)["members"])
    ]
    with pytest.raises(SpecError) as caught:
        recipe(step, members=members).check(found)
    assert told in str(caught.value)
    assert str(caught.value).startswith("together: ")


def test_labels_of_a_recipe_are_called_as_it_says_itself_else_as_the_model_does_that_gives_them() -> None:
    red, green = {"colour": (255, 0, 0)}, LabelPresentation(colour=(0, 255, 0))
    said = {"presentation": {"liver": green, "tumour": green}}
    specs = {name: spec.model_copy(update=said) for name, spec in SPECS.items()}
    for step in (ONE, CASCADE, ENSEMBLE, CROP):
        found = recipe(step, presentation={"liver": red}).presentations(specs)
        assert found == {"liver": LabelPresentation(**red), "tumour": green}
    assert recipe(UNION).presentations(specs) == {}  # its names are its own
    assert recipe(UNION, presentation={"bone": red}).presentations(specs) == {"bone": LabelPresentation(**red)}


def test_volumes_of_the_training_set_are_a_members_where_the_recipe_has_codes_alone() -> None:
    red, volumes = {"colour": (255, 0, 0)}, (1.0, 2.0, 3.0)
    said = {"presentation": {"liver": LabelPresentation(display_name="L", training_volumes_ml=volumes)}}
    specs = {name: spec.model_copy(update=said) for name, spec in SPECS.items()}
    assert recipe(ONE, presentation={"liver": red}).presentations(specs) == {
        "liver": LabelPresentation(**red, training_volumes_ml=volumes)
    }
    own = {"training_volumes_ml": (4.0, 5.0, 6.0)}
    found = recipe(ONE, presentation={"liver": own}).presentations(specs)
    assert found == {"liver": LabelPresentation(training_volumes_ml=(4.0, 5.0, 6.0))}
