"""The pages of an output folder: an index of its cases, and a page with a viewer for each."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import InputError
from ctseg.evaluate.evaluation import Evaluation, LabelScores
from ctseg.evaluate.folder import pair_files
from ctseg.evaluate.pages.rendering import number, render
from ctseg.evaluate.pages.report_folder import CASES, FOLDER, INDEX, new_pages, write_single_page, write_viewer
from ctseg.evaluate.pages.run_case import CaseSource, RunCase, Viewed, reading_bytes, shown_case, told_case
from ctseg.evaluate.pages.viewer import MISSING, viewer_script
from ctseg.files.atomic import write_text
from ctseg.files.cases import Case
from ctseg.files.identity import printable
from ctseg.predict.memory_limits import available_memory
from ctseg.predict.model_notes import ModelNote
from ctseg.predict.outcomes import MadeBy, key_of
from ctseg.predict.report import Report

_MOST_THREADS = 4
_LARGE_PART = 8
"""A case that takes more than this part of the memory waits until no other such is at work."""
_MOST_COLUMNS = 5
"""Labels that have a column each in the table; of more, a list a case."""
_MOST_HISTOGRAMS = 24
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
)
_LONGEST = 100
_STAGES = ("read", "prepare", "network", "restore", "write")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenPages:
    """What was written.

    Attributes:
        first: The page to open.
        with_viewer: How many cases can be turned and leafed through.
        without: Cases that ended well and have no viewer, and why.
        removed: How many cases had a page of an earlier time and have none now.
    """

    first: Path
    with_viewer: int
    without: tuple[tuple[str, str], ...]
    removed: int = 0


def write_run_pages(
    output: Path,
    report: Report,
    *,
    left: Sequence[tuple[str, str]] = (),
    cases: Sequence[Case] | None = None,
    evaluation: Evaluation | None = None,
    references: Path | None = None,
    single: str | None = None,
    case_done: Callable[[RunCase], None] = lambda _: None,
) -> WrittenPages:
    """Write the pages of a folder of label maps into ``OUT/report``, or one page that holds one case and its viewer.

    Several cases are worked on at once, on threads; one that is very large by itself.

    Args:
        output: The folder.
        report: Of all that became of its cases.
        left: Cases that are not done, and why; some have no outcome.
        cases: Of the input; None: nobody said where the scans are, so that nothing can be shown of them.
        evaluation: Scores of the cases, where there are any.
        references: Folder of label maps whose outlines are shown.
        single: Name of the one case.
        case_done: Told each case that is ready, on the caller's thread.

    Raises:
        InputError: There is no such case, or the references cannot be read.
        OutputError: A page cannot be written.
        SetupError: Jinja or Pillow is not installed.
    """
    sources = _sources(output, report, cases, evaluation, references)
    if single is not None:
        return _write_single(output, report, sources, single)
    viewer = viewer_script()
    if viewer is None:
        logger.warning("%s", MISSING)
    names = page_names([source.outcome.case for source in sources])
    with new_pages(output) as pages:

        def make(source: CaseSource) -> RunCase:
            case, viewed = shown_case(source, with_viewer=viewer is not None)
            if case.planes is None:
                return case
            case = replace(case, page=names[case.name])
            context = _context_of(case, report) | {
                "viewed": viewed, "scene": viewed and viewed_json(viewed, case),
                "script": "", "missing": "" if viewer else MISSING, "index": f"../{INDEX}",
            }  # fmt: skip
            write_text(pages.folder / CASES / case.page, render("case.html.j2", **context))
            return case

        rows = _made(sources, make, case_done)
        known = {row.name for row in rows}
        rows += [RunCase(name, "not done", (why,)) for name, why in left if name not in known]
        whys = dict(left)
        rows = [_with_why(row, whys) for row in rows]
        write_text(
            pages.folder / INDEX, render("run.html.j2", **_context_of_run(output, report, rows, viewer is not None))
        )
        if viewer is not None:
            write_viewer(pages.folder, viewer)
    shown = [row for row in rows if row.page]
    without = [(row.name, row.told[-1]) for row in rows if row.status == "ok" and not row.page and row.told]
    return WrittenPages(output / FOLDER / INDEX, len(shown) if viewer else 0, tuple(without), len(pages.removed))


def page_names(cases: Sequence[str]) -> dict[str, str]:
    """Return a file's name for the page of each case: its own where every system takes it, else a safe one.

    Args:
        cases: Names, each once.
    """
    folded = Counter(case.casefold() for case in cases)
    names = {}
    for case in cases:
        is_plain = set(case) <= _PLAIN and 0 < len(case) <= _LONGEST and case[0] != "." and case[-1] != "."
        is_plain = is_plain and folded[case.casefold()] == 1 and case.partition(".")[0].casefold() not in _RESERVED
        name = case if is_plain else key_of(case)
        names[case] = f"{'_' if name.startswith('-') else ''}{name}.html"  # a name with a dash is a flag to programs
    return names


def _sources(
    output: Path, report: Report, cases: Sequence[Case] | None, evaluation: Evaluation | None, references: Path | None
) -> list[CaseSource]:
    by_name = {printable(case.name): case for case in cases or ()}
    scores = {case.case: case.labels for case in evaluation.cases} if evaluation else {}
    refused = {case.case: case.error for case in evaluation.refused} if evaluation else {}
    pairs = pair_files(output, references).pairs if references is not None else {}
    with_reference = {printable(name): files[1] for name, files in pairs.items()}
    notes = [report.models.get(outcome.made_by.spec_digest) if outcome.made_by else None for outcome in report.cases]
    return [
        CaseSource(
            outcome=outcome,
            note=note,
            case=by_name.get(outcome.case),
            folder=output,
            reference=with_reference.get(outcome.case),
            scores=_by_model_names(scores.get(outcome.case, {}), evaluation, note),
            not_compared=refused.get(outcome.case, ""),
            has_input=cases is not None,
        )
        for outcome, note in zip(report.cases, notes, strict=True)
    ]


def _by_model_names(
    scores: Mapping[str, LabelScores], evaluation: Evaluation | None, note: ModelNote | None
) -> Mapping[str, LabelScores]:
    """Return scores by the model's names of labels, where the evaluation has other names for the same values."""
    if evaluation is None or note is None:
        return scores
    names = {tuple(sorted(values)): name for name, values in note.labels.items()}
    of_evaluation = {name: names.get(tuple(sorted(values)), name) for name, values in evaluation.labels.items()}
    return {of_evaluation.get(name, name): found for name, found in scores.items()}


def _made(
    sources: Sequence[CaseSource], make: Callable[[CaseSource], RunCase], case_done: Callable[[RunCase], None]
) -> list[RunCase]:
    """Return all cases in order, made on a few threads, of which one works on a very large case at a time."""
    large, limit = threading.Lock(), available_memory().size / _LARGE_PART

    def one(source: CaseSource) -> RunCase:
        try:
            is_large = source.outcome.status == "ok" and reading_bytes(source) > limit
            with large if is_large else nullcontext():
                return make(source)
        except OSError as error:
            told = told_case(source)
            return replace(told, told=(*told.told, f"not shown: {error.strerror or error}"))

    with ThreadPoolExecutor(min(_MOST_THREADS, usable_cpus())) as threads:
        futures: list[Future[RunCase]] = [threads.submit(one, source) for source in sources]
        try:
            left = set(futures)
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    case_done(future.result())
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _write_single(output: Path, report: Report, sources: Sequence[CaseSource], name: str) -> WrittenPages:
    source = next((source for source in sources if source.outcome.case == printable(name)), None)
    if source is None:
        known = ", ".join(source.outcome.case for source in sources[:5]) or "none"
        raise InputError(
            f"{output}: expected a case {printable(name)!r}, found {known}{', …' if len(sources) > 5 else ''}"
        )
    viewer = viewer_script()
    if viewer is None:
        logger.warning("%s", MISSING)
    case, viewed = shown_case(source, with_viewer=viewer is not None)
    name = page_names([case.name])[case.name]
    if name == INDEX:
        name = f"{key_of(case.name)}.html"
    context = _context_of(case, report) | {
        "viewed": viewed, "scene": viewed and viewed_json(viewed, case),
            "script": viewer or "", "missing": "" if viewer else MISSING, "index": "",
    }  # fmt: skip
    path = write_single_page(output, name, render("case.html.j2", **context))
    without = () if viewed or not case.told else ((case.name, case.told[-1]),)
    return WrittenPages(path, 1 if viewed else 0, without)


def _with_why(row: RunCase, whys: Mapping[str, str]) -> RunCase:
    why = whys.get(row.name)
    if why is None or any(why in told for told in row.told):
        return row
    return replace(row, told=(why, *row.told))


def _context_of(case: RunCase, report: Report) -> dict[str, Any]:
    outcome = case.outcome
    made_by = outcome.made_by if outcome else None
    return {
        "title": case.name,
        "case": case,
        "warnings": outcome.warnings if outcome else (),
        "facts": [
            ("Status", _WORDS.get(case.status, case.status)),
            ("Model", case.model),
            *(_facts_of(made_by) if made_by else []),
            ("Seconds", f"{outcome.seconds.total:.1f}" if outcome and outcome.seconds.total else ""),
            ("Windows", outcome.windows or "" if outcome else ""),
            ("Ended", outcome.ended if outcome else ""),
            ("Scan", "; ".join(file.name for file in outcome.inputs) if outcome else ""),
            ("Label map", "; ".join(file.name for file in outcome.outputs) if outcome else ""),
        ],
        "written": report.written,
        "version": version("ctseg"),
    }


def _facts_of(made_by: MadeBy) -> list[tuple[str, str]]:
    members = "; ".join(f"{member.model} version {member.model_version}" for member in made_by.members)
    return [
        ("Version", made_by.model_version),
        ("Digest", made_by.spec_digest),
        ("Members", members),
        ("Parity", made_by.parity),
        ("Step of windows", f"{made_by.options.tile_step_size:g} of a patch"),
        ("Mirroring", "on" if made_by.options.mirroring else "off"),
        ("Servers", ", ".join(made_by.servers)),
        ("Transport", made_by.transport),
    ]


def _context_of_run(output: Path, report: Report, rows: Sequence[RunCase], has_viewer: bool) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: row.name)
    labels: dict[str, str] = {}
    for row in rows:
        for label in row.labels:
            labels.setdefault(label.name, label.display_name)
    counts = Counter(row.status for row in rows)
    ended = sorted(row.outcome.ended for row in rows if row.outcome and row.outcome.ended)
    return {
        "title": f"{output.absolute().name}: {len(rows)} case{'' if len(rows) == 1 else 's'}",
        "rows": rows,
        "labels": labels,
        "columns": list(labels) if len(labels) <= _MOST_COLUMNS else [],
        "lists": _lists(rows) if len(labels) > _MOST_COLUMNS else {},
        "facts": [
            ("Cases", ", ".join(f"{count} {_WORDS.get(status, status)}" for status, count in sorted(counts.items()))),
            ("First ended", ended[0] if ended else ""),
            ("Last ended", ended[-1] if ended else ""),
            ("Finished", "" if report.finished else "no: a run still works in the folder"),
            ("Page written", report.written),
            ("Made by", f"ctseg {version('ctseg')}"),
            ("Viewer", "" if has_viewer else MISSING),
        ],
        "models": _models(rows),
        "stages": _stages(rows),
        "histograms": _histograms(rows, labels),
        "has_scores": any(label.scores for row in rows for label in row.labels),
        "has_agreement": any(row.lowest_agreement is not None for row in rows),
        "cases_folder": CASES,
    }


_WORDS = {"ok": "done"}


def _lists(rows: Sequence[RunCase]) -> dict[str, Any]:
    """Return the labels of each case that has any, with ml and Dice; each name once, as 200 cases share them."""
    has_scores = any(label.scores for row in rows for label in row.labels)
    known: dict[tuple[str, str], int] = {}
    cases = [
        [
            [
                known.setdefault((label.display_name, label.colour), len(known)),
                f"{number(label.volume_ml)} ml",
                *([number(label.scores.dice if label.scores else None)] if has_scores else []),
            ]
            for label in row.labels
            if label.volume_ml or label.scores
        ]
        for row in rows
        if row.labels
    ]
    return {"labels": [list(label) for label in known], "cases": cases}


def _models(rows: Sequence[RunCase]) -> list[dict[str, Any]]:
    """Return what is known of each model that worked, with its options and servers."""
    groups: dict[tuple[str, str, str], list[RunCase]] = {}
    for row in rows:
        if row.outcome and (made_by := row.outcome.made_by):
            groups.setdefault(
                (made_by.spec_digest, made_by.model_version, made_by.options.model_dump_json()), []
            ).append(row)
    models = []
    for of_model in groups.values():
        made = [row.outcome.made_by for row in of_model if row.outcome and row.outcome.made_by]
        ran_on = {
            f"{ran.server}: {ran.runtime}"
            + ("" if ran.relative_l2 is None else f", {ran.relative_l2:.1e} from PyTorch")
            for row in of_model
            if row.outcome
            for ran in row.outcome.ran_on
        }
        servers = sorted({server for one in made for server in one.servers})
        parts = sorted({one.part for one in made if one.part})
        facts = _facts_of(made[0].model_copy(update={"servers": tuple(servers)}))
        facts += [("Ran on", "; ".join(sorted(ran_on))), ("Parts", ", ".join(parts)), ("Cases", str(len(made)))]
        models.append({"name": made[0].model, "facts": facts})
    return models


def _stages(rows: Sequence[RunCase]) -> list[dict[str, Any]]:
    """Return seconds of each stage: of all cases, of the middle one, and as a part of the longest."""
    found = [row.outcome.seconds for row in rows if row.outcome and row.outcome.status == "ok"]
    totals = {stage: sum(getattr(seconds, stage) for seconds in found) for stage in _STAGES}
    if not any(totals.values()):
        return []
    middle = {stage: sorted(getattr(seconds, stage) for seconds in found)[len(found) // 2] for stage in _STAGES}
    return [
        {"name": stage, "total": totals[stage], "middle": middle[stage], "part": totals[stage] / max(totals.values())}
        for stage in _STAGES
    ]


def _histograms(rows: Sequence[RunCase], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what is spread how: volumes, Dice and agreement of each label."""
    kinds: list[tuple[str, str, Callable[[Any], float | None]]] = [
        ("Volume", "ml", lambda label: label.volume_ml),
        ("Dice", "", lambda label: label.scores.dice if label.scores else None),
        ("Agreement of the folds", "", lambda label: label.agreement),
    ]
    groups = []
    for kind, unit, of in kinds:
        charts = []
        for name, display_name in labels.items():
            found = [label for row in rows for label in row.labels if label.name == name]
            values = [value for label in found if (value := of(label)) is not None]
            if values and not all(math.isnan(value) for value in values):
                charts.append((display_name, values, unit, found[0].colour))
        if charts:
            groups.append({"name": kind, "charts": charts[:_MOST_HISTOGRAMS], "more": charts[_MOST_HISTOGRAMS:]})
    return groups


def viewed_json(viewed: Viewed, case: RunCase) -> dict[str, Any]:
    """Return what a viewer's script needs to know beside voxels."""
    return {
        "labels": [
            {"name": label.display_name, "places": list(label.places), "colour": label.colour} for label in case.labels
        ],
        "count": len(viewed.colours),
        "windows": [list(window) for window in viewed.windows],
        "start": list(viewed.start_mm),
    }
