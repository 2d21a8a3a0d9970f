"""Who works on a case, and the one moment in which its files change.

A claim is a file that only one run can create. A run that finds another's claim leaves the case to it, and takes
the case over where that run is dead or silent: such a case may be what killed it, and whoever takes it says that it
knows. Whoever has lost its claim puts nothing in place: claim and files are looked at and changed under one lock.
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
from ctseg.files.folders import make_folder
from ctseg.files.locking import acquired, holder_of
from ctseg.predict.outcomes import MEMORY_NAME, key_of
from ctseg.predict.presence import SILENT_S, OtherRuns, Presence

_LOCKS = 64
"""Files that cases share as locks: they stay, and a folder of many cases has no more."""
_LOCKED_S = SILENT_S
"""Whoever holds one for longer was stopped in the very moment, or was killed where only a file tells."""
_NOBODY = ""


class ClaimNote(Document):
    """What a claim's file says.

    Attributes:
        run: Who works on the case; empty where a run that ended by itself has given it back.
        putting: SHA-256 by name of the files that are being put in place: a run that is killed between two of them
            leaves files that are ctseg's, though no outcome says so yet.
        kills: How many runs were killed, or fell silent, while they worked on the case.
    """

    run: str
    putting: Mapping[str, str] = {}
    kills: int = 0


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
            make_folder(folder)
        self._in_process = [threading.Lock() for _ in range(_LOCKS)]
        self._lock = threading.Lock()
        self._held: set[Path] = set()
        self._not_ended: list[tuple[Claim, bool]] = []
        self._first_unreadable: dict[Path, float] = {}

    def take(self, case: str, *, suspects: bool = False) -> Claim | None:
        """Claim a case.

        Args:
            case: Its name.
            suspects: Take it also where it was in flight when a run was killed or fell silent.

        Returns:
            None while a living run holds it, and for a suspect that is not to be taken.

        Raises:
            OutputError: The claim cannot be read or written.
        """
        path = self._path(case)
        if not self._hold(path):
            return None
        claim = None
        try:
            claim = self._taken(case, path, suspects=suspects)
        finally:
            if claim is None:
                self._release(path)
        return claim

    def suspicion(self, case: str) -> int:
        """Return how many runs were killed, or fell silent, while they worked on a case that is free now."""
        path = self._path(case)
        try:
            note = _read(path)
        except OutputError:  # told when the case has its turn
            return 0
        return self._kills(note) if path not in self._held and self._is_free(path, note) else 0

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
        with self._locked(claim.case, timeout_s=_LOCKED_S):
            note = _read(claim.path)
            if note is None or note.run != self._run:
                raise ClaimLostError(f"case {claim.case}: another run has taken it over, and will write it")
            self._write(claim.path, note.model_copy(update={"putting": {**claim.left, **digests}}))
            yield
            self._end(claim, note, is_done=True)

    def drop(self, claim: Claim, *, is_done: bool = False) -> None:
        """Give a case back; what stays is what an earlier holder left in place, and how many runs it may have killed.

        Args:
            claim: Of the case; nothing happens where it has ended.
            is_done: Whether the case has its outcome, so that nothing of the claim is needed any more.
        """
        if claim.path not in self._held:
            return
        try:
            with self._locked(claim.case, timeout_s=_LOCKED_S):
                note = _read(claim.path)
                if note is not None and note.run == self._run:
                    self._end(claim, note, is_done=is_done)
        except OutputError:  # a disk that is away
            self._not_ended.append((claim, is_done))
        finally:
            self._release(claim.path)

    def forget(self, case: str) -> None:
        """Remove the claim that a run which has ended left on a case that is done."""
        with contextlib.suppress(OutputError):
            if self._path(case).exists() and (claim := self.take(case, suspects=True)) is not None:
                self.drop(claim, is_done=True)

    def close(self) -> None:
        """Give back what could not be given back while the disk was away."""
        not_ended, self._not_ended = self._not_ended, []
        for claim, is_done in not_ended:
            if self._hold(claim.path):
                self.drop(claim, is_done=is_done)

    def _taken(self, case: str, path: Path, *, suspects: bool) -> Claim | None:
        if self._created(path):
            return Claim(case, path, {})
        note = _read(path)
        if not self._is_free(path, note) or (self._kills(note) and not suspects):
            return None
        taken = ClaimNote(run=self._run, putting=note.putting if note else {}, kills=self._kills(note))
        with self._locked(case, timeout_s=0) as locked:
            if not locked or _read(path) != note:  # somebody is quicker
                return None
            self._write(path, taken)
        return Claim(case, path, taken.putting)

    def _is_free(self, path: Path, note: ClaimNote | None) -> bool:
        if note is None:
            return self._unreadable_for_long(path)
        if note.run in (_NOBODY, self._run):
            return True
        return self._others.is_dead(note.run) or self._others.is_silent(note.run)

    def _kills(self, note: ClaimNote | None) -> int:
        """Return how many runs a case may have killed that nobody works on any more."""
        if note is None:  # its run was killed before it had begun
            return 0
        return note.kills + (note.run not in (_NOBODY, self._run))

    def _unreadable_for_long(self, path: Path) -> bool:
        """Whether a claim has said nothing since this run first saw it: its run was killed while it made it."""
        with self._lock:
            first = self._first_unreadable.setdefault(path, time.monotonic())
        return time.monotonic() - first > SILENT_S

    def _end(self, claim: Claim, note: ClaimNote, *, is_done: bool) -> None:
        """End a claim; a disk that is away meanwhile takes nothing from the case, and it is ended later."""
        try:
            if is_done or not (note.putting or note.kills):
                claim.path.unlink(missing_ok=True)
            else:
                self._write(claim.path, note.model_copy(update={"run": _NOBODY}))
        except (OSError, OutputError):
            self._not_ended.append((claim, is_done))
        self._release(claim.path)

    def _hold(self, path: Path) -> bool:
        """Mark a claim as this run's, unless one of its threads has done so."""
        with self._lock:
            is_free = path not in self._held
            self._held.add(path)
        return is_free

    def _release(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)

    def _path(self, case: str) -> Path:
        return self._folder / f"{key_of(case)}.json"

    def _created(self, path: Path) -> bool:
        """Create a claim's file, whole, unless there is one."""
        if path.exists():
            return False
        temporary = temporary_path(path, self._through)
        try:
            # not brought to the disk: after a power cut nobody works on the case
            temporary.write_text(_json_of(ClaimNote(run=self._run)), encoding="utf-8")
            return _linked(temporary, path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _write(self, path: Path, note: ClaimNote) -> None:
        write_text(path, _json_of(note), through=self._through)

    @contextlib.contextmanager
    def _locked(self, case: str, *, timeout_s: float) -> Iterator[bool]:
        """Hold the lock that a case shares with others; False where it is another's and nothing is waited for.

        Raises:
            OutputError: The lock was not to be had in time, or cannot be written.
        """
        number = int(key_of(case)[-2:], 16) % _LOCKS
        with self._in_process[number]:
            try:
                lock = acquired(self._locks / f"{number:02}", timeout_s=timeout_s)
            except Timeout as error:
                if timeout_s:
                    raise OutputError(
                        f"{error.lock_file}: held for {timeout_s:.0f} s by {holder_of(error.lock_file)}"
                    ) from error
                yield False
                return
            except OSError as error:
                raise OutputError(f"{self._locks}: cannot be locked: {error.strerror or error}") from error
            try:
                yield True
            finally:
                lock.release()


def being_put(output: Path) -> frozenset[str]:
    """Return the names of the files that runs are putting into a folder, or were when they were killed."""
    notes = (_read(path) for path in (output / MEMORY_NAME / "claims").glob("*.json"))
    return frozenset(name for note in notes if note is not None for name in note.putting)


def _json_of(note: ClaimNote) -> str:
    return note.model_dump_json(exclude_defaults=True)


def _linked(whole: Path, path: Path) -> bool:
    """Give a file another name at once, unless something has it."""
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or a disk that is away
        return _copied(whole, path)
    return True


def _copied(whole: Path, path: Path) -> bool:
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(whole.read_bytes())
    except OSError:
        path.unlink(missing_ok=True)  # else it would be somebody's, and nobody's, for a while
        raise
    return True


def _read(path: Path) -> ClaimNote | None:
    """Return what a claim says; None where there is none, or a killed run has left it empty.

    Raises:
        OutputError: It is there and cannot be read.
    """
    try:
        return ClaimNote.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
