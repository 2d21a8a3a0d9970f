"""Many cases, overlapped; one bad case never stops the rest.

A few threads take the cases one after the other, and each segments a whole case: read, prepare,
network, restore, write. They share the network through an :class:`InferenceQueue`, which serves the
earliest case first, so that while one case is on the network the next is prepared and the last is
restored. numba's kernels, gRPC and file access leave Python's lock alone, so threads suffice, and
no worker process can be killed silently.
"""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ctseg.errors import CtsegError, OutputError, SetupError, SpecError
from ctseg.files.cases import Case
from ctseg.files.probabilities import ProbabilityFile
from ctseg.files.volume import WRITE_ENDINGS, read_volume, write_label_map
from ctseg.predict.inference_queue import InferenceQueue
from ctseg.predict.memory import MemoryBudget, available_bytes, estimated_bytes
from ctseg.predict.predictor import PatchPredictor
from ctseg.predict.progress import Progress
from ctseg.predict.report import (
    CaseError,
    CaseReport,
    Options,
    Report,
    ReportWriter,
    StageSeconds,
    error_of,
    read_finished_cases,
    sha256_of_file,
)
from ctseg.predict.segment import segment

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


def segment_cases(
    cases: Sequence[Case],
    predictor: PatchPredictor,
    output: Path,
    options: BatchOptions,
    *,
    progress: Progress | None = None,
) -> Report:
    """Segment cases into a folder.

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
    spec = predictor.spec
    spec.check_runnable()
    if spec.file_ending not in WRITE_ENDINGS:
        raise SpecError(
            f"{spec.name}: label maps would end in {spec.file_ending!r}, ctseg writes {', '.join(WRITE_ENDINGS)}"
        )
    _check_no_scan_is_overwritten(cases, output, spec.file_ending)
    identity = predictor.identity
    head = Report(
        model=identity.model,
        model_version=str(identity.version),
        spec_digest=identity.digest,
        parity=spec.parity.state,
        url=" ".join(identity.servers),
        transport=identity.transport,
        options=Options(tile_step_size=options.tile_step_size, mirroring=options.mirroring),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: the output folder cannot be made: {error.strerror or error}") from error
    finished = read_finished_cases(output, head) if options.continue_prediction else {}
    skipped = [
        finished[case.name].model_copy(update={"status": "skipped"})
        for case in cases
        if case.name in finished and (not options.save_probabilities or (output / f"{case.name}.npz").is_file())
    ]
    # they are in the report from its first moment on: a run that is killed can be continued again
    writer = ReportWriter(output, head, skipped)
    skipped_names = {case.case for case in skipped}
    progress = progress or Progress()
    budget = MemoryBudget(options.memory_bytes or available_bytes() // 2)
    inference = InferenceQueue(predictor, mirroring=options.mirroring)
    stopped = threading.Event()
    unwritten: list[OutputError] = []

    def report(result: CaseReport) -> None:
        try:
            writer.add(result)
        except OutputError as error:
            unwritten.append(error)
        progress.case_done(result)

    def run(index: int, case: Case) -> None:
        if stopped.is_set():
            return
        try:
            result = _segment_case(case, index, inference, output, options, budget, progress)
        except CtsegError as error:
            result = CaseReport(case=case.name, status="failed", error=_named(error, case))
        except Exception as error:  # whatever it is, the other cases go on, and the report names it
            logger.debug("%s failed", case.name, exc_info=True)
            result = CaseReport(case=case.name, status="failed", error=error_of(error))
        if not stopped.is_set():
            report(result)

    with progress, ThreadPoolExecutor(CASES_IN_FLIGHT, thread_name_prefix="case") as pool:
        try:
            for case_report in skipped:
                progress.case_done(case_report)
            waiting = [case for case in cases if case.name not in skipped_names]
            for future in [pool.submit(run, index, case) for index, case in enumerate(waiting)]:
                future.result()
        except BaseException:  # above all Ctrl-C: what is finished stays, what is half-done is dropped
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            inference.abort()
            raise
        finally:
            inference.close()
    if unwritten:
        raise unwritten[-1]
    return writer.report


def _check_no_scan_is_overwritten(cases: Sequence[Case], output: Path, file_ending: str) -> None:
    """Refuse an output folder where a label map would take the place of a scan.

    Raises:
        SetupError: With the first such scan.
    """
    scans = {file.resolve() for case in cases for file in case.files}
    for case in cases:
        path = output / f"{case.name}{file_ending}"
        if path.resolve() in scans:
            raise SetupError(f"the label map {path} would overwrite a scan of this run: name another output folder")


def _segment_case(
    case: Case,
    index: int,
    inference: InferenceQueue,
    output: Path,
    options: BatchOptions,
    budget: MemoryBudget,
    progress: Progress,
) -> CaseReport:
    """Read, segment and write one case."""
    started = time.monotonic()
    if case.problem is not None:
        raise case.problem
    spec = inference.predictor.spec
    volume = read_volume(case.files, spec.reader)
    read_s = time.monotonic() - started
    path = output / f"{case.name}{spec.file_ending}"
    with budget.reserved(estimated_bytes(volume, spec)):
        probabilities = ProbabilityFile(output / f"{case.name}.npz") if options.save_probabilities else None
        try:
            result = segment(
                volume,
                inference,
                priority=index,
                tile_step_size=options.tile_step_size,
                timeout_s=options.case_timeout_s,
                progress=progress,
                probabilities=probabilities,
            )
            writing = time.monotonic()
            write_label_map(path, result.labels, volume)
            if probabilities is not None:
                probabilities.commit()
        finally:
            if probabilities is not None:
                probabilities.close()
    ended = time.monotonic()
    measures = result.measures
    return CaseReport(
        case=case.name,
        status="ok",
        output=path.name,
        output_sha256=sha256_of_file(path),
        seconds=StageSeconds(
            read=round(read_s, 3),
            prepare=round(measures.prepare_s, 3),
            network=round(measures.network_s, 3),
            restore=round(measures.restore_s, 3),
            write=round(ended - writing, 3),
            total=round(ended - started, 3),
        ),
        windows=measures.windows,
        bytes_sent=measures.bytes_sent,
        bytes_received=measures.bytes_received,
    )


def _named(error: CtsegError, case: Case) -> CaseError:
    """Return the report's form of an error, with the name of the case in front."""
    report = error_of(error)
    prefix = f"case {case.name}: "
    return (
        report if report.message.startswith(prefix) else report.model_copy(update={"message": prefix + report.message})
    )
