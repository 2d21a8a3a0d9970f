"""The bundle of a recipe: what ``ctseg export`` writes of a cascade or an ensemble, and ``ctseg build`` reads.

``ctseg_recipe.json`` names the members as they were exported, ``recipe_parity.json`` says what came of the recipe as a
whole; each member is a bundle of its own, in a folder of its model's name.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ctseg.deploy.bundle import Bundle, read_bundle
from ctseg.documents import Document, told_by
from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.recipe import RECIPE_NAME, CascadeStep, Recipe, Step, models_of, steps_within

RECIPE_PARITY_NAME = "recipe_parity.json"


class WholeCheck(Document):
    """What came of a recipe as a whole, on one case.

    Attributes:
        what: What ran, for people.
        source: Where the case comes from; names no patient.
        voxels: Of the case.
        differing: Voxels whose label differs from PyTorch's.
        dice: With PyTorch's, by the label's name.
        first_stages: Voxels in which the label map of a cascade's first stage differs, by its name: the second stage
            stands on it.
        problems: Why it fails; none where it passes.
    """

    what: str
    source: str
    voxels: int
    differing: int
    dice: Mapping[str, float]
    first_stages: Mapping[str, int] = {}
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        share, lowest = self.differing / max(1, self.voxels), min(self.dice.values(), default=1.0)
        firsts = "".join(
            f"; of its first stage {name} {count} of {self.voxels} voxels" for name, count in self.first_stages.items()
        )
        return f"{share:.4%} of the labels differ, Dice >= {lowest:.5f}{firsts}"


class RecipeParity(Document):
    """``recipe_parity.json``.

    Attributes:
        checks: One for each case.
        created: When.
    """

    schema_version: int = 1
    checks: tuple[WholeCheck, ...] = ()
    created: str = ""


@dataclass(frozen=True)
class RecipeBundle:
    """A recipe's bundle on disk.

    Attributes:
        folder: Where it lies.
        recipe: With the digests of the members as exported.
        members: Their bundles by name, a first stage before its second.
        parity: What came of it as a whole.
    """

    folder: Path
    recipe: Recipe
    members: Mapping[str, Bundle]
    parity: RecipeParity


def is_recipe_bundle(folder: Path) -> bool:
    """Whether a folder is the bundle of a recipe."""
    return (folder / RECIPE_NAME).is_file()


def read_recipe_bundle(folder: Path) -> RecipeBundle:
    """Read the bundle of a recipe.

    Raises:
        SpecError: A file is missing or broken, or a member is another model than the recipe's.
    """
    try:
        recipe = Recipe.from_json((folder / RECIPE_NAME).read_bytes(), source=str(folder / RECIPE_NAME))
        parity = RecipeParity.model_validate_json((folder / RECIPE_PARITY_NAME).read_bytes())
    except OSError as error:
        raise SpecError(
            f"{folder}: {error.filename} cannot be read ({error.strerror}): export the models again"
        ) from error
    except ValidationError as error:
        raise SpecError(f"{folder / RECIPE_PARITY_NAME}: {told_by(error, whole='file')}: export again") from error
    members = {name: read_bundle(folder / name) for name in dict.fromkeys(first_stages_first(recipe.step))}
    recipe.check({name: bundle.spec for name, bundle in members.items()})
    return RecipeBundle(folder, recipe, members, parity)


def write_recipe(folder: Path, recipe: Recipe, parity: RecipeParity) -> None:
    """Write what stands beside the members' bundles."""
    (folder / RECIPE_NAME).write_text(json.dumps(json.loads(recipe.to_json()), indent=2) + "\n", encoding="utf-8")
    (folder / RECIPE_PARITY_NAME).write_text(parity.model_dump_json(indent=2) + "\n", encoding="utf-8")


def first_stages_first(step: Step) -> Iterator[str]:
    """Yield the models of a step, a cascade's first stage before its second; one may come several times."""
    if isinstance(step, CascadeStep):
        yield from (step.previous, step.model)
    elif inner := steps_within(step):
        for each in inner:
            yield from first_stages_first(each)
    else:
        yield from models_of(step)


def with_digests(recipe: Recipe, specs: Mapping[str, ModelSpec], *, name: str | None = None) -> Recipe:
    """Return a recipe with other digests of its members, such as those of what was built.

    Args:
        recipe: The recipe.
        specs: Of all members, by name.
        name: Its new name; None keeps it.
    """
    members: Sequence[dict[str, str]] = [
        {"model": member.model, "digest": specs[member.model].digest} for member in recipe.members
    ]
    return Recipe.model_validate({**recipe.model_dump(), "name": name or recipe.name, "members": members})
