"""The problems of a data set as lines for people: what many cases have in common is told once, with their number."""

import re
from collections.abc import Sequence

from ctseg.files.dataset_cases import DatasetProblem

_EACH_TOLD = 3
"""Cases that each have a line of their own; of more, the first has one."""
_NAMES_TOLD = 12
"""Other cases that a line names."""
_MEASURED = re.compile(r"\([^()]*\)|-?\d+(\.\d+)?(e-?\d+)?(?= mm| degrees| voxels)")
"""Numbers that differ from case to case where the same is wrong with them."""


def problem_lines(problems: Sequence[DatasetProblem], *, kinds: bool = False) -> list[str]:
    """Return lines that tell what is wrong; cases of which the same is told share one where there are many.

    Args:
        problems: In the order in which they are told.
        kinds: Whether each line begins with the kind of its problem.
    """
    alike: dict[tuple[str, str], list[DatasetProblem]] = {}
    for problem in problems:
        alike.setdefault((problem.kind, _without_case(problem)), []).append(problem)
    lines = []
    for (kind, _), found in alike.items():
        start = f"[{kind}] " if kinds else ""
        cases = list(dict.fromkeys(problem.case for problem in found if problem.case is not None))
        if len(cases) <= _EACH_TOLD:
            lines += [f"{start}{problem.message}" for problem in found]
            continue
        others = cases[1:]
        lines.append(
            f"{start}{found[0].message}; the same is wrong with {len(others)} other cases: "
            f"{listed(others, most=_NAMES_TOLD)}"
        )
    return lines


def counted(count: int, what: str) -> str:
    """Return a number with what it counts, in the plural where it is not one: ``1 problem``, ``0 cases``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], *, most: int) -> str:
    """Return names in a row, and how many more there are than are told."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _without_case(problem: DatasetProblem) -> str:
    text = problem.message
    if problem.case is not None:
        name = re.escape(problem.case)
        text = re.sub(rf"(?<=^case ){name}(?=:)|(?<![\w.-]){name}(?=[_.])", "", text)
    return _MEASURED.sub("", text)
