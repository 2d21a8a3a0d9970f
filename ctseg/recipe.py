"""Recipe: what several models do together, as frozen plain data.

A recipe is a tree of steps; each gives a label map on the grid of the scan. Its members are models, named once with the
digest of their specs, so that a recipe means one thing for good. It travels as a spec does: JSON, in the ``parameters``
of a Triton entry of its own name. What is said here without the members' specs is checked when it is read;
:meth:`Recipe.check` looks at the rest.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ctseg.documents import Document, canonical, told_by
from ctseg.errors import SpecError
from ctseg.model_spec import MAX_SPEC_BYTES, MODEL_NAME_PATTERN, KeepLargest, Label, ModelSpec
from ctseg.presentation import LabelPresentation

SCHEMA_VERSION = 1
RECIPE_NAME = "ctseg_recipe.json"
"""Name of a recipe's file, in a bundle and in a model repository."""
MAX_DEPTH = 8
"""Steps within steps."""
MAX_LABEL = 65_535

ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=128)]


class Member(Document):
    """A model that takes part.

    Attributes:
        model: Its name in the Triton repository.
        digest: Of its spec.
    """

    model: ModelName
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelStep(Document):
    """One model by itself."""

    kind: Literal["model"] = "model"
    model: ModelName


class CascadeStep(Document):
    """nnU-Net's cascade: the second stage sees the label map of the first.

    Attributes:
        previous: The first stage.
        model: The second stage, whose spec names the first.
        postprocess_previous: Whether the first stage's label map is post-processed first; nnU-Net trains without.
    """

    kind: Literal["cascade"] = "cascade"
    previous: ModelName
    model: ModelName
    postprocess_previous: bool = False


class EnsembleStep(Document):
    """nnU-Net's ensemble of configurations: the mean of probabilities on the grid of the scan decides.

    Attributes:
        members: In the order in which their probabilities are summed.
        postprocessing: Of the ensemble; its members' own is not applied.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Annotated[ModelStep | CascadeStep, Field(discriminator="kind")], ...] = Field(min_length=2)
    postprocessing: tuple[KeepLargest, ...] = ()


class CropStep(Document):
    """One step finds labels, another one works in their box; outside of it there is background.

    Attributes:
        finder: Finds the labels, on the whole scan.
        labels: Values in the finder's label map whose box counts.
        margin_mm: By how much each side of the box is widened, rounded up to voxels of the scan.
        inside: Sees the scan in the box, and no more.
        nothing_found: What becomes of a scan without these labels: an empty label map, or ``inside`` on all of it.
    """

    kind: Literal["crop"] = "crop"
    finder: "Step"
    labels: tuple[int, ...] = Field(min_length=1)
    margin_mm: float = Field(ge=0)
    inside: "Step"
    nothing_found: Literal["empty", "whole_scan"]


class UnionPart(Document):
    """What one step contributes to a union.

    Attributes:
        step: Gives a label map.
        values: By the value in the step's label map, that in the union's; what is not named is left out.
    """

    step: "Step"
    values: Mapping[int, int] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _are_foreground(cls, values: Mapping[int, int]) -> Mapping[int, int]:
        if bad := [value for pair in values.items() for value in pair if not 0 < value <= MAX_LABEL]:
            raise ValueError(f"expected values from 1 to {MAX_LABEL}, found {sorted(set(bad))}")
        return values


class UnionStep(Document):
    """Several steps' labels in one map.

    Attributes:
        parts: In the order in which they are written: where two label a voxel, the later one stays.
        labels: Of the union; every value that a part writes is named.
    """

    kind: Literal["union"] = "union"
    parts: tuple[UnionPart, ...] = Field(min_length=1)
    labels: tuple[Label, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_named(self) -> "UnionStep":
        written = {value for part in self.parts for value in part.values.values()}
        named = {value for label in self.labels for value in label.values}
        if unnamed := written - named:
            raise ValueError(f"values {sorted(unnamed)} of the union have no name among its labels")
        if unwritten := named - written:
            raise ValueError(f"labels name values {sorted(unwritten)} that no part of the union writes")
        names = [label.name for label in self.labels]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"labels {sorted(twice)} stand there twice")
        return self


Step = Annotated[ModelStep | CascadeStep | EnsembleStep | CropStep | UnionStep, Field(discriminator="kind")]


class Recipe(Document):
    """What several models do together.

    Attributes:
        name: In the Triton repository, as a model's.
        members: All models that the steps name, each once.
        step: What is done.
        presentation: How people and other systems call the labels, by name; not part of the digest.
    """

    schema_version: Literal[1] = 1
    name: ModelName
    members: tuple[Member, ...] = Field(min_length=1)
    step: Step
    presentation: Mapping[str, LabelPresentation] = Field(default={})

    @model_validator(mode="after")
    def _names_its_members(self) -> "Recipe":
        names = [member.model for member in self.members]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"members {sorted(twice)} stand there twice")
        if self.name in names:
            raise ValueError(f"the recipe has the name of its member {self.name}")
        used = set(models_of(self.step))
        if used != set(names):
            raise ValueError(f"expected the members that the steps name, {sorted(used)}, found {sorted(names)}")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what changes labels."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude={"presentation"}))).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON: ASCII, keys sorted, no spaces."""
        return canonical(self.model_dump(mode="json")).decode()

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str) -> "Recipe":
        """Parse and validate a recipe.

        Args:
            text: JSON.
            source: Where it comes from, for the error message (a file, a server and model).

        Raises:
            SpecError: Too large, not JSON, another schema version, an unknown or missing field, steps nested too
                deep, or values that contradict each other; all problems are told at once.
        """
        if len(text) > MAX_SPEC_BYTES:
            raise SpecError(f"{source}: the recipe has {len(text)} bytes, at most {MAX_SPEC_BYTES} are allowed")
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{source}: the recipe is not JSON: {error}") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION or type(version) is not int:
            raise SpecError(
                f"{source}: recipe schema_version {version!r} is unknown, this ctseg reads {SCHEMA_VERSION}: use the "
                "ctseg that wrote it, or write it again"
            )
        if _depth(raw.get("step")) > MAX_DEPTH:
            raise SpecError(f"{source}: steps are nested more than {MAX_DEPTH} deep")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise SpecError(f"{source}: {told_by(error, whole='recipe')}") from error

    def check(self, specs: Mapping[str, ModelSpec]) -> None:
        """Check the recipe against the specs of its members.

        Args:
            specs: By the name of the member; all of them.

        Raises:
            SpecError: A member has another digest, takes other scans than the first, or cannot do what its step asks;
                the message names recipe and member.
        """
        try:
            self._check_members(specs)
            labels_of(self.step, specs)
        except _ContradictionError as error:
            raise SpecError(f"{self.name}: {error}") from None

    def labels(self, specs: Mapping[str, ModelSpec]) -> Mapping[str, tuple[int, ...]]:
        """Return, for each foreground label or region of the result, the values in the label map that belong to it."""
        return labels_of(self.step, specs)

    def presentations(self, specs: Mapping[str, ModelSpec]) -> Mapping[str, LabelPresentation]:
        """Return how people and other systems call the labels of the result, as it says itself or else a member.

        Volumes in the training set are a member's where the recipe says nothing of them.
        """
        of_members = _presentation_of(self.step, specs)
        known = {name: said.training_volumes_ml for name, said in of_members.items()}
        own = {
            name: said
            if said.training_volumes_ml is not None
            else said.model_copy(update={"training_volumes_ml": known.get(name)})
            for name, said in self.presentation.items()
        }
        return {name: said for name, said in {**of_members, **own}.items() if name in self.labels(specs)}

    def _check_members(self, specs: Mapping[str, ModelSpec]) -> None:
        first = specs[self.members[0].model]
        for member in self.members:
            spec = specs[member.model]
            if spec.digest != member.digest:
                raise _ContradictionError(
                    f"expected the member {member.model} with the spec {member.digest[:12]}, found "
                    f"{spec.digest[:12]}: serve the model that the recipe was written for, or write the recipe again"
                )
            for what, wanted, found in (
                ("channels", len(first.channels), len(spec.channels)),
                ("reader", first.reader, spec.reader),
                ("file ending", first.file_ending, spec.file_ending),
            ):
                if wanted != found:
                    raise _ContradictionError(
                        f"expected members that take the same scans, found {what} {wanted} of {first.name} and {found} "
                        f"of {spec.name}"
                    )


class _ContradictionError(Exception):
    """A recipe does not fit the specs of its members."""


def models_of(step: Step) -> Iterator[str]:
    """Yield the models that a step and those within it name, in order."""
    match step:
        case ModelStep():
            yield step.model
        case CascadeStep():
            yield from (step.previous, step.model)
        case _:
            for inner in steps_within(step):
                yield from models_of(inner)


def steps_within(step: Step) -> tuple[Step, ...]:
    """Return the steps of which a step consists, in order."""
    match step:
        case EnsembleStep():
            return step.members
        case CropStep():
            return (step.finder, step.inside)
        case UnionStep():
            return tuple(part.step for part in step.parts)
        case _:
            return ()


def labels_of(step: Step, specs: Mapping[str, ModelSpec]) -> Mapping[str, tuple[int, ...]]:
    """Return the labels of a step's result, by name; whatever does not fit is refused on the way.

    Args:
        step: The step.
        specs: Of all members.
    """
    match step:
        case ModelStep():
            spec = specs[step.model]
            if spec.previous_stage is not None:
                raise _ContradictionError(
                    f"{spec.name} is the second stage of a cascade: name it in a step of that kind"
                )
            return spec.named_values
        case CascadeStep():
            _check_cascade(step, specs)
            return specs[step.model].named_values
        case EnsembleStep():
            return _labels_of_ensemble(step, specs)
        case CropStep():
            found = labels_of(step.finder, specs)
            if unknown := set(step.labels) - _values(found):
                raise _ContradictionError(
                    f"the finder of a crop gives {sorted(_values(found))}, and not {sorted(unknown)}"
                )
            return labels_of(step.inside, specs)
        case UnionStep():
            for part in step.parts:
                given = _values(labels_of(part.step, specs))
                if unknown := set(part.values) - given:
                    who = ", ".join(models_of(part.step))
                    raise _ContradictionError(
                        f"a union takes values {sorted(unknown)} of {who}, which has {sorted(given)}"
                    )
            return {label.name: label.values for label in step.labels}


def _presentation_of(step: Step, specs: Mapping[str, ModelSpec]) -> Mapping[str, LabelPresentation]:
    """Return what members say of a step's labels; nothing of a union's, which has names of its own."""
    match step:
        case ModelStep() | CascadeStep():
            return specs[step.model].presentation
        case EnsembleStep():
            return _presentation_of(step.members[0], specs)
        case CropStep():
            return _presentation_of(step.inside, specs)
        case UnionStep():
            return {}


def _check_cascade(step: CascadeStep, specs: Mapping[str, ModelSpec]) -> None:
    first, second = specs[step.previous], specs[step.model]
    if first.previous_stage is not None:
        raise _ContradictionError(f"{first.name} is a second stage itself, and cannot be the first of {second.name}")
    wanted = second.previous_stage
    if wanted is None:
        raise _ContradictionError(f"{second.name} is no second stage of a cascade")
    if (wanted.model, wanted.digest) != (first.name, first.digest):
        raise _ContradictionError(
            f"{second.name} was built after {wanted.model} with the spec {wanted.digest[:12]}, found {first.name} with "
            f"{first.digest[:12]}: build both stages again"
        )
    if unknown := set(wanted.labels) - _values(first.named_values):
        raise _ContradictionError(f"{second.name} gets labels {sorted(unknown)}, which {first.name} does not have")


def _labels_of_ensemble(step: EnsembleStep, specs: Mapping[str, ModelSpec]) -> Mapping[str, tuple[int, ...]]:
    first, *others = (specs[member.model] for member in step.members)
    for member in step.members:
        labels_of(member, specs)
    for spec in others:
        if (spec.labels, spec.regions_class_order) != (first.labels, first.regions_class_order):
            raise _ContradictionError(
                f"an ensemble needs members of the same labels, {first.name} and {spec.name} differ"
            )
    known = _values(first.named_values)
    for postprocessing in step.postprocessing:
        if unknown := set(postprocessing.labels) - known:
            raise _ContradictionError(
                f"post-processing names labels {sorted(unknown)}; the ensemble has {sorted(known)}"
            )
    return first.named_values


def _values(labels: Mapping[str, tuple[int, ...]]) -> set[int]:
    return {value for values in labels.values() for value in values}


def _depth(raw: Any) -> int:
    """Return how deep steps are nested in plain data."""
    depth, level = 0, [raw]
    while level:
        depth += any(isinstance(item, dict) and "kind" in item for item in level)
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
    return depth
