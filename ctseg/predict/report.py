"""``report.json``: what became of every case, valid on disk after each of them."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ctseg.documents import Document
from ctseg.errors import CtsegError
from ctseg.files.atomic import write_text
from ctseg.files.digests import sha256_of_file

REPORT_NAME = "report.json"


class CaseError(Document):
    """Why a case failed; ``settings`` are the names of parameters that would help."""

    type: str
    message: str
    settings: tuple[str, ...] = ()


class StageSeconds(Document):
    """Wall-clock seconds of a case in each stage; stages of several cases overlap.

    ``network`` is what the case waited for logits; ``restore`` runs in between.
    """

    read: float = 0.0
    prepare: float = 0.0
    network: float = 0.0
    restore: float = 0.0
    write: float = 0.0
    total: float = 0.0


class CaseReport(Document):
    """What became of one case. Bytes are those of the tensors, repeated requests not counted."""

    case: str
    status: Literal["ok", "failed", "skipped"]
    error: CaseError | None = None
    output: str | None = None
    output_sha256: str | None = None
    seconds: StageSeconds = StageSeconds()
    windows: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Options(Document):
    """What the user may vary and the labels depend on."""

    tile_step_size: float
    mirroring: bool


class Report(Document):
    """The whole of ``report.json``."""

    schema_version: Literal[1] = 1
    model: str
    model_version: str
    spec_digest: str
    parity: str = "untested"
    url: str
    transport: str = "grpc"
    options: Options
    started: str
    cases: tuple[CaseReport, ...] = ()


class ReportWriter:
    """Keeps ``report.json`` in the output folder up to date; safe to call from several threads.

    Args:
        folder: Output folder, which exists.
        head: The report without cases.
        cases: Those that are in it from the beginning.

    Raises:
        OutputError: The report cannot be written.
    """

    def __init__(self, folder: Path, head: Report, cases: Sequence[CaseReport] = ()) -> None:
        self._path = folder / REPORT_NAME
        self._report = head
        self._cases = {case.case: case for case in cases}
        self._lock = threading.Lock()
        self._write()

    def add(self, case: CaseReport) -> None:
        """Add or replace a case and write the report, atomically."""
        with self._lock:
            self._cases[case.case] = case
            self._write()

    @property
    def report(self) -> Report:
        """The report as it stands, cases in order of their names."""
        return self._report.model_copy(update={"cases": tuple(self._cases[name] for name in sorted(self._cases))})

    def _write(self) -> None:
        text = json.dumps(self.report.model_dump(mode="json"), indent=2)
        write_text(self._path, text)


def read_finished_cases(folder: Path, head: Report) -> Mapping[str, CaseReport]:
    """Return the cases of an earlier run that need not be done again.

    A case counts as done if the earlier report has the same spec digest and options, and its output
    is still there with the digest that the report gives.

    Args:
        folder: Output folder.
        head: The report of the run that begins.

    Returns:
        Their reports by case name; empty without a readable earlier report.
    """
    try:
        earlier = Report.model_validate_json((folder / REPORT_NAME).read_bytes())
    except (OSError, ValidationError):
        return {}
    if (earlier.spec_digest, earlier.options) != (head.spec_digest, head.options):
        return {}
    return {
        case.case: case
        for case in earlier.cases
        if case.status in ("ok", "skipped")
        and case.output is not None
        and case.output_sha256 is not None
        and digest_if_readable(folder / case.output) == case.output_sha256
    }


def digest_if_readable(path: Path) -> str | None:
    """Return the SHA-256 of an output, or None where it has gone or cannot be read."""
    try:
        return sha256_of_file(path)
    except OSError:
        return None


def error_of(exception: BaseException) -> CaseError:
    """Return the report's form of an exception; one that ctseg did not raise on purpose says so."""
    if isinstance(exception, CtsegError):
        return CaseError(type=type(exception).__name__, message=str(exception), settings=exception.settings)
    return CaseError(type=type(exception).__name__, message=f"unexpected: {exception!r}")
