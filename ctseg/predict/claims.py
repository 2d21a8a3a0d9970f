"""Who works on a case, and the one moment in which its files change.

A claim is a file that only one run can create. A run that finds another's claim leaves the case to it, and takes
the case over where that run is dead or silent. Whoever has lost its claim puts nothing in place: claim and files
are looked at and changed under one lock.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout
from pydantic import ValidationError

from ctseg.documents import Document
from ctseg.errors import OutputError
from ctseg.files.atomic import temporary_path, write_text
from ctseg.files.locking import lock_of
from ctseg.predict.outcomes import MEMORY_NAME, key_of
from ctseg.predict.presence import SILENT_S, OtherRuns, Presence

_LOCKS = 64
"""Files that cases share as locks: they stay, and a folder of many cases has no more."""


class ClaimNote(Document):
    """What a claim's file says.

    Attributes:
        run: Who works on the case.
        putting: SHA-256 by name of the files that are being put in place: a run that is killed between two of them
            leaves files that are ctseg's, though no outcome says so yet.
    """

    run: str
    putting: Mapping[str, str] = {}


class ClaimLostError(OutputError):
    """Another run has taken the case over, because this one was silent; nothing was put in place."""


@dataclass(frozen=True)
class Claim:
    """A case that this run works on.

    Attributes:
        case: Its name.
        path: The claim's file.
        left: What an earlier holder was putting in place when it died.
    """

    case: str
    path: Path
    left: Mapping[str, str]


class Claims:
    """The claims of one run.

    Args:
        output: The output folder.
        presence: This run.
        others: The other runs of the folder.
    """

    def __init__(self, output: Path, presence: Presence, others: OtherRuns) -> None:
        memory = output / MEMORY_NAME
        self._folder = memory / "claims"
        self._locks = memory / "locks"
        self._run = presence.run
        self._through = presence.folder
        self._others = others
        for folder in (self._folder, self._locks):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from error
        self._in_process = [threading.Lock() for _ in range(_LOCKS)]
        self._lock = threading.Lock()
        self._first_unreadable: dict[Path, float] = {}

    def take(self, case: str) -> Claim | None:
        """Claim a case; None while a living run holds it.

        Raises:
            OutputError: The claim cannot be written.
        """
        path = self._folder / f"{key_of(case)}.json"
        if self._created(path):
            return Claim(case, path, {})
        note = _read(path)
        if note is not None and not (self._others.is_dead(note.run) or self._others.is_silent(note.run)):
            return None
        if note is None and not self._unreadable_for_long(path):
            return None
        with self._locked(case) as locked:
            if not locked or _read(path) != note:  # somebody is quicker
                return None
            left = {} if note is None else note.putting
            self._write(path, left)
        return Claim(case, path, left)

    @contextlib.contextmanager
    def putting(self, claim: Claim, digests: Mapping[str, str]) -> Iterator[None]:
        """Put files in place in the block, if the case is still this run's; the claim ends with the block.

        Args:
            claim: Of the case.
            digests: SHA-256 by name of what will be put in place.

        Raises:
            ClaimLostError: Another run has taken the case over.
            OutputError: The claim cannot be written.
        """
        with self._locked(claim.case, wait=True):
            note = _read(claim.path)
            if note is None or note.run != self._run:
                raise ClaimLostError(f"case {claim.case}: another run has taken it over, and will write it")
            self._write(claim.path, {**claim.left, **digests})
            yield
            claim.path.unlink(missing_ok=True)

    def _unreadable_for_long(self, path: Path) -> bool:
        """Whether a claim has said nothing since this run first saw it: its run was killed while it made it."""
        with self._lock:
            first = self._first_unreadable.setdefault(path, time.monotonic())
        return time.monotonic() - first > SILENT_S

    def drop(self, claim: Claim) -> None:
        """Give a case back, undone; what an earlier holder left is still known to be ctseg's."""
        with contextlib.suppress(OSError, OutputError), self._locked(claim.case, wait=True):
            note = _read(claim.path)
            if note is not None and note.run == self._run and not note.putting:
                claim.path.unlink(missing_ok=True)

    def holder(self, case: str) -> str | None:
        """Return the run that works on a case; None: nobody."""
        note = _read(self._folder / f"{key_of(case)}.json")
        return None if note is None else note.run

    def _created(self, path: Path) -> bool:
        """Create a claim's file, whole, unless there is one."""
        if path.exists():
            return False
        temporary = temporary_path(path, self._through)
        try:
            self._write(temporary, {})
            try:
                os.link(temporary, path)  # at once, and only if nothing has the name
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                with path.open("x", encoding="utf-8") as file:
                    file.write(temporary.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _write(self, path: Path, putting: Mapping[str, str]) -> None:
        write_text(path, ClaimNote(run=self._run, putting=putting).model_dump_json(), through=self._through)

    @contextlib.contextmanager
    def _locked(self, case: str, *, wait: bool = False) -> Iterator[bool]:
        number = int(key_of(case)[-2:], 16) % _LOCKS
        with self._in_process[number]:
            lock = lock_of(self._locks / f"{number:02}")
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                yield False
                return
            except OSError as error:
                raise OutputError(f"{lock.lock_file}: cannot be locked: {error.strerror or error}") from error
            try:
                yield True
            finally:
                lock.release()


def being_put(output: Path) -> frozenset[str]:
    """Return the names of the files that runs are putting into a folder, or were when they were killed."""
    notes = (_read(path) for path in (output / MEMORY_NAME / "claims").glob("*.json"))
    return frozenset(name for note in notes if note is not None for name in note.putting)


def _read(path: Path) -> ClaimNote | None:
    """Return what a claim says; None where there is none, or a killed run has left it empty."""
    try:
        return ClaimNote.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
