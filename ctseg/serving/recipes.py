"""Recipes made of the models of a repository: members and their digests are looked up there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import SetupError, SpecError
from ctseg.files.codes import check_labels
from ctseg.files.regular import open_regular
from ctseg.model_spec import MAX_SPEC_BYTES, ModelSpec
from ctseg.presentation import LabelPresentation
from ctseg.recipe import RECIPE_NAME, SCHEMA_VERSION, Recipe
from ctseg.serving.entries import CONFIG_NAME, read_entry, read_recipe, require_model_name


def recipe_of(
    name: str,
    step: Mapping[str, Any],
    repository: Path,
    *,
    presentation: Mapping[str, Any] | None = None,
    codes: Mapping[str, LabelPresentation] | None = None,
) -> Recipe:
    """Return a recipe with the members that a step names, as they stand in a repository.

    Args:
        name: Of the recipe.
        step: Plain data, see :mod:`ctseg.recipe`.
        repository: Has the members; their newest versions are taken.
        presentation: How people and other systems call the labels, as plain data.
        codes: The same as a file of codes says it, which goes before.

    Raises:
        InputError: There are codes for labels that the result does not have.
        SetupError: A member is not there, or is a recipe itself.
        SpecError: The step is none, or does not fit the members.
    """
    specs = {model: spec_in(repository, model) for model in dict.fromkeys(_models_in(step))}
    members = [{"model": model, "digest": spec.digest} for model, spec in specs.items()]
    said = {**(presentation or {}), **{label: said.model_dump(mode="json") for label, said in (codes or {}).items()}}
    raw = {"schema_version": SCHEMA_VERSION, "name": name, "members": members, "step": step, "presentation": said}
    recipe = Recipe.from_json(json.dumps(raw), source=f"recipe {name}")
    recipe.check(specs)
    check_labels(codes or {}, recipe.labels(specs))
    return recipe


def read_step(path: Path) -> dict[str, Any]:
    """Read a recipe, or its step alone, that a person has written.

    Args:
        path: JSON; where it has a field ``step``, ``presentation`` may stand beside it, and a name and members, which
            are not looked at.

    Returns:
        ``step``, and ``presentation`` where there is one.

    Raises:
        SetupError: The file cannot be read.
        SpecError: It is no JSON object.
    """
    try:
        with open_regular(path) as file:
            text = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(text) > MAX_SPEC_BYTES:
        raise SpecError(f"{path}: more than {MAX_SPEC_BYTES} bytes, which no recipe has")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: the recipe is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    if "step" not in raw:
        return {"step": raw}
    known = {"schema_version", "name", "members", "step", "presentation"}
    if unknown := sorted(set(raw) - known):
        raise SpecError(f"{path}: {', '.join(unknown)}: no such field of a recipe")
    return {key: raw[key] for key in ("step", "presentation") if key in raw}


def union_of(models: Sequence[str], repository: Path) -> dict[str, Any]:
    """Return the step that puts all labels of several models into one map.

    Values are numbered from 1 on, in the order of the models and of their labels; a label of a name that came before
    gets the value that it has there. Where two models label a voxel, the later one stays.

    Args:
        models: Their names, in order.
        repository: Has them.

    Raises:
        SetupError: One is not there.
    """
    parts: list[dict[str, Any]] = []
    values_of: dict[str, tuple[int, ...]] = {}
    highest = 0
    for model in models:
        renamed: dict[int, int] = {}
        for name, values in spec_in(repository, model).named_values.items():
            if name in values_of and len(values_of[name]) == len(values):
                renamed.update(zip(values, values_of[name], strict=True))
                continue
            for value in values:
                if value not in renamed:
                    highest += 1
                    renamed[value] = highest
            values_of[name if name not in values_of else f"{model} {name}"] = tuple(renamed[value] for value in values)
        parts.append({"step": {"kind": "model", "model": model}, "values": renamed})
    labels = [{"name": name, "values": values} for name, values in values_of.items()]
    return {"kind": "union", "parts": parts, "labels": labels}


def values_named(labels: Sequence[str], spec: ModelSpec) -> list[int]:
    """Return the values of labels that are given by name or number.

    Raises:
        SetupError: The model has no such label.
    """
    values: set[int] = set()
    known = {value for named in spec.named_values.values() for value in named}
    for label in labels:
        if label in spec.named_values:
            values |= set(spec.named_values[label])
        elif label.isdigit() and int(label) in known:
            values.add(int(label))
        else:
            names = ", ".join(spec.named_values)
            raise SetupError(f"{spec.name} has no label {label!r}; it has {names}", settings=("labels",))
    return sorted(values)


def spec_in(repository: Path, model: str) -> ModelSpec:
    """Return the newest spec of a model of a repository.

    Raises:
        SetupError: It is not there, or is a recipe.
        SpecError: Its entry cannot be used.
    """
    require_model_name(model)
    folder = repository / model
    if not (folder / CONFIG_NAME).is_file():
        raise SetupError(f"{model} is not in {repository}: build it there first", settings=("repository",))
    if read_recipe(folder) is not None:
        raise SetupError(
            f"{model} is a recipe: only models are members; put its step, which is in {folder / RECIPE_NAME}, in place "
            "of its name"
        )
    return read_entry(folder).newest.spec


def _models_in(raw: Any) -> list[str]:
    """Return what plain data names as models, whatever else it is."""
    found: list[str] = []
    level = [raw]
    while level:
        following: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                found += [item[key] for key in ("previous", "model") if isinstance(item.get(key), str)]
                following += item.values()
            elif isinstance(item, list | tuple):
                following += item
        level = following
    return found
