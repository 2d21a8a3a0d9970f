"""Many cases, overlapped; one bad case never stops the rest.

A few threads take the cases one after the other, and each segments a whole case: read, prepare,
network, restore, write. They share the network through an :class:`InferenceQueue`, which serves the
earliest case first, so that while one case is on the network the next is prepared and the last is
restored. numba's kernels, gRPC and file access leave Python's lock alone, so threads suffice, and
no worker process can be killed silently.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ctseg.errors import SetupError, SpecError
from ctseg.files.cases import Case
from ctseg.files.dicom.object_kinds import DICOM_ENDINGS
from ctseg.files.folders import make_folder
from ctseg.files.formats import WRITE_ENDINGS, require_packages
from ctseg.files.identity import printable
from ctseg.predict.case_files import check_formats, tell_of_formats
from ctseg.predict.case_work import CaseWork, Turn
from ctseg.predict.contract import ScanContract
from ctseg.predict.left import NotDone, leave, take_over_left
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.model_notes import write_model_note
from ctseg.predict.options import BatchOptions
from ctseg.predict.parts import digest_of_list, note_part
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.presence import Presence
from ctseg.predict.progress import Progress
from ctseg.predict.report import Report, begin_report, folded, now
from ctseg.predict.segmenter import CaseSegmenter, WindowSegmenter

logger = logging.getLogger(__name__)

_POLL_S = 1.0
"""Between two looks at cases that other runs work on."""
CASES_IN_FLIGHT = 3
"""One is prepared, one is on the network, one is restored and written."""


def segment_cases(
    cases: Sequence[Case],
    predictor: PatchPredictor,
    output: Path,
    options: BatchOptions,
    *,
    progress: Progress | None = None,
) -> Report:
    """Segment cases into a folder, by windows that are cut here.

    Args:
        cases: What to segment, in order; a case with a ``problem`` is reported as failed. Of them
            ``options.part`` is done.
        predictor: Runs the network; mirroring in the client is added here.
        output: Folder for ``<case><file_ending>`` and ``report.json``; made if missing.
        options: See :class:`BatchOptions`.
        progress: What a person sees.

    Returns:
        What became of each case, by whichever run; ``finished`` is False where ``report.json`` could not be written.
        Where every server went away for longer than the client waits, the run stops, and the cases that are left are
        its ``not_done``.

    Raises:
        OutputError: The folder cannot be made or written at the begin.
        SpecError: The model cannot be run by this client.
        SetupError: A label map would overwrite a scan.
    """
    segmenter = WindowSegmenter(predictor, options.window_options)
    tell_of_formats(cases, segmenter.contract, options)
    return FolderRun(segmenter, output, options, progress).segment(cases)


class FolderRun:
    """One run over cases with one output folder.

    Args:
        segmenter: Segments the cases; closed at the end of the run.
        output: Folder for label maps and ``report.json``; made if missing.
        options: See :class:`BatchOptions`.
        progress: What a person sees.
    """

    def __init__(
        self, segmenter: CaseSegmenter, output: Path, options: BatchOptions, progress: Progress | None = None
    ) -> None:
        self._segmenter = segmenter
        self._output = output
        self._options = options
        self._progress = progress or Progress()
        self._budget = MemoryBudget(options.memory_bytes)

    def segment(self, cases: Sequence[Case]) -> Report:
        """Segment the cases; see :func:`segment_cases`."""
        try:
            check_can_be_written(cases, self._segmenter.contract, self._output, self._options)
            make_folder(self._output)
            work: CaseWork | None = None
            is_folded = False
            try:
                with Presence(self._output) as presence:
                    write_model_note(self._output, self._segmenter.contract, through=presence.folder)
                    work = CaseWork(
                        self._segmenter, presence, self._output, self._options, self._budget, self._progress,
                        list_digest=digest_of_list(cases),
                    )  # fmt: skip
                    note_part(self._output, presence, self._options.part, cases)
                    mine = self._options.part.of(cases)
                    take_over_left(self._output, mine, work.ledger.before)
                    begin_report(self._output)
                    try:
                        with self._progress:
                            self._run(mine, work)
                    finally:
                        work.close()
                        not_done = self._leave(mine, work, presence.run)
            finally:
                if work is not None:  # after this run has left, so that the last of several finds nobody at work
                    is_folded = folded(self._output, work.ledger.others)
        finally:
            self._segmenter.close()
        ended = tuple(work.ended[name] for name in sorted(work.ended))
        return Report(finished=is_folded, written=now(), cases=ended, not_done=not_done)

    def _leave(self, cases: Sequence[Case], work: CaseWork, run: str) -> tuple[NotDone, ...]:
        """Write down which cases this run leaves, where it was stopped, or server or disk went away."""
        left = [case for case in cases if not work.has_ended(case)]
        return leave(self._output, run, left, work.reason_of_left, work.ledger.before, of=len(cases))

    def _run(self, cases: Sequence[Case], work: CaseWork) -> None:
        """Segment cases on threads; those in flight at a kill last and alone; wait for those of other runs."""
        suspects: set[str] = set()
        while pending := [item for item in enumerate(cases) if item[1].name not in work.ended]:
            self._pass_over(pending, work, Turn.FREE)
            self._pass_over([item for item in pending if work.is_put_off(item[1])], work, Turn.AGAIN)
            self._pass_over(_next_suspect(pending, work, suspects), work, Turn.SUSPECTS)
            if work.went_away.is_set():
                return
            if all(case.name not in work.ended for _, case in pending):
                work.went_away.wait(_POLL_S)

    def _pass_over(self, pending: Sequence[tuple[int, Case]], work: CaseWork, turn: Turn) -> None:
        """Bring each case to its end that can be taken now."""

        def one(index: int, case: Case) -> None:
            if not (work.stopped.is_set() or work.went_away.is_set() or case.name in work.ended):
                work.end(case, index, turn)

        with ThreadPoolExecutor(self._segmenter.cases_in_flight or CASES_IN_FLIGHT, thread_name_prefix="case") as pool:
            try:
                for future in [pool.submit(one, index, case) for index, case in pending]:
                    future.result()
            except BaseException:  # above all Ctrl-C: what is finished stays, what is half-done is dropped
                work.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self._segmenter.abort()
                raise


def _next_suspect(pending: Sequence[tuple[int, Case]], work: CaseWork, known: set[str]) -> Sequence[tuple[int, Case]]:
    """Return the case that may have killed the fewest runs, of those that may have killed one; tell the new ones.

    Args:
        pending: What has not ended.
        work: Knows what was in flight when a run was killed.
        known: Names that were told; those that are told now are added.
    """
    found = {index: work.ledger.claims.suspicion(case.name) for index, case in pending if case.name not in work.ended}
    suspects = sorted((kills, index) for index, kills in found.items() if kills)
    cases = dict(pending)
    if new := [cases[index].name for _, index in suspects if cases[index].name not in known]:
        known.update(new)
        logger.warning(
            "%s: in flight when a run was killed, or fell silent: done last, one at a time",
            ", ".join(map(printable, new)),
        )
    return [(index, cases[index]) for _, index in suspects[:1]]


def check_can_be_written(cases: Sequence[Case], contract: ScanContract, output: Path, options: BatchOptions) -> None:
    """Refuse before any work what could not be written at its end.

    Args:
        cases: What is to be segmented.
        contract: Of what segments it.
        output: The output folder; may be missing.
        options: In which formats, and with which codes.

    Raises:
        SpecError: Its label maps cannot be written.
        SetupError: A label map would overwrite a scan, or needs a package that is not installed; or a label has no
            codes, where they are required.
        InputError: Codes of labels that the model does not have.
    """
    if contract.file_ending not in WRITE_ENDINGS:
        raise SpecError(
            f"{contract.name}: label maps would end in {contract.file_ending!r}, ctseg writes "
            f"{', '.join(WRITE_ENDINGS)}"
        )
    require_packages(Path(f"{contract.name}{contract.file_ending}"))
    check_formats(cases, contract, options)
    _check_no_scan_is_overwritten(cases, output, (contract.file_ending, *DICOM_ENDINGS.values()))


def _check_no_scan_is_overwritten(cases: Sequence[Case], output: Path, endings: Sequence[str]) -> None:
    """Refuse an output folder where a case's file would take the place of a scan.

    Raises:
        SetupError: With the first such scan.
    """
    written = (output / f"{case.name}{ending}" for case in cases for ending in endings)
    there = [path for path in written if os.path.lexists(path)]
    if not there:
        return
    scans = {os.path.realpath(file) for case in cases for file in case.paths}  # of a link to itself, the link
    for path in there:
        if os.path.realpath(path) in scans:
            raise SetupError(f"the label map {path} would overwrite a scan of this run: name another output folder")
