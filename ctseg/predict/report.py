"""``report.json`` and ``report.csv``: what became of every case in a folder, folded from the outcomes."""

import json
import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ctseg.documents import Document
from ctseg.errors import OutputError
from ctseg.files.atomic import write_text
from ctseg.files.identity import KnownFile
from ctseg.files.tables import csv_table
from ctseg.predict.left import NotDone, read_left
from ctseg.predict.model_notes import ModelNote, read_model_notes
from ctseg.predict.outcomes import MEMORY_NAME, Outcome, OutcomeStore
from ctseg.predict.presence import OtherRuns

REPORT_NAME = "report.json"
TABLE_NAME = "report.csv"

logger = logging.getLogger(__name__)


class Report(Document):
    """The whole of ``report.json``.

    Attributes:
        finished: False while a run works in the folder; the outcomes of its cases are still to come.
        written: When, in UTC.
        cases: In order of their names.
        models: Labels and channels by the digest of the spec, of every model that an outcome names.
        not_done: Cases that runs have left, and nobody has done since; worth trying again.
    """

    schema_version: Literal[2] = 2
    finished: bool
    written: str
    cases: tuple[Outcome, ...] = ()
    models: Mapping[str, ModelNote] = {}
    not_done: tuple[NotDone, ...] = ()

    @property
    def went_away(self) -> bool:
        """Whether a run left cases because a server went away, or because the output's disk is full or read-only.

        Of what :func:`ctseg.predict.folder.segment_cases` returns, where ``finished`` says that the report was written.
        """
        left = any(case.reason != "stopped" for case in self.not_done)
        return left or self._no_case_was_written or not self.finished

    @property
    def _no_case_was_written(self) -> bool:
        tried = [case.error for case in self.cases if case.status != "skipped"]
        return bool(tried) and all(error is not None and error.type == OutputError.__name__ for error in tried)


def begin_report(output: Path) -> None:
    """Mark the report of a folder as unfinished; the outcomes keep what it said.

    Raises:
        OutputError: It cannot be written.
    """
    _write(output, Report(finished=False, written=now()))


def fold_report(output: Path, others: OtherRuns | None = None) -> Report:
    """Write ``report.json`` and ``report.csv`` from all outcomes in a folder, whoever wrote them and when.

    Args:
        output: The output folder; no run of the caller's works there any more.
        others: Knows which runs do; a new watcher by default.

    Raises:
        OutputError: They cannot be written.
    """
    store, others = OutcomeStore(output), others or OtherRuns(output)
    while True:
        before, is_finished = store.written(), not others.living()
        report = _report(output, _outcomes(store), before, is_finished)
        _write(output, report)
        _replace(output / TABLE_NAME, _table(report))
        # else a run has begun or ended meanwhile, or has added to the outcomes: it may have written before this did
        if is_finished == (not others.living()) and (not is_finished or store.written() == before):
            return report


def folded(output: Path, others: OtherRuns | None = None) -> bool:
    """Fold the report at the end of a run; False: it could not be written, which is told."""
    try:
        fold_report(output, others)
    except (OutputError, OSError) as error:  # the cases have their files and outcomes all the same
        logger.error("the report is not up to date, and can be folded anew from the outcomes: %s", error)
        return False
    return True


def adopt_earlier_report(output: Path, store: OutcomeStore) -> None:
    """Read the report of an older ctseg as outcomes that know no input, where a folder has no others.

    Args:
        output: The output folder.
        store: Its outcomes; the folder exists.

    Raises:
        OutputError: They cannot be written.
    """
    path = output / REPORT_NAME
    if store.written():
        return
    try:
        content = json.loads(path.read_bytes())
        if content["schema_version"] == Report.model_fields["schema_version"].default:
            return
        outcomes = [
            Outcome(case=case["case"], status="ok", outputs=(KnownFile(name=case["output"], sha256=digest),))
            for case in content["cases"]
            if (digest := case.get("output_sha256"))
        ]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(
            "%s is no report of ctseg that can be used (%s): label maps in this folder count as somebody else's",
            path, type(error).__name__,
        )  # fmt: skip
        return
    for outcome in outcomes:
        store.write(outcome.case, outcome)


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _outcomes(store: OutcomeStore) -> tuple[Outcome, ...]:
    outcomes = []
    for path, outcome in store.all():
        if outcome is None:
            logger.warning("%s: cannot be used: the case counts as not done", path)
        else:
            outcomes.append(outcome)
    return tuple(sorted(outcomes, key=lambda outcome: outcome.case))


def _report(
    output: Path, outcomes: tuple[Outcome, ...], written: Mapping[str, tuple[int, int]], is_finished: bool
) -> Report:
    named = {outcome.made_by.spec_digest for outcome in outcomes if outcome.made_by is not None}
    models = {digest: note for digest, note in read_model_notes(output).items() if digest in named}
    not_done = read_left(output, written)
    return Report(finished=is_finished, written=now(), cases=outcomes, models=models, not_done=not_done)


def _write(output: Path, report: Report) -> None:
    _replace(output / REPORT_NAME, json.dumps(report.model_dump(mode="json"), indent=1))


def _replace(path: Path, text: str) -> None:
    """Write a report, through the memory: what a kill leaves there goes with what else is old."""
    through = path.parent / MEMORY_NAME / "reports"
    try:
        for folder in (through.parent, through):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    write_text(path, text, through=through)


def _table(report: Report) -> str:
    """Return a row for each case, and a column for the volume of each label, and for the agreement of folds on it."""
    labels = sorted({label for outcome in report.cases for label in outcome.volumes_ml})
    agreed = sorted({label for outcome in report.cases for label in outcome.agreement})
    columns = [
        "case", "status", *(f"{label} ml" for label in labels), *(f"{label} agreement" for label in agreed),
        *_row(Outcome(case="", status="failed")),
    ]  # fmt: skip
    rows: list[Mapping[str, Any]] = []
    for outcome in report.cases:
        volumes = {f"{label} ml": volume for label, volume in outcome.volumes_ml.items()}
        agreement = {f"{label} agreement": share for label, share in outcome.agreement.items()}
        rows.append({"case": outcome.case, "status": outcome.status, **volumes, **agreement, **_row(outcome)})
    rows += [{"case": left.case, "status": "not done", "error": left.reason} for left in report.not_done]
    return csv_table([columns, *([row.get(column, "") for column in columns] for row in rows)])


def _row(outcome: Outcome) -> dict[str, Any]:
    """Return what a row says beside case, status and volumes."""
    made_by = outcome.made_by
    return {
        "seconds": outcome.seconds.total,
        "windows": outcome.windows,
        "bytes_sent": outcome.bytes_sent,
        "bytes_received": outcome.bytes_received,
        "model": made_by.model if made_by else "",
        "error": outcome.error.message if outcome.error else "",
        "failed_formats": "; ".join(f"{failed.format}: {failed.error.message}" for failed in outcome.failed_formats),
        "warnings": "; ".join(outcome.warnings),
        "inputs": "; ".join(f"{file.name} {file.sha256}" for file in outcome.inputs),
        "outputs": "; ".join(f"{file.name} {file.sha256}" for file in outcome.outputs),
        "model_version": made_by.model_version if made_by else "",
        "spec_digest": made_by.spec_digest if made_by else "",
        "parity": made_by.parity if made_by else "",
        "tile_step_size": made_by.options.tile_step_size if made_by else "",
        "mirroring": made_by.options.mirroring if made_by else "",
        "servers": " ".join(made_by.servers) if made_by else "",
        "run": made_by.run if made_by else "",
        "part": (made_by.part or "") if made_by else "",
        "ended": outcome.ended,
    }
