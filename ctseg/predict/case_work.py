"""One case of a folder run: found done, or claimed, segmented, and put in place; its outcome written."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ctseg.arrays import LabelMap
from ctseg.compiled.parallel import run_parallel
from ctseg.errors import CtsegError, InputError, OutputError, ServerAwayError, ServerError
from ctseg.files.atomic import longest_name
from ctseg.files.cases import Case
from ctseg.files.formats import with_companions
from ctseg.files.identity import KnownFile, known, printable, stamp_of
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import Volume, read_label_map, read_volume, read_volume_header, write_label_map
from ctseg.model_spec import Reader
from ctseg.predict.claims import Claim, ClaimLostError
from ctseg.predict.ledger import Ledger, Staged
from ctseg.predict.left import Reason
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import CaseError, MadeBy, Options, Outcome, error_of
from ctseg.predict.presence import Presence
from ctseg.predict.progress import Progress, StageClock
from ctseg.predict.segment import CaseContext
from ctseg.predict.segmenter import CaseSegmenter

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
        self._scratch = presence.folder
        self._options = options
        self._budget = budget
        self._progress = progress
        self._made_by = _made_by(segmenter, presence.run, options, list_digest)
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
                self.ledger.put(claim, Staged(outcome), stale=self._names(case))
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
        if outcome is None or (why := self.ledger.differs(outcome, case, self._made_by)) is None:
            return outcome
        if tells:
            logger.warning("%s: done again after another run did it: %s", printable(case.name), why)
        return None

    def _done_before(self, case: Case) -> Outcome | None:
        """Return the outcome of a case that was done when this run began, and need not be done again."""
        if not self._options.continue_prediction:
            return None
        if (outcome := self.ledger.done_before(case, self._wanted(case), self._made_by)) is None:
            return None
        self.ledger.claims.forget(case.name)
        return outcome.model_copy(update={"status": "skipped"})

    def _segmented(self, case: Case, index: int, claim: Claim, failed: CtsegError | None) -> Outcome | None:
        """Segment a case that is this run's, and put it in place; a failure is an outcome too.

        Returns:
            None where the run was stopped or the server went away: what fails then is no failure of the case.
        """
        names = self._names(case)
        scratch = [self._scratch / name for name in names]
        try:
            if foreign := self.ledger.foreign(claim, self._wanted(case)):
                return self.ledger.put(claim, Staged(self.ledger.kept(case, self._blank(case), foreign)), stale=())
            staged = self._try(case, index) if failed is None else Staged(self._failed(case, failed))
            if staged is None or self.stopped.is_set():
                return None
            return self.ledger.put(claim, staged, stale=names)
        finally:
            for path in scratch:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _try(self, case: Case, index: int) -> Staged | None:
        """Segment a case into the run's own folder; whatever goes wrong, the outcome names it.

        Returns:
            None where the server went away for good.

        Raises:
            OutputError: It could not be written.
        """
        try:
            return self._segment(case, index)
        except OutputError:
            raise
        except Exception as error:
            if isinstance(error, ServerAwayError):
                self._give_up(error)
            if self.went_away.is_set() and isinstance(error, ServerError | CancelledError):
                return None
            logger.debug("%s failed", printable(case.name), exc_info=not isinstance(error, CtsegError))
            return Staged(self._failed(case, error))

    def _give_up(self, error: ServerAwayError) -> None:
        """End what waits for the server, and let no case begin."""
        with self._lock:
            if self.went_away.is_set():
                return
            self.went_away.set()
        logger.error("%s: %s", type(error).__name__, error)
        self._segmenter.abort()

    def _segment(self, case: Case, index: int) -> Staged:
        """Read, segment and write one case into the run's own folder, once there is memory for it."""
        if case.problem is not None:
            raise InputError(case.problem)
        _check_lengths(self._wanted(case), self._scratch)
        contract, saves_probabilities = self._segmenter.contract, self._options.save_probabilities
        clock = StageClock(case.name, self._progress)
        label_path, probabilities_path = (self._scratch / name for name in self._names(case))
        files = {label_path.name: label_path}
        with (
            _memory_for(case, self._segmenter, self._budget, clock, saves_probabilities=saves_probabilities),
            _probability_file(probabilities_path, wanted=saves_probabilities) as probabilities,
        ):
            if self.stopped.is_set() or self.went_away.is_set():
                raise CancelledError
            with clock.stage("read"):
                volume, previous, inputs = _read(case, contract.reader)
            result = self._segmenter.segment(volume, CaseContext(index, clock, probabilities, previous))
            del previous
            with clock.stage("write"):
                write_label_map(label_path, result.labels, volume)
                if probabilities is not None:
                    probabilities.commit()
                    files[probabilities_path.name] = probabilities_path
        return Staged(Outcome(
            case=printable(case.name), status="ok", made_by=self._made_by, inputs=inputs,
            volumes_ml=_volumes_ml(result.labels, contract.labels, volume.geometry.spacing_mm), seconds=clock.seconds,
            windows=result.windows, bytes_sent=result.bytes_sent, bytes_received=result.bytes_received,
            warnings=result.warnings,
        ), files)  # fmt: skip

    def _blank(self, case: Case) -> Outcome:
        return Outcome(case=printable(case.name), status="failed", made_by=self._made_by)

    def _failed(self, case: Case, error: BaseException) -> Outcome:
        return self._blank(case).model_copy(update={"error": _told_of(case, error)})

    def _wanted(self, case: Case) -> tuple[str, ...]:
        return self._names(case)[: 2 if self._options.save_probabilities else 1]

    def _names(self, case: Case) -> tuple[str, str]:
        return f"{case.name}{self._segmenter.contract.file_ending}", f"{case.name}.npz"


@contextmanager
def _memory_for(
    case: Case, segmenter: CaseSegmenter, budget: MemoryBudget, clock: StageClock, *, saves_probabilities: bool
) -> Iterator[None]:
    """Wait until the memory is there that a case will take by its headers, and hold it meanwhile."""
    with clock.stage("read"):
        header = read_volume_header(case.channels, segmenter.contract.reader)
    estimate = segmenter.estimate(header, saves_probabilities=saves_probabilities)
    with budget.reserved(estimate, printable(case.name)):
        yield


def _read(case: Case, reader: Reader) -> tuple[Volume, LabelMap | None, tuple[KnownFile, ...]]:
    """Read a scan, and the labels of a previous stage where they are given, and say which bytes were read."""
    with _cannot_be_read_is_an_input_error():
        stamps = {path: stamp_of(path) for path in with_companions(case.paths)}
    volume = read_volume(case.channels, reader)
    previous = None if case.previous is None else read_label_map(case.previous, reader, volume)
    with _cannot_be_read_is_an_input_error():
        return volume, previous, tuple(known(path, since=stamp) for path, stamp in stamps.items())


def _as_output_error(error: OutputError | OSError) -> OutputError:
    """Return the error of an output folder that cannot be looked at or written."""
    if isinstance(error, OutputError):
        return error
    told = OutputError(f"{error.filename or 'the output folder'}: cannot be used: {error.strerror or error}")
    told.__cause__ = error
    return told


def _told_of(case: Case, error: BaseException) -> CaseError:
    """Return the outcome's form of an error, the case's name in front of the message."""
    told = error_of(error)
    prefix = f"case {printable(case.name)}: "
    if told.message.startswith(prefix):
        return told
    return CaseError(type=told.type, message=prefix + told.message, settings=told.settings)


@contextmanager
def _probability_file(path: Path, *, wanted: bool) -> Iterator[ProbabilityFile | None]:
    """Give the file for a case's probabilities, if they are wanted; what is not finished is removed."""
    if not wanted:
        yield None
        return
    file = ProbabilityFile(path)
    try:
        yield file
    finally:
        file.close()


def _check_lengths(names: Iterable[str], folder: Path) -> None:
    """Refuse names that the file system of a folder does not take."""
    longest = longest_name(folder)
    for name in names:
        if (size := len(os.fsencode(name))) > longest:
            raise InputError(
                f"its {Path(name).suffix} file would have a name of {size} bytes, and the output folder takes {longest}"
                ": give the scan a shorter name"
            )


@contextmanager
def _cannot_be_read_is_an_input_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


def _made_by(segmenter: CaseSegmenter, run: str, options: BatchOptions, list_digest: str | None) -> MadeBy:
    identity = segmenter.identity
    return MadeBy(
        run=run,
        model=identity.model,
        model_version=str(identity.version),
        spec_digest=identity.digest,
        parity=segmenter.contract.parity,
        servers=tuple(identity.servers),
        transport=identity.transport,
        options=Options(tile_step_size=options.tile_step_size, mirroring=options.mirroring),
        part=None if options.part.num_parts == 1 else str(options.part),
        list_digest=list_digest,
    )


def _volumes_ml(
    labels: npt.NDArray[np.unsignedinteger],
    named_values: Mapping[str, tuple[int, ...]],
    spacing_mm: tuple[float, float, float],
) -> Mapping[str, float]:
    """Return the volume of each label by its name; regions hold their parts."""
    highest = max(value for values in named_values.values() for value in values)
    counts = np.zeros((len(labels), highest + 1), np.int64)

    def count(first: int, last: int) -> None:
        for z in range(first, last):
            counts[z] = np.bincount(labels[z].ravel(), minlength=highest + 1)[: highest + 1]

    run_parallel(count, len(labels))
    voxels, voxel_ml = counts.sum(axis=0), float(np.prod(spacing_mm)) / 1000
    return {name: round(int(voxels[list(values)].sum()) * voxel_ml, 3) for name, values in named_values.items()}
