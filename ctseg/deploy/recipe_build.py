"""From the bundle of a recipe to entries of a Triton model repository: its members, then the recipe."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ctseg.deploy.build import build_entry
from ctseg.deploy.build_job import BuildOptions
from ctseg.deploy.network_predictor import exact_predictor
from ctseg.deploy.phantom import phantom_volume
from ctseg.deploy.recipe_bundle import RecipeBundle, read_recipe_bundle, with_digests
from ctseg.deploy.whole import check_whole
from ctseg.errors import ParityError, SetupError
from ctseg.recipe import Recipe
from ctseg.runs.model import ServedModel, opened_members
from ctseg.serving.entries import Entry
from ctseg.serving.recipe_entry import publish_recipe
from ctseg.stages import stage

_log = logging.getLogger(__name__)


def build_recipe(
    bundle_folder: Path,
    repository: Path,
    options: BuildOptions,
    *,
    report: Callable[[str], None] = _log.info,
    build: Callable[..., Entry] = build_entry,
) -> tuple[Recipe, int]:
    """Build all members of a recipe, first stages first, and write the recipe with what was built.

    Args:
        bundle_folder: What ``ctseg export`` wrote of a cascade or an ensemble; only read.
        repository: Triton's model repository.
        options: How each member is built; the name is the recipe's, and versions are the next free ones.
        report: Takes lines that say how it goes.
        build: Builds one member.

    Returns:
        The recipe as it was written, and its version.

    Raises:
        SetupError: A version was asked for; or see :func:`ctseg.deploy.build.build_entry`.
        SpecError: The bundle is broken; or see there.
        ParityError: See there; or all members together do not give the labels of the bundle's FP32 networks.
        OutputError: The repository cannot be written.
    """
    if options.version is not None:
        raise SetupError(
            f"{bundle_folder}: the members of a recipe get the next free version each: leave it out",
            settings=("version",),
        )
    bundle = read_recipe_bundle(bundle_folder)
    specs = {}
    for name, member in bundle.members.items():
        report(f"{name}:")
        entry = build(member.folder, repository, replace(options, name=None), report=report)
        specs[name] = entry.newest.spec
    recipe = with_digests(bundle.recipe, specs, name=options.name)
    recipe.check(specs)
    if options.prove_live:
        _prove_live(bundle, recipe, repository, accept_unproven=options.accept_unproven, report=report)
    return recipe, publish_recipe(repository, recipe)


def _prove_live(
    bundle: RecipeBundle, recipe: Recipe, repository: Path, *, accept_unproven: bool, report: Callable[[str], None]
) -> None:
    """Compare all members together, on a live server, with the bundle's FP32 networks, on a phantom."""
    proven = {name: exact_predictor(member.folder, member.spec) for name, member in bundle.members.items()}
    volume = phantom_volume(next(iter(proven.values())).spec)
    with (
        stage("all members together, on a live server"),
        opened_members(ServedModel(recipe.name, repository=repository), recipe) as served,
    ):
        check = check_whole(
            recipe, served, proven, volume, what="a live server", source="the phantom", may_be_empty=True
        )  # fmt: skip
    report(f"  {recipe.name} as a whole, on a live server, the phantom: {check}")
    if check.problems and not accept_unproven:
        raise ParityError(
            f"{recipe.name}: its members together do not give the labels of the bundle's FP32 networks: "
            f"{'; '.join(check.problems)}",
            settings=("accept_unproven",),
        )
