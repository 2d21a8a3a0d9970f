"""What an output folder remembers, for one run: which cases are done, who works on which, and what may be replaced."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ctseg.errors import OutputError
from ctseg.files.cases import Case
from ctseg.files.digests import sha256_of_file
from ctseg.files.folders import make_folder
from ctseg.files.identity import KnownFile, printable
from ctseg.predict.claims import Claim, Claims
from ctseg.predict.outcomes import MadeBy, Outcome, OutcomeStore, key_of, memory_at_hand
from ctseg.predict.ownership import is_foreign
from ctseg.predict.presence import OtherRuns, Presence
from ctseg.predict.report import adopt_earlier_report, now

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staged:
    """What a case's segmentation has written into the run's own folder, and what is to be said of it.

    Attributes:
        outcome: Without ``outputs``.
        files: By the names that they will have in the output folder.
    """

    outcome: Outcome
    files: Mapping[str, Path] = field(default_factory=dict)


class Ledger:
    """The ledger of an output folder, as one run uses it.

    Args:
        output: The folder, which exists.
        presence: The run.
        overwrite: Whether files that are not ctseg's may be replaced.

    Attributes:
        others: The other runs of the folder.
        claims: Who works on which case.
        before: The outcomes when the run began, see :meth:`OutcomeStore.written`.
    """

    def __init__(self, output: Path, presence: Presence, *, overwrite: bool) -> None:
        self._output = output
        self._overwrite = overwrite
        self._to_do: set[str] = set()
        self._store = OutcomeStore(output, through=presence.folder)
        self.others = OtherRuns(output)
        make_folder(self._store.folder)
        with memory_at_hand(output):
            self.others.remove_leftovers()
            adopt_earlier_report(output, self._store)
            self.before = self._store.written()
        self.claims = Claims(output, presence, self.others)

    def ended_since(self, case: str) -> Outcome | None:
        """Return the outcome of a case that was written since this run began."""
        key = key_of(case)
        written = self._store.stamp(key)
        if written is None or written == self.before.get(key):
            return None
        return self._store.read(case)

    def done_before(
        self,
        case: Case,
        wanted: Sequence[str],
        made_by: MadeBy,
        why_stale: Callable[[Outcome], str | None] = lambda _: None,
    ) -> Outcome | None:
        """Return the outcome of a case that need not be done again; why another must is told once, and looked at once.

        Args:
            case: With the files that would be segmented now.
            wanted: Names of the files that must be there.
            made_by: What would segment it now.
            why_stale: Says why files of an outcome of the same labels are not those that would be written now.
        """
        if case.name in self._to_do:
            return None
        found = self._found_done(case, wanted, made_by, why_stale)
        if isinstance(found, Outcome):
            return found
        self._to_do.add(case.name)
        if found is not None:
            logger.warning("%s: done again: %s", printable(case.name), found)
        return None

    def still_there(self, case: Case, made_by: MadeBy) -> Outcome | None:
        """Return the outcome of a case's labels as they would be made now, with those outputs that are still ctseg's.

        Args:
            case: With the files that would be segmented now.
            made_by: What would segment it now.

        Raises:
            OSError: Something is there and cannot be looked at.
        """
        outcome = self._store.read(case.name)
        if outcome is None or outcome.status != "ok" or self.differs(outcome, case, made_by) is not None:
            return None
        outputs = tuple(
            file
            for file in outcome.outputs
            if (self._output / file.name).exists() and not self._is_foreign(file.name, outcome)
        )
        return outcome.model_copy(update={"outputs": outputs})

    def differs(self, outcome: Outcome, case: Case, made_by: MadeBy) -> str | None:
        """Return why an outcome is not that of a case's files as they are now and by what would segment them.

        Args:
            outcome: Of a case of this name.
            case: With the files that would be segmented now.
            made_by: What would segment it now.
        """
        if outcome.made_by is None or not outcome.made_by.makes_the_same(made_by):
            return "it was made by another model, or with other options"
        try:
            if outcome.status == "ok" and not is_scan_of(outcome, case):
                return "its scan is not the one that was segmented"
        except OSError as error:
            return f"it cannot be looked at ({error.strerror or error})"
        return None

    def foreign(self, claim: Claim, names: Sequence[str]) -> list[str]:
        """Return which files of a case stand there and are not ctseg's, unless they may be replaced."""
        if self._overwrite:
            return []
        outcome = self._store.read(claim.case)
        return [name for name in names if is_foreign(self._output / name, outcome, claim.left)]

    def kept(self, case: Case, outcome: Outcome, names: Sequence[str]) -> Outcome:
        """Return the outcome of a case in whose place something stands that is not ctseg's.

        Args:
            case: With the files that would be segmented now.
            outcome: What its outcome would be.
            names: Of the files that are not ctseg's.
        """
        earlier, is_of_another_scan = self._store.read(case.name), False
        with suppress(OSError):  # a scan that cannot be looked at
            if earlier is not None and earlier.inputs and case.problem is None:
                is_of_another_scan = not is_scan_of(earlier, case)
        return _kept(outcome, names, earlier, is_of_another_scan=is_of_another_scan)

    def put(self, claim: Claim, staged: Staged, stale: Sequence[str]) -> Outcome:
        """Put a case's files in place, remove those that are stale, and write its outcome; ends the claim.

        Args:
            claim: Of the case.
            staged: What to put in place, and what to say.
            stale: Names of files that are removed where they are ctseg's and nothing takes their place.

        Returns:
            The outcome as written.

        Raises:
            ClaimLostError: Another run has taken the case over; nothing was put in place.
            OutputError: The folder cannot be written.
        """
        files = [KnownFile(name=printable(name), sha256=sha256_of_file(path)) for name, path in staged.files.items()]
        with self.claims.putting(claim, {file.name: file.sha256 for file in files}):
            earlier = self._store.read(claim.case)
            outcome = staged.outcome
            if outcome.status != "kept":
                outcome = outcome.model_copy(update={"outputs": tuple(files), "ended": now()})
            if changed := self.foreign(claim, list(staged.files)):  # while it was computed
                outcome = _kept(outcome, changed, earlier, is_of_another_scan=_is_of_another_scan(earlier, outcome))
            else:
                self._rename(staged.files)
            gone = [name for name in stale if name not in staged.files and self._removed(name, earlier, claim)]
            if gone:
                logger.warning("%s: removed %s, which an earlier run had made", claim.case, ", ".join(gone))
            self._store.write(claim.case, outcome)
        return outcome

    def say_again(self, case: str, outcome: Outcome) -> None:
        """Write down something else of a case that is done; nothing happens where another run works on it.

        Raises:
            OutputError: It cannot be written.
        """
        if (claim := self.claims.take(case)) is not None:
            try:
                self._store.write(case, outcome)
            finally:
                self.claims.drop(claim, is_done=True)

    def _found_done(
        self, case: Case, wanted: Sequence[str], made_by: MadeBy, why_stale: Callable[[Outcome], str | None]
    ) -> Outcome | str | None:
        """Return the outcome of a case that need not be done again, or why it must; None: nothing is known of it."""
        outcome = self._store.read(case.name)
        if outcome is None or outcome.status != "ok":
            return None
        if (why := self.differs(outcome, case, made_by)) is not None:
            return why
        written = {file.name for file in outcome.outputs}
        if lacking := [name for name in wanted if printable(name) not in written]:
            return f"{lacking[0]} was not written"
        if (why := why_stale(outcome)) is not None:
            return why
        try:
            if missing := [name for name in wanted if not (self._output / name).exists()]:
                return f"{missing[0]} has gone"
            if any(self._is_foreign(name, outcome) for name in wanted):
                return None  # what stands there decides
        except OSError as error:
            return f"it cannot be looked at ({error.strerror or error})"
        return outcome

    def _is_foreign(self, name: str, outcome: Outcome) -> bool:
        return is_foreign(self._output / name, outcome, {})

    def _rename(self, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            try:
                path.replace(self._output / name)
            except OSError as error:
                raise OutputError(
                    f"{self._output / name}: cannot be put in place: {error.strerror or error}"
                ) from error

    def _removed(self, name: str, earlier: Outcome | None, claim: Claim) -> bool:
        path = self._output / name
        try:
            if not os.path.lexists(path) or is_foreign(path, earlier, claim.left):
                return False
            path.unlink()
        except OSError as error:
            raise OutputError(f"{path}: is stale and cannot be removed: {error.strerror or error}") from error
        return True


def _kept(
    outcome: Outcome, names: Sequence[str], earlier: Outcome | None, *, is_of_another_scan: bool = False
) -> Outcome:
    """Return the outcome of a case in whose place something stands that is not ctseg's.

    Args:
        outcome: What the case's would be.
        names: Of the files that are not ctseg's.
        earlier: The case's outcome until now: what it calls ctseg's stays so, and the scan that was segmented.
        is_of_another_scan: Whether the scan is no longer that one.
    """
    text = f"{', '.join(map(printable, names))}: not made by ctseg, or changed since: left alone"
    if is_of_another_scan:
        text += ", though the scan of this name is not the one that was segmented"
    return Outcome(
        case=outcome.case,
        status="kept",
        made_by=outcome.made_by,
        inputs=earlier.inputs if earlier is not None else (),
        outputs=earlier.outputs if earlier is not None else (),
        segments=earlier.segments if earlier is not None else (),
        objects=earlier.objects if earlier is not None else (),
        warnings=(text,),
        ended=now(),
    )


def _is_of_another_scan(earlier: Outcome | None, outcome: Outcome) -> bool:
    digests = [[file.sha256 for file in one.inputs] for one in (earlier, outcome) if one is not None and one.inputs]
    return len(digests) == 2 and digests[0] != digests[1]


def is_scan_of(outcome: Outcome, case: Case) -> bool:
    """Whether a case has the files, with the same bytes, that an outcome is of.

    Raises:
        OSError: One is there and cannot be read.
    """
    known, parts = outcome.inputs, case.parts
    return len(known) == len(parts) and all(file.is_still(part) for file, part in zip(known, parts, strict=True))
