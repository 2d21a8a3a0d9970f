"""One case of a folder run: found done, or claimed, segmented, and put in place; its outcome written."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from enum import Enum
from pathlib import Path

from ctseg.errors import CtsegError, OutputError, ServerAwayError, ServerError
from ctseg.files.cases import Case
from ctseg.files.identity import printable
from ctseg.predict.case_files import series_of
from ctseg.predict.claims import Claim, ClaimLostError
from ctseg.predict.ledger import Ledger, Staged
from ctseg.predict.left import Reason
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.options import BatchOptions, OutputFormat
from ctseg.predict.outcomes import CaseError, MadeBy, MadeByMember, Options, Outcome, error_of
from ctseg.predict.presence import Presence
from ctseg.predict.progress import Progress
from ctseg.predict.segmenter import CaseSegmenter
from ctseg.predict.staged_case import CaseStager, LabelsAtHand

logger = logging.getLogger(__name__)


class Turn(Enum):
    """Which cases are taken."""

    FREE = "those that nobody works on"
    AGAIN = "those that could not be written, once more"
    SUSPECTS = "those in flight when a run was killed"


class CaseWork:
    """Does the cases of one run, on any number of threads; once ``stopped`` is set, no more outcomes are written.

    Once ``went_away`` is set, no server will answer any more: cases that need none still end, the others are left.

    Args:
        segmenter: Segments them.
        presence: The run.
        output: The output folder.
        options: How they are segmented.
        budget: Memory that they share.
        progress: Told of each.
        list_digest: See :class:`MadeBy`.
    """

    def __init__(
        self,
        segmenter: CaseSegmenter,
        presence: Presence,
        output: Path,
        options: BatchOptions,
        budget: MemoryBudget,
        progress: Progress,
        *,
        list_digest: str | None = None,
    ) -> None:
        self.stopped = threading.Event()
        self.went_away = threading.Event()
        self.ledger = Ledger(output, presence, overwrite=options.overwrite)
        self.ended: dict[str, Outcome] = {}
        self._segmenter = segmenter
        self._output = output
        self._options = options
        self._progress = progress
        self._made_by = made_by_of(segmenter, presence.run, options, list_digest)
        self._stager = CaseStager(segmenter, presence.folder, options, budget, progress, self._made_by)
        self._disk_away = False
        self._put_off: set[str] = set()
        self._unwritten: dict[str, tuple[Case, Outcome]] = {}
        self._lock = threading.Lock()

    def end(self, case: Case, index: int, turn: Turn = Turn.FREE, *, failed: CtsegError | None = None) -> bool:
        """Bring a case to its end, unless another run works on it, or it is another turn's.

        Args:
            case: The case.
            index: Of the case among all; smaller goes first on the network.
            turn: Whose turn it is.
            failed: Why it is not tried: it has failed elsewhere, and that becomes its outcome.

        Returns:
            Whether it has ended.
        """
        if turn is Turn.FREE and case.name in self._put_off:
            return False
        try:
            outcome = self._outcome(case, index, turn, failed)
        except ClaimLostError as error:
            logger.warning("%s", error)
            return False
        except (OutputError, OSError) as raised:
            if self.stopped.is_set():
                return False
            away = _as_output_error(raised)
            if turn is Turn.FREE:
                logger.warning("%s: tried again at the end of the run: %s", printable(case.name), away)
                with self._lock:
                    self._put_off.add(case.name)
                return False
            outcome = self._failed(case, away)
            with self._lock:
                self._unwritten[case.name] = (case, outcome)
        if outcome is None:
            return False
        with self._lock:
            self.ended[case.name] = outcome
        self._progress.case_done(outcome)
        return True

    def has_ended(self, case: Case) -> bool:
        """Whether a case has an outcome, by this run or by another since it began."""
        with suppress(OSError):  # a disk that is away
            if case.name not in self.ended and (outcome := self.ledger.ended_since(case.name)) is not None:
                self.ended[case.name] = outcome
        return case.name in self.ended

    def is_put_off(self, case: Case) -> bool:
        """Whether a case could not be written: it is tried once more, when no other is left."""
        return case.name in self._put_off

    @property
    def reason_of_left(self) -> Reason:
        """Why cases are left that have not ended."""
        return "server away" if self.went_away.is_set() else "output disk away" if self._disk_away else "stopped"

    def close(self) -> None:
        """Write and give back what could not be when its case ended; what cannot be now either is told.

        Where no case could be written, the disk is at fault: all are left, and what an earlier run wrote stays.
        """
        is_written = any(outcome.status == "ok" and outcome.made_by == self._made_by for outcome in self.ended.values())
        if self._unwritten and not is_written:
            self._disk_away = True
            for name in self._unwritten:
                del self.ended[name]
            self._unwritten.clear()
        for case, outcome in self._unwritten.values():
            try:
                self._write_late(case, outcome)
            except (OutputError, OSError) as error:
                logger.error("%d outcomes could not be written: %s", len(self._unwritten), error)
                break
        self.ledger.claims.close()

    def _write_late(self, case: Case, outcome: Outcome) -> None:
        claim = self.ledger.claims.take(case.name, suspects=True)
        if claim is None:  # another run has it, and will write what becomes of it
            return
        theirs = None
        try:
            theirs = self.ledger.ended_since(case.name)
            if theirs is None:
                self.ledger.put(claim, Staged(outcome), stale=self._stager.names(case))
            else:
                self.ended[case.name] = theirs
        finally:
            self.ledger.claims.drop(claim, is_done=theirs is not None)

    def _outcome(self, case: Case, index: int, turn: Turn, failed: CtsegError | None) -> Outcome | None:
        if (outcome := self._ended_elsewhere(case) or self._done_before(case)) is not None:
            return outcome
        claim = self.ledger.claims.take(case.name, suspects=turn is Turn.SUSPECTS)
        if claim is None:
            return None
        outcome = None
        try:
            outcome = self._ended_elsewhere(case, tells=True)  # between the look and the claim
            return outcome or self._segmented(case, index, claim, failed)
        finally:
            self.ledger.claims.drop(claim, is_done=outcome is not None)

    def _ended_elsewhere(self, case: Case, *, tells: bool = False) -> Outcome | None:
        """Return the outcome of a case that another run ended since this one began."""
        outcome = self.ledger.ended_since(case.name)
        if outcome is None or (why := self._why_not_ours(outcome, case)) is None:
            return outcome
        if tells:
            logger.warning("%s: done again after another run did it: %s", printable(case.name), why)
        return None

    def _done_before(self, case: Case) -> Outcome | None:
        """Return the outcome of a case that was done when this run began, and need not be done again."""
        if not self._options.continue_prediction:
            return None
        files = self._stager.case_files
        outcome = self.ledger.done_before(
            case, self._stager.wanted(case), self._made_by, lambda outcome: files.why_stale(case, outcome)
        )
        if outcome is None:
            return None
        self.ledger.claims.forget(case.name)
        refused = files.refused(case, files.asked(case))
        if refused != outcome.failed_formats:  # of formats that another command asked for
            outcome = outcome.model_copy(update={"failed_formats": refused})
            self.ledger.say_again(case.name, outcome)
        return outcome.model_copy(update={"status": "skipped"})

    def _why_not_ours(self, outcome: Outcome, case: Case) -> str | None:
        """Return why what another run made of a case is not what this one would have made."""
        if (why := self.ledger.differs(outcome, case, self._made_by)) is not None or outcome.status != "ok":
            return why
        written = {file.name for file in outcome.outputs} | {failed.format for failed in outcome.failed_formats}
        files = self._stager.case_files
        for format_ in files.writable(case, files.asked(case)):
            if not {format_, printable(files.names(case)[format_])} & written:
                return f"it was not written as {format_}"
        return files.why_stale(case, outcome)

    def _segmented(self, case: Case, index: int, claim: Claim, failed: CtsegError | None) -> Outcome | None:
        """Segment a case that is this run's, and put it in place; a failure is an outcome too.

        Returns:
            None where the run was stopped or the server went away: what fails then is no failure of the case.
        """
        names, (formats, at_hand) = self._stager.names(case), self._formats(case)
        try:
            if foreign := self.ledger.foreign(claim, self._stager.wanted(case, formats)):
                return self.ledger.put(claim, Staged(self.ledger.kept(case, self._blank(case), foreign)), stale=())
            staged = self._try(case, index, formats, at_hand) if failed is None else Staged(self._failed(case, failed))
            if staged is None or self.stopped.is_set():
                return None
            return self.ledger.put(claim, staged, stale=names)
        finally:
            self._stager.clear(case)

    def _formats(self, case: Case) -> tuple[tuple[OutputFormat, ...], LabelsAtHand | None]:
        """Return the formats in which a case is written, and its label map if that is there: those that are asked for.

        Where a run goes on, those too that stand there of the same labels, so that all of them stay one set.
        """
        files = self._stager.case_files
        formats = files.asked(case)
        if not self._options.continue_prediction or (earlier := self.ledger.still_there(case, self._made_by)) is None:
            return formats, None
        there = files.written_before(case, earlier)
        at_hand = LabelsAtHand(self._output / files.names(case)["nifti"], earlier) if "nifti" in there else None
        return formats + tuple(format_ for format_ in there if format_ not in formats), at_hand

    def _try(
        self, case: Case, index: int, formats: Sequence[OutputFormat], at_hand: LabelsAtHand | None
    ) -> Staged | None:
        """Segment a case into the run's own folder; whatever goes wrong, the outcome names it.

        Returns:
            None where the server went away for good.

        Raises:
            OutputError: It could not be written.
        """
        try:
            return self._stager.stage(case, index, self._is_over, formats, at_hand)
        except OutputError:
            raise
        except Exception as error:
            if isinstance(error, ServerAwayError):
                self._give_up(error)
            if self.went_away.is_set() and isinstance(error, ServerError | CancelledError):
                return None
            traced = not isinstance(error, CtsegError) and series_of(case) is None  # a trace may quote a patient's name
            logger.debug("%s failed", printable(case.name), exc_info=traced)
            return Staged(self._failed(case, error))

    def _is_over(self) -> bool:
        return self.stopped.is_set() or self.went_away.is_set()

    def _give_up(self, error: ServerAwayError) -> None:
        """End what waits for the server, and let no case begin."""
        with self._lock:
            if self.went_away.is_set():
                return
            self.went_away.set()
        logger.error("%s: %s", type(error).__name__, error)
        self._segmenter.abort()

    def _blank(self, case: Case) -> Outcome:
        return Outcome(case=printable(case.name), status="failed", made_by=self._made_by)

    def _failed(self, case: Case, error: BaseException) -> Outcome:
        return self._blank(case).model_copy(update={"error": _told_of(case, error)})


def _as_output_error(error: OutputError | OSError) -> OutputError:
    """Return the error of an output folder that cannot be looked at or written."""
    if isinstance(error, OutputError):
        return error
    told = OutputError(f"{error.filename or 'the output folder'}: cannot be used: {error.strerror or error}")
    told.__cause__ = error
    return told


def _told_of(case: Case, error: BaseException) -> CaseError:
    """Return the outcome's form of an error, the case's name in front of the message."""
    told = error_of(error, quotes=series_of(case) is None)
    prefix = f"case {printable(case.name)}: "
    if told.message.startswith(prefix):
        return told
    return CaseError(type=told.type, message=prefix + told.message, settings=told.settings)


def made_by_of(segmenter: CaseSegmenter, run: str, options: BatchOptions, list_digest: str | None = None) -> MadeBy:
    """Return what the outcomes of a run say that made them.

    Args:
        segmenter: Segments its cases.
        run: Its name.
        options: How it segments them.
        list_digest: See :class:`ctseg.predict.outcomes.MadeBy`.
    """
    identity = segmenter.identity
    return MadeBy(
        run=run,
        model=identity.model,
        model_version=str(identity.version),
        spec_digest=identity.digest,
        parity=segmenter.contract.parity,
        servers=tuple(identity.servers),
        transport=identity.transport,
        members=tuple(
            MadeByMember(model=member.model, model_version=str(member.version), spec_digest=member.digest)
            for member in identity.members
        ),
        options=Options(
            tile_step_size=options.tile_step_size, mirroring=options.mirroring, dicom_rows=options.dicom_rows
        ),
        part=None if options.part.num_parts == 1 else str(options.part),
        list_digest=list_digest,
    )
