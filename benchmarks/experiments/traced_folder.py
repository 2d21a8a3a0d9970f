"""A folder segmented through the Python interface, with a clock at the begin and the end of every stage.

Runs as ``python -m benchmarks.experiments.traced_folder`` with one job of JSON as its argument. The server's own
times come from :mod:`benchmarks.recording_model`.
"""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import Span
from ctseg.documents import Document
from ctseg.predict.options import BatchOptions
from ctseg.predict.progress import Progress, Stage
from ctseg.runs.folder import segment_folder
from ctseg.runs.model import ServedModel


class TraceJob(Document):
    """What to run.

    Attributes:
        repository: Model repository.
        model: Name of the model.
        scans: Folder of scans.
        output: Folder for the label maps and the report.
        spans: File to write the spans to, one of JSON a line.
    """

    repository: str
    model: str
    scans: str
    output: str
    spans: str


class SpanProgress(Progress):
    """Notes when each case was in which stage.

    Args:
        now: The time in seconds since 1970, as the server's model notes it.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._begun: dict[tuple[str, Stage], float] = {}
        self._spans: list[Span] = []

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of all stages that have ended, in the order of their ends."""
        with self._lock:
            return tuple(self._spans)

    def stage_began(self, case: str, stage: Stage) -> None:
        """A case entered a stage."""
        with self._lock:
            self._begun[case, stage] = self._now()

    def stage_ended(self, case: str, stage: Stage) -> None:
        """A case left a stage."""
        with self._lock:
            begun = self._begun.pop((case, stage))
            self._spans.append(Span(row=case, stage=stage, begin=begun, end=self._now()))


def main() -> int:
    """Run the job in the first argument; return 0, or 1 where a case failed."""
    job = TraceJob.model_validate_json(sys.argv[1])
    clock = SpanProgress()
    report = segment_folder(
        Path(job.scans),
        Path(job.output),
        ServedModel(job.model, repository=Path(job.repository)),
        BatchOptions(mirroring=False),
        progress_for=lambda cases: clock,  # noqa: ARG005 - how many there are
    )
    Path(job.spans).write_text("".join(span.model_dump_json() + "\n" for span in clock.spans))
    failed = [case for case in report.cases if case.status == "failed"]
    for case in failed:
        print(f"{case.case}: {case.error}", file=sys.stderr)
    return 1 if failed else 0


def read_spans(path: Path) -> list[Span]:
    """Return what :func:`main` wrote."""
    return [Span.model_validate_json(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
