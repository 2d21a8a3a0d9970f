"""Names and values of labels from files that have them already; no torch."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import InputError, SetupError
from ctseg.train.description import read_declared, understood_labels, without_file
from ctseg.train.dicom_labels import LabelValues

_ITK_SNAP = re.compile(r'\s*(\d+)\s.*"([^"]+)"\s*')
_SLICER = re.compile(r"\s*(\d+)\s+(\S+)((?:\s+\d+){3,4})\s*")
_VALUE_WORDS = ("value", "label value", "id", "index", "label", "labelvalue", "number")
_NAME_WORDS = ("name", "label name", "structure", "label", "labelname", "class")


@dataclass(frozen=True)
class LabelList:
    """Labels of a data set, as a file has them.

    Attributes:
        labels: Values by name; ``background`` is 0.
        regions_class_order: What each region writes; None where there are none.
        channel_names: In order; None: the file says nothing of them.
    """

    labels: LabelValues
    regions_class_order: tuple[int, ...] | None = None
    channel_names: tuple[str, ...] | None = None


def read_label_list(file: Path) -> LabelList:
    """Read labels from a ``dataset.json`` of nnU-Net or the Decathlon, another JSON object, or a table.

    A JSON object has values by name or names by value. A table has one label in a row: CSV, TSV, or the label
    descriptions of ITK-SNAP or colour tables of 3D Slicer. The label of value 0 is the background, whatever it is
    called.

    Args:
        file: To read.

    Raises:
        SetupError: There is no such file.
        InputError: It holds no labels, or two of one name or value.
    """
    if not file.is_file():
        raise SetupError(f"{file}: no such file", settings=("labels_from",))
    if file.suffix.lower() == ".json":
        return _from_json(file)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from error
    found = _from_lines(file, lines)
    names: dict[str, int] = {"background": 0}
    by_value: dict[int, str] = {}
    for value, name in found:
        if (other := by_value.setdefault(value, name)) != name:
            raise InputError(f"{file}: value {value} is both {other!r} and {name!r}")
        if value == 0:
            continue
        if names.setdefault(name, value) != value:
            raise InputError(f"{file}: {name!r} has the values {names[name]} and {value}: every label needs its name")
    return LabelList(names)


def _from_json(file: Path) -> LabelList:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if isinstance(content, Mapping) and "labels" in content:
        declared, problems = read_declared(file)
        if declared is None or declared.labels is None:
            raise InputError(f"{file}: {without_file(problems)}")
        return LabelList(declared.labels, declared.regions_class_order, declared.channel_names)
    labels, problems = understood_labels(content)
    if labels is None:
        raise InputError(f"{file}: {without_file(problems)}")
    return LabelList({"background": 0, **{name: value for name, value in labels.items() if value != 0}})


def _from_lines(file: Path, lines: Iterable[str]) -> list[tuple[int, str]]:
    """Return value and name of each row, in whichever of the known forms the lines are."""
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and line.strip()[0] != "#"]
    if not rows:
        raise InputError(f"{file}: no labels")
    for pattern in (_ITK_SNAP, _SLICER):
        matches = [pattern.fullmatch(line) for _, line in rows]
        if all(matches):
            return [(int(match[1]), match[2]) for match in matches if match is not None]
    separator = next((one for one in "\t;," if one in rows[0][1]), ",")
    cells = [
        (number, [cell.strip() for cell in row])
        for (number, _), row in zip(rows, csv.reader((line for _, line in rows), delimiter=separator), strict=True)
    ]
    value_at, name_at, has_header = _columns(cells[0][1])
    found = []
    for number, row in cells[has_header:]:
        if len(row) <= max(value_at, name_at) or not row[value_at].isdecimal() or not row[name_at]:
            raise InputError(f"{file}: line {number}: expected a value and a name, found {separator.join(row)!r}")
        found.append((int(row[value_at]), row[name_at]))
    return found


def _columns(first: list[str]) -> tuple[int, int, int]:
    """Return where value and name stand, and how many rows are a header."""
    if any(cell.isdecimal() for cell in first):
        value = next(i for i, cell in enumerate(first) if cell.isdecimal())
        return value, next((i for i, cell in enumerate(first) if not cell.isdecimal()), 1 - min(value, 1)), 0
    words = [cell.lower().replace("_", " ") for cell in first]
    value = next((words.index(word) for word in _VALUE_WORDS if word in words), 0)
    name = next((words.index(word) for word in _NAME_WORDS if word in words and words.index(word) != value), None)
    return value, next(i for i in range(len(words) + 1) if i != value) if name is None else name, 1
