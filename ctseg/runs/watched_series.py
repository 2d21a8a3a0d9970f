"""One series of a PACS, brought to its end: fetched, segmented, its results stored; and what is known of it."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from ctseg.errors import InputError, OutputError, PacsAwayError, PacsError, ServerAwayError
from ctseg.files.cases import Case, cases_of
from ctseg.files.dicom.input import DicomOfInput, SeriesOfInput
from ctseg.files.dicom.objects import uids_of
from ctseg.files.digests import sha256_of_file
from ctseg.files.folders import make_folder
from ctseg.files.scans import FoundScans, find_dicom
from ctseg.pacs.fetch import fetch_series
from ctseg.pacs.find import PacsSeries, has_instances
from ctseg.pacs.session import PacsSession, PacsTroubledError
from ctseg.pacs.store import store_object
from ctseg.predict.case_files import CaseFiles, tell_of_formats
from ctseg.predict.case_work import made_by_of
from ctseg.predict.folder import FolderRun
from ctseg.predict.options import BatchOptions
from ctseg.predict.outcomes import CaseError, Outcome, OutcomeStore, error_of
from ctseg.predict.presence import Presence
from ctseg.predict.segmenter import CaseSegmenter
from ctseg.runs.forwarding import KeptOpen
from ctseg.runs.watch_notes import State, WatchNote, WatchNotes

logger = logging.getLogger(__name__)

KEPT_NAME = "fetched"
"""Folder in the output folder for series that are kept."""

_SHARED_NAME = CaseError(
    type=InputError.__name__,
    message="another series has the name of its case: add SeriesNumber or StudyInstanceUID to what names are made of",
    settings=("case_name_from",),
)


class SeriesWork:
    """Brings series to their ends, one after the other.

    Args:
        session: Asks the PACS.
        segmenter: Stays open.
        presence: The watcher's run of the output folder; what is fetched lies in its folder, and goes with it.
        output: The output folder.
        options: How series are segmented, and what is stored of them.
        notes: What is known of each.
        again: Whether what is in the PACS already, or was and has gone, is made again.
        keep: Whether what was fetched stays.

    Attributes:
        segmenter: Segments them.
    """

    def __init__(
        self,
        session: PacsSession,
        segmenter: CaseSegmenter,
        presence: Presence,
        output: Path,
        options: BatchOptions,
        notes: WatchNotes,
        *,
        again: bool,
        keep: bool,
    ) -> None:
        self._session = session
        self.segmenter = segmenter
        self._output = output
        self._scratch = presence.folder
        self._options = replace(options, continue_prediction=True, recursive=True)
        self._notes = notes
        self._again = again
        self._keep = keep
        self._files = CaseFiles(segmenter.contract, self._options, made_by_of(segmenter, presence.run, self._options))
        self._has_told = False

    def end(self, series: PacsSeries, digest: str, count: int) -> WatchNote:
        """Bring a series to its end, from where it was left.

        Args:
            series: Which.
            digest: Of its instances, which are stable.
            count: How many they are.

        Returns:
            What is known of it now, which is written down.

        Raises:
            PacsAwayError: The PACS went away; what was done stays.
            ServerAwayError: The servers of the model went away.
            OutputError: The disk is full or away.
        """
        earlier = self._notes.read(series)
        blank = WatchNote(series=series.label, instances=digest, count=count, state="failed")
        if earlier is not None and earlier.instances == digest:
            blank = blank.model_copy(update={"attempts": earlier.attempts})
            if earlier.state in ("segmented", "stored") and self._are_whole(earlier):
                return self._stored(series, earlier)
        try:
            return self._made(series, blank)
        except (PacsTroubledError, PacsError) as error:
            if isinstance(error, PacsAwayError) and not isinstance(error, PacsTroubledError):
                raise
            return self._failed(series, blank, error_of(error))

    def _made(self, series: PacsSeries, blank: WatchNote) -> WatchNote:
        """Fetch, segment and store a series."""
        folder = self._scratch / "fetched" / self._notes.key(series)
        try:
            make_folder(folder.parent)
            size = fetch_series(self._session, series, folder, instances=blank.count)
            logger.info("%s: fetched %d instances, %.1f MB", series.label, blank.count, size / 1e6)
            found = self._found(series, folder)
            if not isinstance(found, SeriesOfInput):
                return self._ended(series, blank, "left out", found)
            case = self._case(found, folder)
            if self._is_anothers(case, found):
                return self._ended(series, blank, "refused", _SHARED_NAME)
            if not self._again and self._are_in_the_pacs(series, case):
                logger.info("%s: its results are in the PACS already", series.label)
                return self._ended(series, blank.model_copy(update={"case": case.name}), "stored")
            note = self._segmented(series, case, blank)
            if note.state == "segmented":
                note = self._stored(series, note)
            if self._keep:
                self._keep_it(folder, case.name)
            return note
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _found(self, series: PacsSeries, folder: Path) -> SeriesOfInput | str:
        """Return the series as its files say what it is, or why it is none to segment."""
        try:
            found = find_dicom(
                folder, recursive=True, series=self._options.series, case_name_from=self._options.case_name_from
            )
        except InputError:
            return "its files are no DICOM"
        mine = [item for item in found.series if item.series.series_uid == series.series_uid]
        if not mine:
            return f"it is no CT series: {found.left_out_told or 'nothing that can be read'}"
        if found.left_out:
            logger.warning("%s: left out %s", series.label, found.left_out_told)
        return mine[0] if mine[0].not_chosen is None else f"its {mine[0].not_chosen} does not fit the rules"

    def _case(self, item: SeriesOfInput, folder: Path) -> Case:
        scans = FoundScans(folder, (), dicom=DicomOfInput((item,)))
        (case,) = cases_of(scans, len(self.segmenter.contract.channels))
        if not self._has_told:
            tell_of_formats([case], self.segmenter.contract, self._options)
            self._has_told = True
        return case

    def _is_anothers(self, case: Case, item: SeriesOfInput) -> bool:
        """Whether the files of a case's name are those of another series: one would take the place of the other."""
        outcome = OutcomeStore(self._output).read(case.name)
        return outcome is not None and any(known.name != item.series.label for known in outcome.inputs)

    def _are_in_the_pacs(self, series: PacsSeries, case: Case) -> bool:
        """Whether a PACS has results of the same content, of which this output folder knows nothing."""
        outcome = OutcomeStore(self._output).read(case.name)
        if outcome is not None and outcome.status == "ok":
            return False
        uids = self._files.series_uids(case).values()
        return bool(uids) and all(has_instances(self._session, PacsSeries(series.study_uid, uid)) for uid in uids)

    def _segmented(self, series: PacsSeries, case: Case, blank: WatchNote) -> WatchNote:
        report = FolderRun(KeptOpen(self.segmenter), self._output, self._options).segment([case])
        if report.not_done or not report.cases:
            reason = report.not_done[0].reason if report.not_done else "stopped"
            if reason == "output disk away":
                raise OutputError(f"{self._output}: {series.label} could not be written")
            raise ServerAwayError(f"{series.label} is left: {reason}")
        outcome = report.cases[0]
        blank = blank.model_copy(update={"case": case.name})
        if outcome.status in ("ok", "skipped"):
            if not outcome.objects:
                return self._refused_formats(series, blank, outcome)
            said = {"objects": outcome.objects, "failed_formats": outcome.failed_formats}
            return self._written(series, blank.model_copy(update={"state": "segmented", **said}))
        error = outcome.error or CaseError(type="OutputError", message="; ".join(outcome.warnings))
        if error.type == InputError.__name__:
            return self._ended(series, blank, "refused", error, is_told=True)
        return self._failed(series, blank, error)

    def _refused_formats(self, series: PacsSeries, blank: WatchNote, outcome: Outcome) -> WatchNote:
        errors = [failed.error for failed in outcome.failed_formats]
        error = errors[0] if errors else CaseError(type="InputError", message="no object was written of it")
        foreseen = all(failed.foreseen for failed in outcome.failed_formats)
        if foreseen:
            return self._ended(series, blank, "refused", error, is_told=True)
        return self._failed(series, blank, error)

    def _are_whole(self, note: WatchNote) -> bool:
        """Whether the objects of a series lie in the output folder as they were written."""
        try:
            outcome = OutcomeStore(self._output).read(note.case or "")
            known = {} if outcome is None else {file.name: file.sha256 for file in outcome.outputs}
            return bool(note.objects) and all(
                sha256_of_file(self._output / written.name) == known.get(written.name) for written in note.objects
            )
        except OSError:
            return False

    def _stored(self, series: PacsSeries, note: WatchNote) -> WatchNote:
        """Store the objects of a series, the first ones before those that refer to them."""
        for written in note.objects:
            path = self._output / written.name
            try:
                if uids_of(path).instance != written.instance_uid:  # between two steps
                    return self._failed(series, note.model_copy(update={"objects": ()}), _SHARED_NAME)
                is_new = store_object(self._session, path, self._scratch / "compared")
            except PacsError as error:
                if isinstance(error, PacsAwayError) and not isinstance(error, PacsTroubledError):
                    raise
                return self._failed(series, note, error_of(error))
            logger.info("%s: %s %s", series.label, written.format, "stored" if is_new else "is in the PACS already")
        if unforeseen := [failed for failed in note.failed_formats if not failed.foreseen]:
            return self._failed(series, note.model_copy(update={"objects": ()}), unforeseen[0].error)
        return self._written(series, note.model_copy(update={"state": "stored", "why": None}))

    def _ended(
        self,
        series: PacsSeries,
        note: WatchNote,
        state: State,
        why: CaseError | str | None = None,
        *,
        is_told: bool = False,
    ) -> WatchNote:
        """Write down the end of a series, and tell why, unless the segmenter did (``is_told``)."""
        error = CaseError(type="", message=why) if isinstance(why, str) else why
        if error is not None:
            level = logging.INFO if state == "left out" else logging.ERROR
            logger.log(level, "%s: %s: %s", series.label, state, "as said" if is_told else error.message)
        return self._written(series, note.model_copy(update={"state": state, "why": error}))

    def _failed(self, series: PacsSeries, note: WatchNote, error: CaseError) -> WatchNote:
        logger.error("%s: %s: %s", series.label, error.type, error.message)
        # what lies in the output folder is stored from there next time
        state: State = "segmented" if note.objects else "failed"
        return self._written(
            series, note.model_copy(update={"state": state, "why": error, "attempts": note.attempts + 1})
        )

    def _written(self, series: PacsSeries, note: WatchNote) -> WatchNote:
        self._notes.write(series, note)
        return note

    def _keep_it(self, folder: Path, name: str) -> None:
        kept = self._output / KEPT_NAME / name
        try:
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            folder.rename(kept)
        except OSError as error:
            raise OutputError(f"{kept}: cannot be kept: {error.strerror or error}") from error
