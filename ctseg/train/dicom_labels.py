"""Label maps made of the segments and regions that DICOM objects hold, by their names."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError, SetupError
from ctseg.files.dataset_cases import DatasetProblem, LabelledCase
from ctseg.files.dicom.choosing import fits
from ctseg.files.dicom.label_objects import LabelObject
from ctseg.files.dicom.series import CtSeries

logger = logging.getLogger(__name__)

LabelValues = Mapping[str, int | Sequence[int]]
"""Value in the label map by name; several values make a region."""
_MOST_BYTES = 2 << 30
"""Of segments and regions that are held at once; objects with more are read several times."""
_TOLD = 20
"""Names of segments and regions that a message lists."""


@dataclass(frozen=True)
class RegionRules:
    """Which segments and regions of DICOM objects are which label, and what becomes of voxels of several.

    Attributes:
        names: By label, the name of its segment or region: ``*`` stands for any text, ``?`` for any character, and
            capitals do not matter. A label that is not there is called as itself.
        precedence: Labels in the order in which they win where they overlap.
        missing_is_empty: Whether a label that no object of a case has is nowhere in it; otherwise the case is refused.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    precedence: tuple[str, ...] = ()
    missing_is_empty: bool = False

    def check(self, labels: LabelValues) -> None:
        """Refuse rules that do not belong to the labels of a data set.

        Raises:
            SetupError: A label is not there, or an order is given for regions, whose values say it.
        """
        for setting, names in (("roi", self.names), ("precedence", self.precedence)):
            if unknown := sorted(set(names) - set(labels) | {"background"} & set(names)):
                raise SetupError(f"expected labels of the data set, found {', '.join(unknown)}", settings=(setting,))
        if self.precedence and any(len(values_of_label(value)) > 1 for value in labels.values()):
            raise SetupError(
                "labels with several values say themselves what voxels of several labels are: leave the order out",
                settings=("precedence",),
            )

    def pattern(self, label: str) -> str:
        """Return what the segment or region of a label is called."""
        return self.names.get(label, label)


def values_of_label(value: int | Sequence[int]) -> tuple[int, ...]:
    """Return the values of one label."""
    return (value,) if isinstance(value, int) else tuple(value)


def labels_of(
    case: LabelledCase, series: CtSeries, labels: LabelValues, rules: RegionRules
) -> tuple[NDArray[np.uint16] | None, list[DatasetProblem]]:
    """Put the label map of a case together from the objects that refer to its series.

    A voxel's value is the one that belongs to exactly those labels in which the voxel lies.

    Args:
        case: With its objects.
        series: Its scan.
        labels: Values by label.
        rules: Which segment or region is which label.

    Returns:
        (z, y, x), and what is wrong; None, where anything is.
    """
    chosen, problems = _chosen(case, labels, rules)
    if problems:
        return None, problems
    shape = (len(series.slices), series.rows, series.columns)
    sets = _LabelSets(shape)
    try:
        for made, names_by_label in chosen.items():
            for some in _parts(names_by_label, most_names=max(1, _MOST_BYTES // int(np.prod(shape)))):
                masks = made.read(series, {name for _, names in some for name in names})
                for label, names in some:
                    sets.add(label, np.logical_or.reduce([masks[name] for name in names]))
    except InputError as error:
        return None, [DatasetProblem(case.name, "unreadable", f"case {case.name}: {error}")]
    return sets.values(case.name, labels, rules)


def _chosen(
    case: LabelledCase, labels: LabelValues, rules: RegionRules
) -> tuple[Mapping[LabelObject, Mapping[str, Sequence[str]]], list[DatasetProblem]]:
    """Return which names of which object are which label."""
    chosen: dict[LabelObject, dict[str, Sequence[str]]] = {}
    problems: list[DatasetProblem] = []
    for label in labels:
        if label == "background":
            continue
        pattern = rules.pattern(label)
        found = {made: names for made in case.objects if (names := _matching(made.names, pattern))}
        if len(found) == 1:
            ((made, names),) = found.items()
            chosen.setdefault(made, {})[label] = names
        elif found:
            text = f"{label} is in {' and in '.join(made.label for made in found)}: take all but one away"
            problems.append(DatasetProblem(case.name, "doubled", f"case {case.name}: {text}"))
        else:
            text = f"case {case.name}: nothing is called {pattern!r} ({label}), found {_listed(case.objects)}"
            if rules.missing_is_empty:
                logger.warning("%s", text)
            else:
                problems.append(DatasetProblem(case.name, "missing_label", text))
    return chosen, problems


def _parts(names_by_label: Mapping[str, Sequence[str]], most_names: int) -> Iterator[list[tuple[str, Sequence[str]]]]:
    """Yield labels and their names in parts with at most so many names, or of one label."""
    part: list[tuple[str, Sequence[str]]] = []
    for label, names in names_by_label.items():
        if part and sum(len(own) for _, own in part) + len(names) > most_names:
            yield part
            part = []
        part.append((label, names))
    if part:
        yield part


def _matching(names: Sequence[str], pattern: str) -> tuple[str, ...]:
    return tuple(name for name in names if fits(name.strip(), pattern))


def _listed(objects: Sequence[LabelObject]) -> str:
    names = [name for made in objects for name in made.names]
    return (", ".join(names[:_TOLD]) or "no names") + (f" and {len(names) - _TOLD} more" if len(names) > _TOLD else "")


class _LabelSets:
    """Which labels each voxel belongs to: the index of a set of labels."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._index = np.zeros(shape, np.uint16)
        self._sets: list[frozenset[str]] = [frozenset()]

    def add(self, label: str, mask: NDArray[np.bool_]) -> None:
        """Let the voxels of a mask belong to a label, too."""
        for index in np.unique(self._index[mask]).tolist():
            larger = self._sets[index] | {label}
            if larger not in self._sets:
                self._sets.append(larger)
            self._index[mask & (self._index == index)] = self._sets.index(larger)

    def values(
        self, case: str, labels: LabelValues, rules: RegionRules
    ) -> tuple[NDArray[np.uint16] | None, list[DatasetProblem]]:
        """Return the value of each voxel, or which sets of labels have none."""
        table = np.zeros(len(self._sets), np.uint16)
        by_labels = _value_by_labels(labels)
        problems = []
        counts = np.bincount(self._index.ravel(), minlength=len(self._sets)).tolist()
        for index, members in enumerate(self._sets):
            winner = next((label for label in rules.precedence if label in members), None)
            value = by_labels.get(members)
            if value is None and winner is not None:
                value = by_labels[frozenset({winner})]
            if value is not None:
                table[index] = value
            elif counts[index]:
                text = f"{counts[index]} voxels are {' and '.join(sorted(members))}"
                text += ", which no value stands for: state an order, or regions"
                problems.append(DatasetProblem(case, "overlap", f"case {case}: {text}"))
        return (None, problems) if problems else (table[self._index], [])


def _value_by_labels(labels: LabelValues) -> Mapping[frozenset[str], int]:
    """Return the value for each set of labels that one stands for; the lowest, if there are several."""
    by_labels: dict[frozenset[str], int] = {frozenset(): 0}
    for value in sorted(set(_all_values(labels))):
        members = frozenset(
            label for label, own in labels.items() if label != "background" and value in values_of_label(own)
        )
        by_labels.setdefault(members, value)
    return by_labels


def _all_values(labels: LabelValues) -> Iterator[int]:
    for value in labels.values():
        yield from values_of_label(value)
