"""What ``dataset.json`` says of a data set; other orders and words are understood, and told; no torch, no nnunetv2."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import InputError
from ctseg.files.dataset_cases import DatasetProblem
from ctseg.train.dicom_labels import LabelValues, values_of_label

FILE = "dataset.json"
FILE_ENDING = ".nii.gz"
_SHOWN = 12
"""Entries that a message writes out."""
_LARGEST = 65535
"""Value that a label map of a data set can hold."""
_LONGEST = 60
"""Characters of something unknown that a message writes out."""
_SETTINGS = {"labels_not_consecutive": ("remap",), "regions": ("regions_class_order",)}
"""What mends a kind of problem."""
_LIKE_CT = re.compile(r"(?<![a-z])ct+(?![a-z])|tomogra")
"""In the name of a channel that holds CT."""
_Tell = Callable[[str, str], None]
"""Takes the kind of a problem and what is wrong in the file."""


@dataclass(frozen=True)
class DatasetDescription:
    """What ``dataset.json`` says, apart from the number of cases.

    Attributes:
        channel_names: Name of each input channel, in order; ``CT`` is normalised as CT.
        labels: Value by name. ``background`` is 0; ``ignore``, if there, the highest.
        regions_class_order: Where a label has several values: what each region writes, in the order of ``labels``.
    """

    channel_names: tuple[str, ...]
    labels: LabelValues
    regions_class_order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        problems: list[DatasetProblem] = []
        understood = _labels(self.labels, _telling(problems))
        if understood is not None and not problems:
            problems += declared_label_problems(understood, self.regions_class_order)
        if problems:
            settings = [setting for problem in problems for setting in _SETTINGS.get(problem.kind, ())]
            raise InputError(without_file(problems), settings=tuple(dict.fromkeys(settings)))
        if not self.channel_names:
            raise InputError("a data set needs at least one channel")

    @property
    def values(self) -> set[int]:
        """Every value that a label map may hold."""
        return values_of(self.labels)

    def to_json(self, cases: int) -> dict[str, Any]:
        """Return the content of ``dataset.json``."""
        content: dict[str, Any] = {
            "channel_names": {str(i): name for i, name in enumerate(self.channel_names)},
            "labels": {k: v if isinstance(v, int) else [int(i) for i in v] for k, v in self.labels.items()},
            "numTraining": cases,
            "file_ending": FILE_ENDING,
        }
        if self.regions_class_order is not None:
            content["regions_class_order"] = list(self.regions_class_order)
        return content

    @classmethod
    def read(cls, folder: Path) -> "DatasetDescription":
        """Read ``dataset.json``.

        Raises:
            InputError: The file is missing, not JSON, or incomplete.
        """
        declared, problems = read_declared(folder / FILE)
        wrong = [problem.message for problem in problems if problem.kind != "num_training"]
        if declared is None or declared.labels is None or declared.channel_names is None or wrong:
            raise InputError(f"{folder}: {'; '.join(wrong)}")
        return cls(declared.channel_names, declared.labels, declared.regions_class_order)


@dataclass(frozen=True)
class Declared:
    """What ``dataset.json`` says, as far as it can be understood.

    Attributes:
        channel_names: In order; None: none can be understood.
        labels: Values by name, in nnU-Net's order, whatever that of the file is; None: none can be understood.
        regions_class_order: What each region writes; None where there are none.
        file_ending: Of images and label maps; None: not said.
        number: Of training cases; None: not said.
        cases: Images and label map by case, where the file lists them; None: names say it.
    """

    channel_names: tuple[str, ...] | None
    labels: LabelValues | None
    regions_class_order: tuple[int, ...] | None
    file_ending: str | None
    number: int | None
    cases: Mapping[str, Any] | None


def read_declared(file: Path) -> tuple[Declared | None, list[DatasetProblem]]:
    """Read ``dataset.json``, of nnU-Net v2 or v1 or of the Medical Segmentation Decathlon.

    What is in other words or another order than nnU-Net v2 needs is a problem, with what to write, and understood.

    Args:
        file: To read.

    Returns:
        What it says, None where it cannot be read at all; and what is wrong. A missing ``file_ending`` is not told.
    """
    problems: list[DatasetProblem] = []
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        return None, [DatasetProblem(None, "dataset_json", f"{file}: cannot be read ({error.strerror})")]
    except ValueError as error:
        return None, [DatasetProblem(None, "dataset_json", f"{file}: not JSON: {error}")]
    if not isinstance(content, dict):
        text = f"{file}: expected an object, found {type(content).__name__}"
        return None, [DatasetProblem(None, "dataset_json", text)]
    tell = _telling(problems)
    channels = _channel_names(content, tell)
    labels = None
    if "labels" in content:
        labels = _labels(content["labels"], tell)
    else:
        tell("dataset_json", 'labels are missing: write "labels": {"background": 0, …}')
    order = content.get("regions_class_order")
    order = tuple(order) if isinstance(order, list) and all(type(value) is int for value in order) else None
    if labels is not None:
        problems += declared_label_problems(labels, order)
    number, ending = content.get("numTraining"), content.get("file_ending")
    if type(number) is not int:
        found = "is missing" if number is None else f"is {number!r}"
        tell("num_training", f"numTraining {found}: write the number of training cases")
    if ending is not None and not isinstance(ending, str):
        tell("dataset_json", f'file_ending is {ending!r}: write a text such as "{FILE_ENDING}"')
    return Declared(
        channels,
        labels,
        order,
        ending if isinstance(ending, str) else None,
        number if type(number) is int else None,
        _cases(content.get("dataset"), tell),
    ), problems


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, which would silently lose all but the last of two values of one name."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice, as {_shown(found[name])} and as {_shown(value)}")
        found[name] = value
    return found


def misnamed_channels(names: Sequence[str]) -> list[str]:
    """Return a note for each channel that is called nearly as CT is, and so is not normalised as CT.

    Source:
        nnU-Net's ``get_normalization_scheme``: names in whatever case, and each unknown one is normalised by itself.
    """
    return [
        f"channel {i} is called {name!r}, so each image is normalised by its own mean and deviation; as CT only what "
        'is called "CT"'
        for i, name in enumerate(names)
        if name.casefold() != "ct" and _LIKE_CT.search(name.casefold())
    ]


def understood_labels(labels: object) -> tuple[LabelValues | None, list[DatasetProblem]]:
    """Return values by name from labels in any order, None where there are none, and what should be written."""
    problems: list[DatasetProblem] = []
    return _labels(labels, _telling(problems)), problems


def without_file(problems: Iterable[DatasetProblem]) -> str:
    """Return what is wrong with labels and channels that stand in no ``dataset.json``, or in one that is named."""
    return "; ".join(problem.message.removeprefix(f"{FILE}: ") for problem in problems)


def _telling(problems: list[DatasetProblem]) -> _Tell:
    return lambda kind, text: problems.append(DatasetProblem(None, kind, f"{FILE}: {text}"))


def _channel_names(content: Mapping[str, Any], tell: _Tell) -> tuple[str, ...] | None:
    names = content.get("channel_names")
    if names is None and isinstance(names := content.get("modality"), Mapping | list):
        wanted = dict(enumerate(names)) if isinstance(names, list) else dict(names)
        advice = f'write "channel_names": {_json(wanted)}'
        tell("nnunet_v1", f"'modality' is the word of nnU-Net v1 and of the Decathlon: {advice}")
    elif names is None:
        tell("dataset_json", 'channel_names are missing: write "channel_names": {"0": "CT"}')
        return None
    elif isinstance(names, list):
        tell("dataset_json", f'channel_names are a list: write "channel_names": {_json(dict(enumerate(names)))}')
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, Mapping) or set(names) != {str(i) for i in range(len(names))} or not names:
        tell("dataset_json", f'channel_names are {_shown(names)}: write their names by number, {{"0": "CT"}}')
        return None
    return tuple(str(names[str(i)]) for i in range(len(names)))


def _cases(listed: object, tell: _Tell) -> Mapping[str, Any] | None:
    if listed is None:
        return None
    if isinstance(listed, Mapping) and all(
        isinstance(files, Mapping) and isinstance(files.get("images"), list) and isinstance(files.get("label"), str)
        for files in listed.values()
    ):
        return listed
    tell("dataset_json", 'dataset: expected {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}}')
    return {}


def _labels(labels: object, tell: _Tell) -> LabelValues | None:
    """Return values by name, from labels in any order; what has to be written differently is told."""
    if isinstance(labels, list) and labels and all(isinstance(name, str) for name in labels):
        turned = turned_labels({str(i): name for i, name in enumerate(labels)})
        tell("labels", f'labels are a list: write "labels": {_json(turned)}')
        return turned
    if not isinstance(labels, Mapping) or not labels:
        tell("labels", f'labels are {_shown(labels)}: expected values by name, {{"background": 0, "tumor": 1}}')
        return None
    if all(str(key).isdecimal() for key in labels) and all(
        isinstance(name, str) and not name.isdecimal() for name in labels.values()
    ):
        turned = turned_labels(labels)
        tell(
            "nnunet_v1",
            "labels are in the order of nnU-Net v1 and of the Decathlon, numbers first; v2 has the names first: "
            f'write "labels": {_json(turned)}',
        )
        return turned
    found = {str(name): _value(value) for name, value in labels.items()}
    wrong = [name for name, value in found.items() if value is None]
    if wrong:
        shown = ", ".join(f"{name}: {_shown(labels[name])}" for name in wrong[:_SHOWN])
        tell("labels", f'labels need whole numbers, or lists of these, found {shown}: write {{"background": 0, …}}')
        return None
    known = {name: value for name, value in found.items() if value is not None}
    if any(_is_quoted(value) for value in labels.values()):
        tell("labels", f'labels are numbers in quotes: write "labels": {_json(known)}')
    return known


def turned_labels(labels: Mapping[Any, Any]) -> dict[str, int | Sequence[int]]:
    """Return values by name from names by value; 0 is ``background``, whatever it is called."""
    return {"background" if int(value) == 0 else str(name): int(value) for value, name in labels.items()}


def _is_quoted(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and any(isinstance(one, str) for one in value))


def _value(value: object) -> int | Sequence[int] | None:
    """Return one value or several; None: it is none."""
    if isinstance(value, list | tuple):
        values = [None if isinstance(one, list | tuple) else _value(one) for one in value]
        return [one for one in values if isinstance(one, int)] if values and None not in values else None
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def values_of(labels: LabelValues) -> set[int]:
    """Return every value that the labels name."""
    return {int(v) for value in labels.values() for v in values_of_label(value)}


def declared_label_problems(labels: LabelValues, regions_class_order: Sequence[int] | None) -> list[DatasetProblem]:
    """Return what is wrong with the labels of ``dataset.json`` by themselves."""
    problems: list[DatasetProblem] = []
    tell = _telling(problems)
    values = sorted(values_of(labels))
    if labels.get("background") != 0:
        other = next((name for name, value in labels.items() if value == 0), None)
        found = f"0 for {other!r}: rename it"
        if other is None:
            found = f"{labels['background']!r}" if "background" in labels else 'none: write "background": 0'
        tell("labels", f"label 'background' must be 0, found {found}")
    if odd := [name for name in labels if not name.isprintable() or not name.strip()]:
        tell("labels", f"names of labels need letters that can be printed, found {', '.join(map(repr, odd[:_SHOWN]))}")
    if values != list(range(len(values))):
        missing = set(range(min(max(values), _LARGEST))) - set(values)
        why = f"{number_ranges(missing)} missing" if values[0] >= 0 else "negative values are not allowed"
        tell("labels_not_consecutive", f"labels must be consecutive from 0, found {number_ranges(values)}: {why}")
    ignore = labels.get("ignore")
    if ignore is not None and ignore != max(values):
        tell("labels", f"label 'ignore' must be the highest value, found {ignore!r} of {number_ranges(values)}")
    regions = [value for name, value in labels.items() if name not in ("background", "ignore")]
    if not regions and not problems:
        tell("labels", 'there is nothing but background: a label is missing, such as "tumor": 1')
    if any(not isinstance(value, int) and len(value) > 1 for value in regions):
        order = regions_class_order or ()
        if len(order) != len(regions):
            found = ", ".join(map(str, order)) or "none"
            tell(
                "regions",
                f"labels of several values are regions, and regions_class_order has to say for each of the "
                f"{len(regions)} regions which value it writes, found {found}: one of its own values, the whole "
                "before its parts",
            )
        elif foreign := set(order) - {v for value in regions for v in values_of_label(value)}:
            tell("regions", f"regions_class_order has {number_ranges(foreign)}, which no region has as a value")
    else:
        plain = [value if isinstance(value, int) else value[0] for value in labels.values()]
        if len(set(plain)) != len(plain):
            doubled = {name: value for name, value in labels.items() if plain.count(values_of_label(value)[0]) > 1}
            tell("labels", f"two labels have the same value: {_json(doubled)}")
    return problems


def number_ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers in order, such as ``0, 2 to 5, 255``."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    words = [", ".join(map(str, span)) if span[-1] - span[0] < 2 else f"{span[0]} to {span[-1]}" for span in spans]
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")


def _shown(thing: object) -> str:
    """Return something as Python writes it; what is long is cut short."""
    text = repr(thing)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _json(entries: Mapping[Any, Any]) -> str:
    """Return a JSON object to copy; long ones are cut short."""
    shown = dict(list(entries.items())[:_SHOWN])
    text = json.dumps(shown, ensure_ascii=False)
    return text if len(shown) == len(entries) else f"{text[:-1]}, … {len(entries) - len(shown)} more}}"
