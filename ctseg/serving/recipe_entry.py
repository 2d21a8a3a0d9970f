"""A recipe as an entry of a Triton model repository, of its own name: what carries it to every client."""

import json
import shutil
from pathlib import Path

from ctseg.errors import SpecError
from ctseg.files import atomic
from ctseg.files.atomic import bring_to_disk
from ctseg.model_spec import MAX_SPEC_BYTES
from ctseg.recipe import RECIPE_NAME, Recipe
from ctseg.serving.entries import (
    BUILD_NAME,
    CONFIG_NAME,
    member_versions,
    next_version,
    read_config,
    read_recipe,
    versions_on_disk,
)
from ctseg.serving.publish import VERSIONS_SERVED
from ctseg.serving.writing import pretty_json, staging, writing
from ctseg.triton.configuration import ModelConfig, recipe_parameter, text_from_config

RECIPE_MODEL = Path(__file__).parent / "python_backend" / "recipe.py"


def publish_recipe(repository: Path, recipe: Recipe) -> int:
    """Write a recipe into a Triton model repository, as its next version; the newest one that says the same stays.

    Its members have to be there, with the specs that it names. A server that watches the repository never sees half an
    entry. Several writers take turns (file lock).

    Args:
        repository: Folder of the repository.
        recipe: The recipe.

    Returns:
        Its version.

    Raises:
        SpecError: A member is not there, or is another model; the name is in use for a model; or the recipe is too
            large.
        SetupError: Another writer holds the lock for ten minutes.
        OutputError: The repository cannot be written; nothing half-written is left.
    """
    text = recipe.to_json()
    if len(text) > MAX_SPEC_BYTES:
        raise SpecError(f"{recipe.name}: the recipe has {len(text)} bytes, Triton carries at most {MAX_SPEC_BYTES}")
    folder = repository / recipe.name
    with writing(repository, recipe.name):
        member_versions(repository, recipe)
        known = _known(folder)
        if known is not None and known[0] == recipe:
            return known[1]
        number = next_version(repository, recipe.name)
        config = _configuration(folder, recipe, number)
        with staging(repository) as staged:
            version_folder = staged / str(number)
            version_folder.mkdir()
            shutil.copyfile(RECIPE_MODEL, version_folder / "model.py")
            (version_folder / BUILD_NAME).write_text(pretty_json({"recipe_digest": recipe.digest}), encoding="utf-8")
            bring_to_disk(version_folder)
            if known is None:
                _write_head(staged, config, recipe)
                staged.rename(folder)
            else:
                _write_head(folder, config, recipe)
                version_folder.rename(folder / str(number))
    return number


def _known(folder: Path) -> tuple[Recipe, int] | None:
    if not folder.exists():
        return None
    if (known := read_recipe(folder)) is None:
        raise SpecError(f"{folder.name}: {folder} is a model: take another name for the recipe")
    return known


def _configuration(folder: Path, recipe: Recipe, number: int) -> ModelConfig:
    config = ModelConfig(name=recipe.name, backend="python", max_batch_size=0)
    config.version_policy.latest.num_versions = VERSIONS_SERVED
    config.instance_group.add(count=1, kind="KIND_CPU")
    config.input.add(name="voxels", data_type="TYPE_INT16", dims=[-1, -1, -1, -1])
    config.output.add(name="labels", data_type="TYPE_UINT8", dims=[-1, -1, -1])
    if folder.exists():
        old = read_config(folder)
        for version in versions_on_disk(folder):
            key = recipe_parameter(version)
            if key in old.parameters:
                config.parameters[key].string_value = old.parameters[key].string_value
    config.parameters[recipe_parameter(number)].string_value = recipe.to_json()
    return config


def _write_head(folder: Path, config: ModelConfig, recipe: Recipe) -> None:
    atomic.write_text(folder / RECIPE_NAME, pretty_json(json.loads(recipe.to_json())))
    atomic.write_text(folder / CONFIG_NAME, text_from_config(config))
