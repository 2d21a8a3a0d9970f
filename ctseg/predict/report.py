"""``report.json`` and ``report.csv``: what became of every case in a folder, folded from the outcomes."""

import csv
import io
import json
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ctseg.documents import Document
from ctseg.files.atomic import write_text
from ctseg.files.identity import KnownFile
from ctseg.predict.outcomes import Outcome, OutcomeStore

REPORT_NAME = "report.json"
TABLE_NAME = "report.csv"

logger = logging.getLogger(__name__)


class Report(Document):
    """The whole of ``report.json``.

    Attributes:
        finished: False while a run works in the folder; the outcomes of its cases are still to come.
        written: When, in UTC.
        cases: In order of their names.
    """

    schema_version: Literal[2] = 2
    finished: bool
    written: str
    cases: tuple[Outcome, ...] = ()


def begin_report(output: Path) -> None:
    """Mark the report of a folder as unfinished; the outcomes keep what it said.

    Raises:
        OutputError: It cannot be written.
    """
    _write(output, Report(finished=False, written=now()))


def fold_report(output: Path, *, finished: bool = True) -> Report:
    """Write ``report.json`` and ``report.csv`` from all outcomes in a folder, whoever wrote them and when.

    Args:
        output: The output folder.
        finished: Whether no run works in the folder any more.

    Raises:
        OutputError: They cannot be written.
    """
    store = OutcomeStore(output)
    while True:
        before = store.written()
        report = Report(finished=finished, written=now(), cases=_outcomes(store))
        _write(output, report)
        write_text(output / TABLE_NAME, _table(report))
        if not finished or store.written() == before:  # else another run has added to them meanwhile
            return report


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


def _write(output: Path, report: Report) -> None:
    write_text(output / REPORT_NAME, json.dumps(report.model_dump(mode="json"), indent=1))


def _table(report: Report) -> str:
    """Return a row for each case, and a column for the volume of each label."""
    labels = sorted({label for outcome in report.cases for label in outcome.volumes_ml})
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["case", "status", *(f"{label} ml" for label in labels), "seconds", "windows", "model", "error"])
    for outcome in report.cases:
        volumes: list[Any] = [outcome.volumes_ml.get(label, "") for label in labels]
        table.writerow([
            outcome.case, outcome.status, *volumes, outcome.seconds.total, outcome.windows,
            outcome.made_by.model if outcome.made_by else "", outcome.error.message if outcome.error else "",
        ])  # fmt: skip
    return text.getvalue()
