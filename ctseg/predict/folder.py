"""Many cases, overlapped; one bad case never stops the rest.

A few threads take the cases one after the other, and each segments a whole case: read, prepare,
network, restore, write. They share the network through an :class:`InferenceQueue`, which serves the
earliest case first, so that while one case is on the network the next is prepared and the last is
restored. numba's kernels, gRPC and file access leave Python's lock alone, so threads suffice, and
no worker process can be killed silently.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ctseg.errors import CtsegError, InputError, OutputError, SetupError, SpecError
from ctseg.files.cases import Case
from ctseg.files.formats import WRITE_ENDINGS
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import read_volume, write_label_map
from ctseg.model_spec import ModelSpec
from ctseg.predict.memory import MemoryBudget, available_bytes, estimated_bytes
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.progress import Progress, StageClock
from ctseg.predict.report import (
    CaseError,
    CaseReport,
    Options,
    Report,
    ReportWriter,
    digest_if_readable,
    error_of,
    read_finished_cases,
)
from ctseg.predict.segment import CaseContext, WindowOptions
from ctseg.predict.segmenter import CaseSegmenter, WindowSegmenter

logger = logging.getLogger(__name__)

CASES_IN_FLIGHT = 3
"""One is prepared, one is on the network, one is restored and written."""


@dataclass(frozen=True)
class BatchOptions:
    """How a folder is segmented.

    Attributes:
        tile_step_size: Step between windows as a fraction of the patch, in (0, 1].
        mirroring: Average over mirrored patches, if the model says that the client does this.
        continue_prediction: Skip cases whose label map is there and was made by the same model.
        save_probabilities: Write ``<case>.npz`` beside each label map.
        case_timeout_s: Longest time from when a case's first window is sent to when its last is back; None: no limit.
        memory_bytes: What the cases in flight may take together; None: half of what is available.
    """

    tile_step_size: float = 0.5
    mirroring: bool = True
    continue_prediction: bool = False
    save_probabilities: bool = False
    case_timeout_s: float | None = None
    memory_bytes: int | None = None

    @property
    def window_options(self) -> WindowOptions:
        """What of this is about windows."""
        return WindowOptions(self.tile_step_size, self.mirroring, self.case_timeout_s)


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
        cases: What to segment; a case with a ``problem`` is reported as failed.
        predictor: Runs the network; mirroring in the client is added here.
        output: Folder for ``<case><file_ending>`` and ``report.json``; made if missing.
        options: See :class:`BatchOptions`.
        progress: What a person sees.

    Returns:
        The report, as it stands in ``report.json``; failed cases are in it.

    Raises:
        OutputError: The folder cannot be made, or the report cannot be written; the cases that could
            be segmented were.
        SpecError: The model cannot be run by this client.
        SetupError: A label map would overwrite a scan.
    """
    segmenter = WindowSegmenter(predictor, options.window_options)
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
        self._budget = MemoryBudget(options.memory_bytes or available_bytes() // 2)
        self._stopped = threading.Event()
        self._unwritten: list[OutputError] = []

    def segment(self, cases: Sequence[Case]) -> Report:
        """Segment the cases; see :func:`segment_cases`."""
        try:
            _check_can_be_written(cases, self._segmenter.spec, self._output)
            self._make_output()
            head = self._head()
            skipped = self._finished_before(cases, head)
            # they are in the report from its first moment on: a run that is killed can be continued again
            writer = ReportWriter(self._output, head, skipped)
            skipped_names = {report.case for report in skipped}
            waiting = [case for case in cases if case.name not in skipped_names]
            with self._progress:
                for report in skipped:
                    self._progress.case_done(report)
                self._run(waiting, writer)
        finally:
            self._segmenter.close()
        if self._unwritten:
            raise self._unwritten[-1]
        return writer.report

    def _make_output(self) -> None:
        try:
            self._output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._output}: the output folder cannot be made: {error.strerror or error}") from error

    def _head(self) -> Report:
        """Return the report before any case."""
        identity, spec = self._segmenter.identity, self._segmenter.spec
        return Report(
            model=identity.model,
            model_version=str(identity.version),
            spec_digest=identity.digest,
            parity=spec.parity.state,
            url=" ".join(identity.servers),
            transport=identity.transport,
            options=Options(tile_step_size=self._options.tile_step_size, mirroring=self._options.mirroring),
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _finished_before(self, cases: Sequence[Case], head: Report) -> list[CaseReport]:
        """Return the reports of the cases that an earlier run has finished, if this one continues it."""
        if not self._options.continue_prediction:
            return []
        finished = read_finished_cases(self._output, head)
        return [
            finished[case.name].model_copy(update={"status": "skipped"})
            for case in cases
            if case.name in finished
            and (not self._options.save_probabilities or self._probabilities_path(case).is_file())
        ]

    def _run(self, cases: Sequence[Case], writer: ReportWriter) -> None:
        """Segment cases on threads, and note what becomes of each."""

        def run(index: int, case: Case) -> None:
            if self._stopped.is_set():
                return
            report = self._report_of(case, index)
            if self._stopped.is_set():
                return
            try:
                writer.add(report)
            except OutputError as error:
                self._unwritten.append(error)
            self._progress.case_done(report)

        with ThreadPoolExecutor(CASES_IN_FLIGHT, thread_name_prefix="case") as pool:
            try:
                for future in [pool.submit(run, index, case) for index, case in enumerate(cases)]:
                    future.result()
            except BaseException:  # above all Ctrl-C: what is finished stays, what is half-done is dropped
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self._segmenter.abort()
                raise

    def _report_of(self, case: Case, index: int) -> CaseReport:
        """Segment one case; whatever goes wrong, the other cases go on, and the report names it."""
        try:
            return self._segment(case, index)
        except CtsegError as error:
            return CaseReport(case=case.name, status="failed", error=_named(error, case))
        except Exception as error:
            logger.debug("%s failed", case.name, exc_info=True)
            return CaseReport(case=case.name, status="failed", error=error_of(error))

    def _segment(self, case: Case, index: int) -> CaseReport:
        """Read, segment and write one case."""
        if case.problem is not None:
            raise InputError(case.problem)
        spec = self._segmenter.spec
        clock = StageClock(case.name, self._progress)
        with clock.stage("read"):
            volume = read_volume(case.channels, spec.reader)
        path = self._output / f"{case.name}{spec.file_ending}"
        with self._budget.reserved(estimated_bytes(volume, spec)), self._probabilities(case) as probabilities:
            result = self._segmenter.segment(volume, CaseContext(index, clock, probabilities))
            with clock.stage("write"):
                write_label_map(path, result.labels, volume)
                if probabilities is not None:
                    probabilities.commit()
        seconds = clock.seconds  # the digest below is no work on the case
        return CaseReport(
            case=case.name,
            status="ok",
            output=path.name,
            output_sha256=digest_if_readable(path),
            seconds=seconds,
            windows=result.windows,
            bytes_sent=result.bytes_sent,
            bytes_received=result.bytes_received,
        )

    def _probabilities_path(self, case: Case) -> Path:
        return self._output / f"{case.name}.npz"

    @contextmanager
    def _probabilities(self, case: Case) -> Iterator[ProbabilityFile | None]:
        """Give the file for the case's probabilities, if they are wanted; what is not finished is removed."""
        if not self._options.save_probabilities:
            yield None
            return
        file = ProbabilityFile(self._probabilities_path(case))
        try:
            yield file
        finally:
            file.close()


def _check_can_be_written(cases: Sequence[Case], spec: ModelSpec, output: Path) -> None:
    """Refuse before any work what could not be written at its end.

    Raises:
        SpecError: The model cannot be run by this client, or its label maps cannot be written.
        SetupError: A label map would overwrite a scan.
    """
    spec.check_runnable()
    if spec.file_ending not in WRITE_ENDINGS:
        raise SpecError(
            f"{spec.name}: label maps would end in {spec.file_ending!r}, ctseg writes {', '.join(WRITE_ENDINGS)}"
        )
    _check_no_scan_is_overwritten(cases, output, spec.file_ending)


def _check_no_scan_is_overwritten(cases: Sequence[Case], output: Path, file_ending: str) -> None:
    """Refuse an output folder where a label map would take the place of a scan.

    Raises:
        SetupError: With the first such scan.
    """
    scans = {file.resolve() for case in cases for file in case.paths}
    for case in cases:
        path = output / f"{case.name}{file_ending}"
        if path.resolve() in scans:
            raise SetupError(f"the label map {path} would overwrite a scan of this run: name another output folder")


def _named(error: CtsegError, case: Case) -> CaseError:
    """Return the report's form of an error, with the name of the case in front."""
    report = error_of(error)
    prefix = f"case {case.name}: "
    return (
        report if report.message.startswith(prefix) else report.model_copy(update={"message": prefix + report.message})
    )
