"""Work that runs have left: cases that neither ended nor failed, because the server went away or the run was stopped.

``OUT/.ctseg/left/<run>.json`` names them. A case counts as left until somebody writes an outcome of it.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ctseg.documents import Document
from ctseg.errors import OutputError
from ctseg.files.cases import Case
from ctseg.files.identity import printable
from ctseg.predict.notes import read_notes, write_note
from ctseg.predict.outcomes import MEMORY_NAME, key_of

logger = logging.getLogger(__name__)

Reason = Literal["server away", "workers away", "output disk away", "stopped"]
"""Why a run ended before its work did; each is worth trying again."""
Stamp = tuple[int, int]
"""Inode and time of an outcome's file, see :meth:`ctseg.predict.outcomes.OutcomeStore.written`."""


class NotDone(Document):
    """A case that a run has left; an older outcome and label map of it stay as they were.

    Attributes:
        case: Its name, see :func:`ctseg.files.identity.printable`.
        reason: Why the run ended.
    """

    case: str
    reason: Reason


class _LeftCase(Document):
    key: str
    case: str
    before: Stamp | None


class _LeftWork(Document):
    reason: Reason
    cases: tuple[_LeftCase, ...]


def leave(
    output: Path, run: str, cases: Sequence[Case], reason: Reason, before: Mapping[str, Stamp], *, of: int
) -> tuple[NotDone, ...]:
    """Tell and write down which cases ``of`` so many a run leaves, and return them; see :func:`write_left`."""
    if not cases:
        return ()
    logger.warning("%d of %d cases are not done: %s", len(cases), of, reason)
    try:
        write_left(output, run, cases, reason, before)
    except OutputError as error:
        logger.error("%s", error)
    return tuple(NotDone(case=printable(case.name), reason=reason) for case in cases)


def write_left(output: Path, run: str, cases: Sequence[Case], reason: Reason, before: Mapping[str, Stamp]) -> None:
    """Write down which cases a run leaves.

    Args:
        output: The output folder.
        run: Name of the run.
        cases: What it leaves.
        reason: Why.
        before: The outcomes of the folder when the run began, by key: another one is somebody's who did the case.

    Raises:
        OutputError: It cannot be written.
    """
    left = tuple(
        _LeftCase(key=(key := key_of(case.name)), case=printable(case.name), before=before.get(key)) for case in cases
    )
    write_note(_folder(output) / f"{run}.json", _LeftWork(reason=reason, cases=left))


def read_left(output: Path, outcomes: Mapping[str, Stamp]) -> tuple[NotDone, ...]:
    """Return the cases that runs have left and nobody has done since, in order of their names.

    Args:
        output: The output folder.
        outcomes: Its outcomes by key, as they are now.
    """
    found = {
        left.key: NotDone(case=left.case, reason=work.reason)
        for _, work in read_notes(_folder(output), _LeftWork)
        for left in _still(work, outcomes)
    }
    return tuple(sorted(found.values(), key=lambda case: case.case))


def take_over_left(output: Path, cases: Sequence[Case], outcomes: Mapping[str, Stamp]) -> None:
    """Forget what runs have left where it is the work of a run that begins.

    Args:
        output: The output folder.
        cases: Which the run will do.
        outcomes: The folder's outcomes by key, as they are now.
    """
    taken = {key_of(case.name) for case in cases}
    for path, work in read_notes(_folder(output), _LeftWork):
        if {left.key for left in _still(work, outcomes)} <= taken:
            with contextlib.suppress(OSError):  # its cases count as left no more once they have new outcomes
                path.unlink(missing_ok=True)


def _still(work: _LeftWork, outcomes: Mapping[str, Stamp]) -> list[_LeftCase]:
    return [left for left in work.cases if outcomes.get(left.key) == left.before]


def _folder(output: Path) -> Path:
    return output / MEMORY_NAME / "left"
