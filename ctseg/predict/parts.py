"""Parts of a folder: which cases of the whole list a run does, and whether all parts saw the same list.

Each part lists the whole input and takes every N-th case, as nnU-Net does. Hosts that do not see the same input
would leave cases to nobody: so each part writes down which list it saw, and what differs is told.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctseg.documents import Document
from ctseg.errors import SetupError
from ctseg.files.cases import Case
from ctseg.predict.notes import read_notes, write_note
from ctseg.predict.outcomes import MEMORY_NAME
from ctseg.predict.presence import Presence

Scheduler = Literal["slurm", "kubernetes"]
"""Whose variables say which part a process does."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Every ``num_parts``-th case of a list, from the case ``part_id`` on; by itself the whole list.

    Raises:
        SetupError: There is no such part.

    Source:
        nnU-Net's ``predict_from_files``, whose words these are.
    """

    part_id: int = 0
    num_parts: int = 1

    def __post_init__(self) -> None:
        if self.num_parts < 1 or not 0 <= self.part_id < self.num_parts:
            raise SetupError(
                f"there is no part {self.part_id} of {self.num_parts}: N parts have the numbers 0 to N - 1",
                settings=("num_parts", "part_id"),
            )

    def __str__(self) -> str:
        return f"{self.part_id}/{self.num_parts}"

    def of(self, cases: Sequence[Case]) -> Sequence[Case]:
        """Return the cases of this part."""
        return cases[self.part_id :: self.num_parts]


class PartNote(Document):
    """What a part wrote down when it began.

    Attributes:
        part: ``I/N``.
        list_digest: See :func:`digest_of_list`.
        cases: How many the list had.
        run: Which run it was.
    """

    part: str
    list_digest: str
    cases: int
    run: str


def part_from(scheduler: Scheduler, variables: Mapping[str, str], num_parts: int | None = None) -> Part:
    """Return the part that a scheduler has given to a process.

    Args:
        scheduler: ``slurm``: a task of a job array; ``kubernetes``: a pod of an Indexed Job.
        variables: The environment.
        num_parts: How many parts there are. Slurm tells how many tasks the array has, and numbers from any number
            on; where this is given, the task's own number is the part. Kubernetes does not tell its completions.

    Raises:
        SetupError: The variables are not set, or do not say which part.
    """
    if scheduler == "kubernetes":
        if num_parts is None:
            raise SetupError(
                "Kubernetes does not tell a pod how many there are: give the Job's number of completions",
                settings=("num_parts",),
            )
        return Part(_number(variables, "JOB_COMPLETION_INDEX"), num_parts)
    task = _number(variables, "SLURM_ARRAY_TASK_ID")
    if num_parts is not None:
        return Part(task, num_parts)
    first, last, step, count = (
        _number(variables, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "STEP", "COUNT")
    )
    if step < 1 or (task - first) % step or first + (count - 1) * step != last:
        raise SetupError(
            f"task {task} of {count} in an array from {first} to {last} is no part: expected an array without gaps; "
            "or say how many parts there are, then the task's number is the part",
            settings=("num_parts",),
        )
    return Part((task - first) // step, count)


def digest_of_list(cases: Sequence[Case]) -> str:
    """Return the SHA-256 of the names of cases, in their order."""
    return hashlib.sha256(b"\0".join(os.fsencode(case.name) for case in cases)).hexdigest()


def note_part(output: Path, presence: Presence, part: Part, cases: Sequence[Case]) -> None:
    """Write down which list a part saw, and warn where another part saw another one; a whole list is no part.

    Args:
        output: The output folder.
        presence: The run.
        part: What it does.
        cases: The whole list.

    Raises:
        OutputError: It cannot be written.
    """
    if part.num_parts == 1:
        return
    note = PartNote(part=str(part), list_digest=digest_of_list(cases), cases=len(cases), run=presence.run)
    write_note(_folder(output) / f"{part.part_id}-of-{part.num_parts}.json", note, through=presence.folder)
    if told := different_lists(output):
        logger.warning("%s", told)


def different_lists(output: Path) -> str | None:
    """Return a sentence where parts saw different lists when they last began; None: they did not.

    Where a folder was cut into other numbers of parts before, only the latest counts.
    """
    notes: dict[str, list[PartNote]] = {}
    newest = (0, "")
    for path, note in read_notes(_folder(output), PartNote):
        number = note.part.partition("/")[2]
        notes.setdefault(number, []).append(note)
        with contextlib.suppress(OSError):
            newest = max(newest, (path.stat().st_mtime_ns, number))
    lists: dict[str, list[PartNote]] = {}
    for note in notes.get(newest[1], ()):
        lists.setdefault(note.list_digest, []).append(note)
    if len(lists) < 2:
        return None
    saw = [f"{', '.join(sorted(note.part for note in same))} saw {same[0].cases} cases" for same in lists.values()]
    return (
        f"parts saw different lists: {'; '.join(sorted(saw))}: cases may be in no part; "
        "see that all see the same input, and start again those that did not"
    )


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "")
    if not text.isascii() or not text.isdigit():
        found = f"found {text!r}" if text else "which is not set"
        raise SetupError(
            f"expected a number in {name}, {found}: start this as a part of an array, or name the part",
            settings=("num_parts", "part_id"),
        )
    return int(text)


def _folder(output: Path) -> Path:
    return output / MEMORY_NAME / "parts"
