"""A recipe as a whole: what its members give together, compared with what PyTorch or a proven graph gives."""

from collections.abc import Iterator, Mapping

import numpy as np

from ctseg.arrays import LabelMap
from ctseg.deploy.parity import LIMITS, dice_problem
from ctseg.deploy.recipe_bundle import WholeCheck
from ctseg.files.volume import Volume
from ctseg.numerics.dice import dice
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.recipe_segmenter import RecipeSegmenter
from ctseg.predict.segment import CaseContext, Scan, WindowOptions, segment
from ctseg.recipe import CascadeStep, Recipe, Step, steps_within


def check_whole(
    recipe: Recipe,
    found_by: Mapping[str, PatchPredictor],
    reference: Mapping[str, PatchPredictor],
    volume: Volume,
    *,
    what: str,
    source: str,
    may_be_empty: bool = False,
) -> WholeCheck:
    """Run a recipe on one case with two sets of networks, and compare the label maps.

    Args:
        recipe: The recipe.
        found_by: What is to be proven, by member.
        reference: What it is compared with, by member.
        volume: The case.
        what: What runs, for people.
        source: Where the case comes from.
        may_be_empty: Whether it passes where the reference finds nothing.
    """
    sides = (reference, found_by)
    expected, found = (_labels_of(recipe, networks, volume) for networks in sides)
    limits = LIMITS[
        max((each.spec.precision for side in sides for each in side.values()), key=("fp32", "fp16", "bf16").index)
    ]
    differing = int(np.count_nonzero(expected != found))
    problems = []
    if not (may_be_empty or expected.any()):
        problems.append(f"{source}: PyTorch finds nothing on it, which proves nothing: give another scan")
    if differing > limits.label_difference_share * expected.size:
        problems.append(f"{source}: {differing} of {expected.size} voxels have another label")
    agreement = {}
    for name, values in recipe.labels({name: each.spec for name, each in reference.items()}).items():
        one, other = np.isin(expected, values), np.isin(found, values)
        voxels, wrong = int(one.sum()), int((one != other).sum())
        agreement[name] = dice(one, other) if voxels or wrong else 1.0
        if problem := dice_problem(name, voxels, wrong, agreement[name], limits):
            problems.append(f"{source}: {problem}")
    first_stages = {
        step.previous: int(np.count_nonzero(np.not_equal(*(_first_labels(step, each, volume) for each in sides))))
        for step in _cascades(recipe.step)
    }
    return WholeCheck(
        what=what, source=source, voxels=expected.size, differing=differing, dice=agreement,
        first_stages=first_stages, problems=tuple(problems),
    )  # fmt: skip


def _cascades(step: Step) -> Iterator[CascadeStep]:
    if isinstance(step, CascadeStep):
        yield step
    for inner in steps_within(step):
        yield from _cascades(inner)


def _labels_of(recipe: Recipe, predictors: Mapping[str, PatchPredictor], volume: Volume) -> LabelMap:
    """Run a recipe, whatever the digests of its members are."""
    members = [{"model": name, "digest": predictor.spec.digest} for name, predictor in predictors.items()]
    segmenter = RecipeSegmenter(Recipe.model_validate({**recipe.model_dump(), "members": members}), predictors)
    try:
        return segmenter.segment(volume, CaseContext()).labels
    finally:
        segmenter.close()


def _first_labels(step: CascadeStep, predictors: Mapping[str, PatchPredictor], volume: Volume) -> LabelMap:
    """Return the label map that a cascade's second stage gets."""
    queue = InferenceQueue(predictors[step.previous])
    try:
        postprocess = step.postprocess_previous
        return segment(Scan.of(volume), queue, WindowOptions(), CaseContext(), postprocess=postprocess).labels
    finally:
        queue.close()
