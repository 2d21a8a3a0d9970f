"""What a watcher remembers of each series: ``OUT/.ctseg/watch/<key>.json``, beside the outcomes of its cases."""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ctseg.documents import Document
from ctseg.files.regular import open_regular
from ctseg.pacs.find import PacsSeries
from ctseg.predict.notes import write_note
from ctseg.predict.outcomes import MEMORY_NAME, CaseError, FailedFormat, WrittenObject

logger = logging.getLogger(__name__)

State = Literal["segmented", "stored", "left out", "refused", "failed"]


class WatchNote(Document):
    """How far a series has come.

    Attributes:
        series: What messages call it.
        instances: Digest of the set of its instances, see :func:`ctseg.pacs.stability.digest_of_instances`.
        count: How many they were.
        state: ``segmented``: its files lie in the output folder, and are not all stored yet. ``stored``: all are in
            the PACS, or were. ``left out``: it is no CT series, or does not fit the rules. ``refused``: it can never
            be segmented as it is. ``failed``: it was tried, and may be tried again.
        case: Its name in the output folder.
        objects: That are to be stored, or were.
        failed_formats: In which it could not be written; the others are stored.
        why: It was left out, refused, or failed.
        attempts: How often it has failed.
    """

    schema_version: Literal[1] = 1
    series: str
    instances: str
    count: int
    state: State
    case: str | None = None
    objects: tuple[WrittenObject, ...] = ()
    failed_formats: tuple[FailedFormat, ...] = ()
    why: CaseError | None = None
    attempts: int = 0


@dataclass
class WatchSummary:
    """What a watcher has done.

    Attributes:
        ended: Last note of each series that this watcher has brought to its end.
        left: Series that are still arriving, or that others work on.
        known: Those that fit the rules and had ended when they were looked at.
    """

    ended: dict[PacsSeries, WatchNote] = field(default_factory=dict)
    left: int = 0
    known: set[PacsSeries] = field(default_factory=set)

    @property
    def before(self) -> int:
        """How many series others had brought to their ends, or earlier watchers."""
        return len(self.known - self.ended.keys())

    @property
    def counts(self) -> Counter[str]:
        """How many series ended in which state; ``failed``, where something could not be stored, too."""
        notes = self.ended.values()
        return Counter("failed" if note.why and note.state == "segmented" else note.state for note in notes)

    @property
    def incomplete(self) -> int:
        """How many series were stored, but lack a format."""
        return sum(note.state == "stored" and bool(note.failed_formats) for note in self.ended.values())


class WatchNotes:
    """The notes of an output folder, of one way to segment: another model, or other options, have their own.

    Args:
        output: The folder.
        work: Digest of what decides what is stored.
        through: Where files lie that are not whole yet.
    """

    def __init__(self, output: Path, work: str, *, through: Path) -> None:
        self._folder = output / MEMORY_NAME / "watch"
        self._work = work
        self._through = through

    def key(self, series: PacsSeries) -> str:
        """Return what names a series here: no UID."""
        return hashlib.sha256(f"{series.path}\0{self._work}".encode()).hexdigest()[:32]

    def read(self, series: PacsSeries) -> WatchNote | None:
        """Return what is known of a series; None: nothing, or nothing that can be used, which is told.

        Raises:
            OSError: The note is there and cannot be read.
        """
        path = self._path(series)
        try:
            with open_regular(path) as file:
                return WatchNote.model_validate_json(file.read())
        except FileNotFoundError:
            return None
        except ValidationError:
            logger.warning("%s: cannot be used: nothing is known of %s", path, series.label)
            return None

    def write(self, series: PacsSeries, note: WatchNote) -> None:
        """Write down how far a series has come.

        Raises:
            OutputError: It cannot be written; what was known before stays.
        """
        write_note(self._path(series), note, through=self._through)

    def _path(self, series: PacsSeries) -> Path:
        return self._folder / f"{self.key(series)}.json"
