"""Which cases belong together, as the scans of one patient do, and the folds that keep them together; no torch."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ctseg.errors import InputError, OutputError, SetupError, TrainingError
from ctseg.files.atomic import write_text
from ctseg.train.problem_lines import counted, listed

FOLDS = 5
"""Of nnU-Net's cross-validation."""
SPLITS_FILE = "splits_final.json"
_SEED = 12345
"""nnU-Net's own."""
_TOLD = 5
"""Cases that a message lists."""

Splits = list[dict[str, list[str]]]
"""``train`` and ``val`` of each fold, as nnU-Net's file has them."""


def too_few(cases: int) -> str:
    """Return what so few cases mean, and what can be done."""
    return (
        f"{counted(cases, 'case')} {'is' if cases == 1 else 'are'} fewer than the five folds of nnU-Net's "
        "cross-validation need: add cases, train on all of "
        f"them (the fold `full`), or write folds of your own into {SPLITS_FILE}"
    )


def group_cases(cases: Sequence[str], rule: str) -> Mapping[str, str]:
    """Return the group of each case.

    Args:
        cases: Their names.
        rule: A file that ends in ``.csv`` or ``.tsv`` with a case and its group in each row, behind a colon the name
            of the group's column where it is not the second; else a regular expression that is matched at the
            beginning of the name: what its groups hold, or without any all that it matches.

    Raises:
        SetupError: The rule is no regular expression, or its file is not there.
        InputError: A case has no group.
    """
    file, _, column = rule.partition(":") if re.search(r"\.[ct]sv(:|$)", rule) else ("", "", "")
    groups = _from_table(Path(file), column) if file else _from_names(cases, rule)
    without = [case for case in cases if not groups.get(case)]
    if without:
        shown = listed(without, most=_TOLD)
        raise InputError(f"no group for {shown}: {rule} has none for them", settings=("group_by",))
    return {case: groups[case] for case in cases}


def _from_names(cases: Sequence[str], rule: str) -> dict[str, str]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise SetupError(f"{rule!r} is no regular expression: {error}", settings=("group_by",)) from error
    found = {case: match for case in cases if (match := pattern.match(case))}
    return {case: "|".join(part or "" for part in match.groups()) or match[0] for case, match in found.items()}


def _from_table(file: Path, column: str) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise SetupError(f"{file}: no such file of groups", settings=("group_by",)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{file}: cannot be read as text: {error}", settings=("group_by",)) from error
    rows = [row for row in csv.reader(lines, delimiter=_separator(lines)) if any(row)]
    at = 1
    if column:
        if not rows or column not in rows[0]:
            there = ", ".join(rows[0]) if rows else "nothing"
            raise SetupError(f"{file}: no column {column!r}, found {there}", settings=("group_by",))
        at = rows[0].index(column)
    groups: dict[str, str] = {}
    for row in rows:
        if len(row) > at and groups.setdefault(case := row[0].strip(), row[at].strip()) != row[at].strip():
            text = f"{file}: {case} is in two groups, {groups[case]} and {row[at].strip()}: leave one of them out"
            raise InputError(text, settings=("group_by",))
    return groups


def _separator(lines: Sequence[str]) -> str:
    return next((one for one in "\t;," if lines and one in lines[0]), ",")


def grouped_splits(groups: Mapping[str, str]) -> Splits:
    """Return five folds of cases that keep groups together and are as large as each other as that allows.

    The largest group goes first, each to the fold that has the fewest cases; groups of one size come in an order that
    is drawn, always the same.

    Args:
        groups: By case.

    Raises:
        InputError: There are fewer groups than folds.
    """
    members: dict[str, list[str]] = {}
    for case in sorted(groups):
        members.setdefault(groups[case], []).append(case)
    if len(members) < FOLDS:
        names = ", ".join(f"{group} ({counted(len(cases), 'case')})" for group, cases in sorted(members.items()))
        raise InputError(
            f"{counted(len(members), 'group')} {'is' if len(members) == 1 else 'are'} fewer than the five folds of "
            f"nnU-Net's cross-validation, found {names}: add "
            f"cases of others, or write folds of your own into {SPLITS_FILE}",
            settings=("group_by",),
        )
    names_drawn = np.random.RandomState(_SEED).permutation(sorted(members)).tolist()
    folds: list[list[str]] = [[] for _ in range(FOLDS)]
    for group in sorted(names_drawn, key=lambda group: -len(members[group])):
        min(folds, key=len).extend(members[group])
    return [
        {"train": sorted(case for other in folds if other is not fold for case in other), "val": sorted(fold)}
        for fold in folds
    ]


def write_splits(file: Path, splits: Splits) -> None:
    """Write ``splits_final.json``.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        write_text(file, json.dumps(splits, indent=4) + "\n")
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {error.strerror or error}") from error


def require_splits_of(file: Path, cases: Sequence[str]) -> None:
    """Refuse folds that are not of these cases.

    Args:
        file: ``splits_final.json``; nothing is refused where there is none.
        cases: Of the data set.

    Raises:
        InputError: The file cannot be read, or has cases that are not there, or a case both to train and to validate.
    """
    if not file.is_file():
        return
    splits = read_splits(file)
    known = set(cases)
    for number, fold in enumerate(splits):
        if unknown := sorted({*fold["train"], *fold["val"]} - known):
            raise InputError(
                f"{file}: fold {number} has cases that are not in the data set: {', '.join(unknown[:_TOLD])}: write "
                "the folds anew, or remove the file"
            )
        if both := sorted(set(fold["train"]) & set(fold["val"])):
            raise InputError(f"{file}: fold {number} trains and validates on {', '.join(both[:_TOLD])}")


def read_splits(file: Path) -> Splits:
    """Read ``splits_final.json``.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))
        return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in splits]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{file}: {type(error).__name__}: {error}: expected a list of folds, {{"train": […], "val": […]}}'
        ) from error


def replace_splits(file: Path, splits: Splits, *, trained: Sequence[str], overwrite: bool) -> None:
    """Write folds where others may be.

    Args:
        file: ``splits_final.json``.
        splits: The new folds.
        trained: Models that were trained on the folds that are there.
        overwrite: Whether other folds give way.

    Raises:
        TrainingError: Others are there, and must not give way.
    """
    if file.is_file() and read_splits(file) != splits and not overwrite:
        why = f"{', '.join(trained)} trained on them" if trained else "they may be somebody's own"
        raise TrainingError(f"{file} holds other folds, and {why}: nothing was changed", settings=("overwrite",))
    write_splits(file, splits)
