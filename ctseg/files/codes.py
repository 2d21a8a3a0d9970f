"""Codes of labels: those of a spec, those that a person gives, and those of names that many models use."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ctseg.documents import told_by
from ctseg.errors import InputError
from ctseg.files.regular import open_regular
from ctseg.presentation import Code, LabelPresentation

PRIVATE_SCHEME = "99CTSEG"
"""Coding scheme of labels without codes; DICOM leaves names that begin with 99 to everybody."""
_KNOWN = Path(__file__).with_name("known_codes.csv")
"""By TotalSegmentator's names, see NOTICE."""
_TISSUE = Code(value="85756007", scheme="SCT", meaning="Tissue")
"""Category of labels of which nothing is known, as 3D Slicer has it."""
_LARGEST_BYTES = 4 * 1024**2
_LONGEST_VALUE = 16
_COLUMNS = {
    "category": "SegmentedPropertyCategoryCodeSequence",
    "type": "SegmentedPropertyTypeCodeSequence",
    "modifier": "SegmentedPropertyTypeModifierCodeSequence",
    "region": "AnatomicRegionSequence",
    "region_modifier": "AnatomicRegionModifierSequence",
}
_NEEDED = (("type", "category"), ("category", "type"), ("modifier", "type"), ("region_modifier", "region"))
_PARTS = {"value": "CodeValue", "scheme": "CodingSchemeDesignator", "meaning": "CodeMeaning"}
_LABEL, _COLOUR, _DISPLAY_NAME = "Structure", "DicomRGBColor", "DisplayName"


def read_codes(path: Path) -> Mapping[str, LabelPresentation]:
    """Read a file of codes: JSON or CSV, by the name of the label.

    JSON has an object for each label, with the fields of :class:`LabelPresentation`. CSV has the columns of
    TotalSegmentator's table, DICOM's keywords, such as ``SegmentedPropertyTypeCodeSequence.CodeValue``.

    Raises:
        InputError: It cannot be read, or says something that is no code.
    """
    readers = {".json": _of_json, ".csv": _of_csv}
    if (reader := readers.get(path.suffix.lower())) is None:
        raise InputError(f"{path}: expected codes in a file that ends in .json or .csv")
    try:
        with open_regular(path) as file:
            raw = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) > _LARGEST_BYTES:
        raise InputError(f"{path}: more than {_LARGEST_BYTES} bytes, which no file of codes has")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8: {error}") from error
    found: dict[str, LabelPresentation] = {}
    for where, label, fields in reader(text, path):
        if not label:
            raise InputError(f"{path}: {where}: expected the name of a label")
        if label in found:
            raise InputError(f"{path}: {where}: {label} stands there twice")
        found[label] = _checked(f"{path}: {where}", fields)
    if not found:
        raise InputError(f"{path}: expected at least one label")
    return found


def coded(
    labels: Mapping[str, tuple[int, ...]],
    presentation: Mapping[str, LabelPresentation],
    given: Mapping[str, LabelPresentation],
) -> tuple[Mapping[str, LabelPresentation], tuple[str, ...]]:
    """Return how every label is called, with a category and a type for each.

    What is given goes before what the spec says, and that before the table of known names. A label without any gets
    a private code with its own name. Codes of one label come from one of these; name and colour, each from the first
    that has it.

    Args:
        labels: Values by name.
        presentation: What the spec says.
        given: What a person says.

    Returns:
        By the name of each label; and the names of those without codes.

    Raises:
        InputError: ``given`` names a label that the model does not have.
    """
    check_labels(given, labels)
    known = _known_codes()
    found: dict[str, LabelPresentation] = {}
    uncoded = []
    for name in labels:
        said = [
            source[key] for source, key in ((given, name), (presentation, name), (known, _key(name))) if key in source
        ]
        if not any(_has_codes(item) for item in said):
            uncoded.append(name)
        found[name] = _joined([*said, _private(name)])
    return found, tuple(uncoded)


def check_labels(given: Mapping[str, LabelPresentation], labels: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse codes of labels that are not there.

    Raises:
        InputError: ``given`` names a label that is not in ``labels``.
    """
    if unknown := [name for name in given if name not in labels]:
        raise InputError(
            f"codes are given for {', '.join(unknown)}, which the model does not have; it has {', '.join(labels)}",
            settings=("codes",),
        )


@cache
def _known_codes() -> Mapping[str, LabelPresentation]:
    return {_key(name): presentation for name, presentation in read_codes(_KNOWN).items()}


def _key(name: str) -> str:
    return re.sub(r"[\s\-_]+", "_", name.strip().casefold())


def _has_codes(presentation: LabelPresentation) -> bool:
    return presentation.category is not None and presentation.type is not None


def _joined(said: list[LabelPresentation]) -> LabelPresentation:
    codes = next(item for item in said if _has_codes(item))
    return codes.model_copy(
        update={
            "display_name": next((item.display_name for item in said if item.display_name), ""),
            "colour": next((item.colour for item in said if item.colour is not None), None),
            "training_volumes_ml": next(
                (item.training_volumes_ml for item in said if item.training_volumes_ml is not None), None
            ),
        }
    )


def _private(name: str) -> LabelPresentation:
    value = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if value != name or not 0 < len(value) <= _LONGEST_VALUE:
        value = f"{value[:9]}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return LabelPresentation(
        category=_TISSUE, type=Code(value=value, scheme=PRIVATE_SCHEME, meaning=name.strip()[:64] or value)
    )


def _of_json(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield where a label stands, its name, and what is said of it."""
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
        if not isinstance(pairs, _Pairs):
            raise InputError(f"{path}: expected a JSON object with the names of labels, found {type(pairs).__name__}")
        said = [(name, _plain(item)) for name, item in pairs]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the codes are not JSON: {error}") from error
    yield from ((name, name, item) for name, item in said)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands in the file, names that come twice and all."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {name: _plain(item) for name, item in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _of_csv(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield where a label stands, its name, and what is said of it."""
    header = text.partition("\n")[0]
    rows = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=";" if header.count(";") > header.count(",") else ","
    )
    columns = {_LABEL, _COLOUR, _DISPLAY_NAME} | {
        f"{sequence}.{part}" for sequence in _COLUMNS.values() for part in _PARTS.values()
    }
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        if _LABEL not in names:
            raise InputError(f"{path}: expected a column {_LABEL} with the names of labels, found {', '.join(names)}")
        if unknown := [name for name in names if name not in columns]:
            raise InputError(f"{path}: columns {', '.join(unknown)}: no such thing is said of a label")
        for row in rows:
            where = f"row {rows.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{path}: {where}: expected {len(names)} columns, as the first row has")
            yield where, row[_LABEL].strip(), _fields_of(row)
    except csv.Error as error:
        raise InputError(f"{path}: row {rows.line_num}: {error}") from error


def _fields_of(row: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field, sequence in _COLUMNS.items():
        parts = {part: row.get(f"{sequence}.{column}", "").strip() for part, column in _PARTS.items()}
        if any(parts.values()):
            fields[field] = parts
    if colour := row.get(_COLOUR, "").strip():
        fields["colour"] = [part.strip() for part in colour.split(",")]
    if display_name := row.get(_DISPLAY_NAME, "").strip():
        fields["display_name"] = display_name
    return fields


def _checked(where: str, fields: Any) -> LabelPresentation:
    try:
        said = LabelPresentation.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{where}: {told_by(error, whole='label')}") from error
    for part, needed in _NEEDED:
        if getattr(said, part) is not None and getattr(said, needed) is None:
            raise InputError(f"{where}: {part} needs {needed} beside it")
    for part in _COLUMNS:
        if (code := getattr(said, part)) is None:
            continue
        if any("\\" in text or not text.isprintable() for text in (code.value, code.scheme, code.meaning)):
            raise InputError(f"{where}: {part}: expected no backslash and nothing unprintable in a code")
        if code.scheme == "SCT" and not _is_snomed(code.value):
            raise InputError(f"{where}: {part}: {code.value} is no code of SNOMED CT: a digit is wrong or missing")
    return said


def _is_snomed(value: str) -> bool:
    """Return whether a SNOMED CT identifier is one, by its check digit.

    Source:
        SNOMED CT Release File Specification, check-digit: Verhoeff's dihedral check.
    """
    if not re.fullmatch(r"[1-9][0-9]{5,17}", value):
        return False
    total = 0
    for index, digit in enumerate(reversed(value)):
        total = _dihedral(total, _permuted(int(digit), index))
    return total == 0


def _dihedral(first: int, second: int) -> int:
    """Multiply in the dihedral group of order 10: 0 to 4 are rotations, 5 to 9 reflections."""
    rotation = (first + second if first < 5 else first - second) % 5
    return rotation + 5 * ((first < 5) == (second >= 5))


def _permuted(digit: int, times: int) -> int:
    for _ in range(times % 8):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit
