"""Of which networks of a recipe the agreement of folds is told, and for which labels.

It is told of the network that gives a label: of a cascade the second stage, of a crop the one that works inside, of a
union the part that a label comes from. An ensemble of configurations has a label that no network's folds voted on.
"""

from collections.abc import Mapping, Sequence

from ctseg.model_spec import ModelSpec
from ctseg.predict.contract import why_no_agreement
from ctseg.recipe import CascadeStep, CropStep, EnsembleStep, ModelStep, Step, UnionStep, labels_of


def models_that_vote(step: Step) -> frozenset[str]:
    """Return the names of the models whose folds' agreement is told."""
    match step:
        case ModelStep() | CascadeStep():
            return frozenset({step.model})
        case EnsembleStep():
            return frozenset()
        case CropStep():
            return models_that_vote(step.inside)
        case UnionStep():
            return frozenset().union(*(models_that_vote(part.step) for part in step.parts))


def why_none(step: Step, specs: Mapping[str, ModelSpec]) -> str:
    """Return why nothing can be said about the agreement of folds; empty where something can, of a label at least.

    Args:
        step: The step.
        specs: Of all members, by name.
    """
    match step:
        case ModelStep() | CascadeStep():
            return why_no_agreement(specs[step.model])
        case EnsembleStep():
            names = ", ".join(member.model for member in step.members)
            return f"the labels are those of an ensemble ({names}), on which no network's folds vote"
        case CropStep():
            return why_none(step.inside, specs)
        case UnionStep():
            reasons = [why_none(part.step, specs) for part in step.parts]
            return "; ".join(dict.fromkeys(reasons)) if all(reasons) else ""


def agreement_of_union(
    step: UnionStep, specs: Mapping[str, ModelSpec], of_parts: Sequence[Mapping[str, float]]
) -> Mapping[str, float]:
    """Return the agreement on the labels of a union: of those that are one label of one part.

    Args:
        step: The union.
        specs: Of all members, by name.
        of_parts: The agreement on each part's own labels, by their names.
    """
    found = {}
    for label in step.labels:
        sources = [
            (index, value)
            for index, part in enumerate(step.parts)
            for value, new in part.values.items()
            if new in label.values
        ]
        places = {index for index, _ in sources}
        if len(places) != 1:
            continue
        (index,) = places
        values = {value for _, value in sources}
        for name, own in labels_of(step.parts[index].step, specs).items():
            if set(own) == values and name in of_parts[index]:
                found[label.name] = of_parts[index][name]
    return found
