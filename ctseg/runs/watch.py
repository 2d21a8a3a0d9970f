"""A PACS, watched: series that match a rule and are stable are segmented, and what comes of them is stored there.

The output folder is the memory: its outcomes say what was segmented, the notes of :mod:`ctseg.runs.watch_notes` what
was stored, its claims who works on a series. So a watcher may be killed at any time, and several may share a folder.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from ctseg.documents import canonical
from ctseg.errors import CtsegError, OutputError, PacsAwayError, PacsError, ServerAwayError, ServerError, SetupError
from ctseg.files.codes import coded
from ctseg.files.dicom.object_kinds import DICOM_ENDINGS
from ctseg.files.folders import make_folder, require_writable
from ctseg.files.signals import signals_as_exit
from ctseg.pacs.find import PacsSeries, find_series, instances_of
from ctseg.pacs.options import PacsOptions
from ctseg.pacs.session import PacsSession, PacsTroubledError
from ctseg.pacs.stability import Stability, digest_of_instances
from ctseg.predict.claims import Claims
from ctseg.predict.contract import ScanContract
from ctseg.predict.options import BatchOptions
from ctseg.predict.presence import OtherRuns, Presence
from ctseg.predict.report import folded
from ctseg.predict.segmenter import CaseSegmenter
from ctseg.runs.folder import check_options, opened_for
from ctseg.runs.model import ServedModel, known_contract
from ctseg.runs.watch_notes import WatchNote, WatchNotes, WatchSummary
from ctseg.runs.watched_series import SeriesWork

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""A series that has failed so often is left; what is refused for good is tried once."""
_ENDED = frozenset({"stored", "left out", "refused"})


@dataclass(frozen=True)
class WatchOptions:
    """What is watched, and how.

    Attributes:
        study_date: Of the studies that are looked at, as DICOM matches dates: ``YYYYMMDD``, or a range with a hyphen;
            None: the last ``study_days`` days.
        study_days: Today counts as one, and tomorrow, which has begun elsewhere, as none.
        stable_s: For how long a series must not change before it counts as whole.
        poll_s: Between two looks at the PACS.
        once: Do what is there, and end.
        again: Make again what was refused, has failed, or has gone from the PACS since it was stored.
        keep: Keep what was fetched.

    Raises:
        ValueError: A number is out of its range.
    """

    study_date: str | None = None
    study_days: int = 2
    stable_s: float = 60.0
    poll_s: float = 30.0
    once: bool = False
    again: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.study_days <= 36500:
            raise ValueError(f"expected 1 to 36500 days of studies, found {self.study_days}")
        if self.study_date is not None:
            dates = self.study_date.split("-")
            if len(dates) > 2 or not any(dates) or not all(_is_date(text) for text in dates if text):
                raise ValueError(f"expected a date YYYYMMDD, or FROM-TO, FROM- or -TO, found {self.study_date!r}")

    @property
    def dates(self) -> str:
        """Of the studies that are looked at now."""
        if self.study_date is not None:
            return self.study_date
        return f"{date.today() - timedelta(days=self.study_days - 1):%Y%m%d}-"


def watch(
    pacs: PacsOptions, output: Path, model: ServedModel, options: BatchOptions, watching: WatchOptions
) -> WatchSummary:
    """Watch a PACS until the process is told to end; with ``once``, do what is there.

    Args:
        pacs: How to talk to it.
        output: Folder for label maps, objects, outcomes and notes; made if missing.
        model: Which model, and who serves it.
        options: How series are segmented, which are taken, and what is stored of them.
        watching: What is watched, and how.

    Returns:
        What was done, with ``once``.

    Raises:
        PacsAwayError: The PACS went away; with ``once`` only.
        ServerAwayError: The servers of the model did; with ``once``, or when none has answered yet.
        CtsegError: Nothing could be done; its children say why.
    """
    if not set(options.output_formats or DICOM_ENDINGS) & set(DICOM_ENDINGS):
        raise SetupError("nothing would be stored: ask for a DICOM format", settings=("output_formats",))
    require_writable(output)
    segmenter = SegmenterOfWatch(output, model, options)
    session = PacsSession(pacs)
    make_folder(output)
    try:
        with signals_as_exit(), Presence(output) as presence, closing(segmenter):
            OtherRuns(output).remove_leftovers()
            return Watcher(session, presence, output, segmenter, options, watching).run()
    finally:
        session.close()
        folded(output)


class SegmenterOfWatch:
    """The segmenter of a watcher, opened when it is needed, and again after its servers went away.

    Args:
        output: The output folder.
        model: Which model, and who serves it.
        options: How series are segmented.

    Raises:
        CtsegError: It is known already that the model cannot be used.
    """

    def __init__(self, output: Path, model: ServedModel, options: BatchOptions) -> None:
        self._output = output
        self._model = model
        self._options = options
        self._known = known_contract(model)
        if self._known is not None:
            _check_contract(self._known, options)
        self._stack = ExitStack()
        self._segmenter: CaseSegmenter | None = None

    def contract(self) -> ScanContract:
        """Return what the model takes and gives; no server is started where it can be told without one."""
        return self.segmenter().contract if self._known is None else self._known

    def segmenter(self) -> CaseSegmenter:
        """Return the open segmenter.

        Raises:
            ServerError: No server answers; ``ServerAwayError`` where one has before.
        """
        if self._segmenter is None:
            opened = self._stack.enter_context(opened_for(self._output, self._model, self._options))
            _check_contract(opened.contract, self._options)
            self._segmenter = opened
        return self._segmenter

    def close(self) -> None:
        """Close it, at the end, or because it has lost its servers."""
        self._segmenter = None
        self._stack.close()


class Watcher:
    """Looks at a PACS again and again.

    Args:
        session: Asks the PACS.
        presence: This run of the output folder.
        output: The output folder.
        segmenter: Opened when it is needed; without ``once`` at once.
        options: How series are segmented.
        watching: What is watched.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        session: PacsSession,
        presence: Presence,
        output: Path,
        segmenter: SegmenterOfWatch,
        options: BatchOptions,
        watching: WatchOptions,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._session = session
        self._presence = presence
        self._output = output
        self._segmenter = segmenter
        self._options = options
        self._watching = watching
        self._sleep = sleep
        self._claims = Claims(output, presence, OtherRuns(output))
        self._stability = Stability(watching.stable_s)
        self._seen: dict[PacsSeries, str] = {}
        self._tried: Counter[str] = Counter()
        self._odd: Counter[PacsSeries] = Counter()
        self._went_away_at: Counter[str] = Counter()
        self._work: SeriesWork | None = None
        self._is_away = self._was_well = False
        self.summary = WatchSummary()

    def run(self) -> WatchSummary:
        """Watch; see :func:`watch`."""
        rounds = 0
        while True:
            arriving, claimed = self._round()
            rounds += 1
            self.summary.left = len(arriving) + len(claimed)
            if self._watching.once:
                if not claimed and (not arriving or rounds > 1):
                    for series in arriving:
                        logger.warning("%s: is still arriving: left", series.label)
                    return self.summary
                self._sleep(self._watching.stable_s if rounds == 1 and arriving else self._watching.poll_s)
            else:
                self._sleep(self._watching.poll_s)

    def _round(self) -> tuple[list[PacsSeries], list[PacsSeries]]:
        """Look once, and bring to their ends what is stable.

        Returns:
            Series that are not stable yet, and those that others work on.
        """
        arriving: list[PacsSeries] = []
        claimed: list[PacsSeries] = []
        with self._told_and_tried_again():
            if not self._watching.once:  # where the server is wrong, that is to be seen at the start
                self._segmenter.segmenter()
            notes = self._notes()
            stable, away = self._stable(notes, arriving)
            for series, digest, count in stable:
                if not self._end(series, digest, count, notes):
                    claimed.append(series)
            if away is not None:
                raise away
        return arriving, claimed

    @contextmanager
    def _told_and_tried_again(self) -> Iterator[None]:
        """Let what may be well again at the next look end a round, and not the watcher.

        That is a PACS that is away, or a server that has answered before; and, once a round went well, everything: a
        token that has run out, a full disk.
        """
        try:
            with _disk_told(self._output):
                yield
            if self._is_away:
                logger.info("the trouble is over: a look went well")
            self._is_away, self._was_well = False, True
        except CtsegError as error:
            if isinstance(error, ServerError):
                self._segmenter.close()
            if self._watching.once or not (self._was_well or isinstance(error, PacsAwayError | ServerAwayError)):
                raise
            if not self._is_away:
                logger.warning("%s: %s: looked at again every %g s", type(error).__name__, error, self._watching.poll_s)
            self._is_away = True

    def _notes(self) -> WatchNotes:
        work = _digest_of_work(self._segmenter.contract(), self._options)
        return WatchNotes(self._output, work, through=self._presence.folder)

    def _stable(
        self, notes: WatchNotes, arriving: list[PacsSeries]
    ) -> tuple[list[tuple[PacsSeries, str, int]], PacsAwayError | None]:
        """Find the series that are stable and not done; first those with which nobody had trouble.

        Returns:
            Series with the digests and numbers of their instances; and what ended the search, if the PACS went away.
        """
        found: list[tuple[PacsSeries, str, int]] = []
        away = None
        for series in sorted(find_series(self._session, self._watching.dates), key=self._away_at):
            try:
                one = self._looked_at(series, notes, arriving)
            except PacsAwayError as error:
                self._went_away_at[series.path] += 1
                away = error
                break
            if one is not None:
                found.append((series, *one))
        found.sort(key=lambda item: (self._away_at(item[0]), self._claims.suspicion(_claim_of(item[0], notes))))
        return found, away

    def _looked_at(self, series: PacsSeries, notes: WatchNotes, arriving: list[PacsSeries]) -> tuple[str, int] | None:
        """Return digest and number of a series' instances; None: it is not stable, or nothing is to be done for it."""
        if not self._options.series.may_fit(series.description):
            return None
        note = notes.read(series)
        seen = self._seen.get(series) if series.instances is not None else None
        if note is not None and seen is not None and self._is_ended(series, note, notes, seen):
            self.summary.known.add(series)
            return None  # it has as many instances as when its set was looked at
        if not (uids := self._instances(series)):
            return None
        digest = digest_of_instances(uids)
        if note is not None and self._is_ended(series, note, notes, digest):
            self._seen[series] = digest
            self.summary.known.add(series)
            return None
        if not self._stability.is_stable(series.path, digest):
            arriving.append(series)
            return None
        if note is not None and note.instances != digest:
            logger.warning(
                "%s: had %d instances when it was done, has %d now: done again as a new input",
                series.label, note.count, len(uids),
            )  # fmt: skip
        return digest, len(uids)

    def _away_at(self, series: PacsSeries) -> int:
        """Return how often the PACS went away when this series was asked for: it may be the reason."""
        return self._went_away_at[series.path]

    def _instances(self, series: PacsSeries) -> frozenset[str]:
        """Return the instances of a series; none where the PACS cannot list those of this one, which stops no other."""
        if self._odd[series] >= MOST_ATTEMPTS:
            return frozenset()
        try:
            return instances_of(self._session, series)
        except PacsError as error:
            if isinstance(error, PacsAwayError) and not isinstance(error, PacsTroubledError):
                raise
            self._odd[series] += 1
            logger.error("%s: passed over: %s", series.label, error)
            return frozenset()

    def _is_ended(self, series: PacsSeries, note: WatchNote, notes: WatchNotes, digest: str) -> bool:
        """Whether nothing is to be done for a series whose instances have a digest."""
        if note.instances != digest:
            return False
        tried = self._tried[notes.key(series)]
        if self._watching.again:
            return tried > 0
        if note.state in _ENDED or note.attempts >= MOST_ATTEMPTS:
            return True
        return self._watching.once and tried > 0

    def _end(self, series: PacsSeries, digest: str, count: int, notes: WatchNotes) -> bool:
        """Bring a series to its end; False: another watcher works on it."""
        claim = self._claims.take(_claim_of(series, notes), suspects=True)
        if claim is None:
            return False
        is_done = False
        try:
            note = notes.read(series)  # between the look and the claim
            if note is None or not self._is_ended(series, note, notes, digest):
                note = self._series_work(notes).end(series, digest, count)
                self._tried[notes.key(series)] += 1
                self.summary.ended[series] = note
                if note.attempts == MOST_ATTEMPTS and note.state not in _ENDED:
                    logger.error("%s: has failed %d times: left", series.label, MOST_ATTEMPTS)
            self._seen[series] = digest
            self._stability.forget(series.path)
            is_done = True
        except PacsAwayError:
            self._went_away_at[series.path] += 1
            raise
        finally:
            self._claims.drop(claim, is_done=is_done)
        return True

    def _series_work(self, notes: WatchNotes) -> SeriesWork:
        """Return what brings series to their ends, the same for as long as the segmenter is."""
        segmenter = self._segmenter.segmenter()
        if self._work is None or self._work.segmenter is not segmenter:
            self._work = SeriesWork(
                self._session, segmenter, self._presence, self._output, self._options, notes,
                again=self._watching.again, keep=self._watching.keep,
            )  # fmt: skip
        return self._work


@contextmanager
def _disk_told(output: Path) -> Iterator[None]:
    """Let a disk that cannot be read be ctseg's error."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{error.filename or output}: cannot be used: {error.strerror or error}") from error


def _claim_of(series: PacsSeries, notes: WatchNotes) -> str:
    return f"watch {notes.key(series)}"


def _digest_of_work(contract: ScanContract, options: BatchOptions) -> str:
    """Return what is the same where the same would be stored of the same series."""
    rules = options.series
    called, _ = coded(contract.labels, contract.presentation, options.codes)
    return hashlib.sha256(
        canonical(
            [
                contract.digest,
                [options.tile_step_size, options.mirroring, options.dicom_rows],
                sorted(options.output_formats or ("dicom_seg",)),
                options.segmentation_type,
                {name: label.model_dump(mode="json") for name, label in called.items()},
                [rules.descriptions, rules.kernels, rules.least_slices, rules.most_slices],
            ]
        )
    ).hexdigest()


def _check_contract(contract: ScanContract, options: BatchOptions) -> None:
    check_options(contract, options)
    if len(contract.channels) != 1:
        raise SetupError(
            f"{contract.name}: expected a model of one channel, found {len(contract.channels)}: a series is one",
            settings=("model",),
        )


def _is_date(text: str) -> bool:
    try:
        return len(text) == 8 and bool(date.fromisoformat(f"{text[:4]}-{text[4:6]}-{text[6:]}"))
    except ValueError:
        return False
