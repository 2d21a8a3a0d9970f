"""A recipe as an entry of a Triton model repository, of its own name: what carries it to every client."""

import json
from pathlib import Path

from ctseg.errors import SpecError
from ctseg.files import atomic
from ctseg.model_spec import MAX_SPEC_BYTES
from ctseg.predict.contract import ScanContract
from ctseg.predict.recipe_segmenter import contract_of_recipe
from ctseg.predict.whole_scan import require_usable_name
from ctseg.recipe import RECIPE_NAME, Recipe
from ctseg.serving.entries import (
    CONFIG_NAME,
    member_versions,
    next_version,
    read_config,
    read_recipe,
    versions_on_disk,
)
from ctseg.serving.scan_entry import add_scan_tensors, renew_scan_version, write_scan_version
from ctseg.serving.writing import pretty_json, staging, writing
from ctseg.triton.configuration import ModelConfig, recipe_parameter, scan_parameter, text_from_config


def publish_recipe(repository: Path, recipe: Recipe) -> int:
    """Write a recipe into a Triton model repository, as its next version; a newest one that says the same stays.

    Its entry takes whole scans itself.

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
    require_usable_name(recipe.name)
    text = recipe.to_json()
    if len(text) > MAX_SPEC_BYTES:
        raise SpecError(f"{recipe.name}: the recipe has {len(text)} bytes, Triton carries at most {MAX_SPEC_BYTES}")
    folder = repository / recipe.name
    with writing(repository, recipe.name):
        members = member_versions(repository, recipe)
        contract = contract_of_recipe(recipe, {name: item.spec for name, item in members.items()})
        known = _known(folder)
        if known is not None and known[0] == recipe and scan_parameter(known[1]) in read_config(folder).parameters:
            renew_scan_version(folder / str(known[1]), recipe.digest)
            return known[1]
        number = next_version(repository, recipe.name)
        config = _configuration(folder, recipe, number, contract)
        with staging(repository) as staged:
            version_folder = staged / str(number)
            write_scan_version(version_folder, recipe.digest)
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


def _configuration(folder: Path, recipe: Recipe, number: int, contract: ScanContract) -> ModelConfig:
    config = ModelConfig(name=recipe.name)
    add_scan_tensors(config, contract, number)
    if folder.exists():
        old = read_config(folder)
        for version in versions_on_disk(folder):
            for key in (recipe_parameter(version), scan_parameter(version)):
                if key in old.parameters:
                    config.parameters[key].string_value = old.parameters[key].string_value
    config.parameters[recipe_parameter(number)].string_value = recipe.to_json()
    return config


def _write_head(folder: Path, config: ModelConfig, recipe: Recipe) -> None:
    atomic.write_text(folder / RECIPE_NAME, pretty_json(json.loads(recipe.to_json())))
    atomic.write_text(folder / CONFIG_NAME, text_from_config(config))
