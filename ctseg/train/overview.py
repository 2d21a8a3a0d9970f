"""A data set to look at: every case measured, what sticks out, a page."""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import InputError
from ctseg.evaluate.pages.colours import colours_of, colours_of_values
from ctseg.files.atomic import write_text
from ctseg.files.dataset_cases import LabelledCase
from ctseg.files.folders import make_folder
from ctseg.files.tables import csv_table
from ctseg.train.case_overview import DatasetContent, MeasuredCase, measure_case
from ctseg.train.description import FILE, read_declared
from ctseg.train.dicom_labels import values_of_label
from ctseg.train.memory_room import MemoryRoom, bytes_of
from ctseg.train.overview_document import DatasetOverview, Finding
from ctseg.train.sticking_out import KINDS, findings_of
from ctseg.train.verify import cases_in

PAGE_NAME, JSON_NAME, CSV_NAME = "overview.html", "overview.json", "overview.csv"
_MOST_WORKERS = 8


@dataclass(frozen=True)
class LookedAt:
    """A data set that was looked at.

    Attributes:
        overview: What was measured.
        pictures: Data URIs by case; cases that have none are left out.
    """

    overview: DatasetOverview
    pictures: Mapping[str, str]


def look_at_dataset(
    folder: Path,
    *,
    workers: int | None = None,
    picture_size: int | None = None,
    on_case: Callable[[int, int], object] | None = None,
) -> LookedAt:
    """Measure every case of a data set of nnU-Net, several at once, as many as memory allows.

    A case that cannot be read has its place with the reason, and stops no other.

    Args:
        folder: ``DatasetXXX_Name`` with ``dataset.json``.
        workers: Cases at once; None: one for each usable core, up to eight.
        picture_size: Pixels of the longer side of pictures; None: by the number of cases, so that pages stay small.
        on_case: Told how many cases are done, of how many.

    Raises:
        InputError: There is no usable ``dataset.json``, or there are no cases.
        SetupError: Pillow is not installed.
    """
    declared, problems = read_declared(folder / FILE)
    if declared is None or declared.channel_names is None or declared.labels is None:
        raise InputError("; ".join(problem.message for problem in problems))
    content = DatasetContent(
        declared.channel_names,
        {name: values_of_label(values) for name, values in declared.labels.items() if name != "background"},
    )
    found = cases_in(folder, declared)
    if not found.cases:
        raise InputError(f"{folder}: no cases: " + "; ".join(problem.message for problem in found.problems[:3]))
    problems = [*problems, *found.problems]
    told: dict[str | None, list[str]] = defaultdict(list)
    for problem in problems:
        told[problem.case].append(problem.message)
    labels = {name: values for name, values in content.labels.items() if name != "ignore"}
    colours = colours_of_values(labels, colours_of(labels))
    size = picture_size or (176 if len(found.cases) <= 100 else 144 if len(found.cases) <= 300 else 96)
    room = MemoryRoom()
    done, lock = 0, threading.Lock()

    def measured(case: LabelledCase) -> MeasuredCase:
        nonlocal done
        with room.taken(bytes_of(case.channels, case.label)):
            result = measure_case(case, content, colours, told=told[case.name], size=size)
        with lock:
            done += 1
            if on_case is not None:
                on_case(done, len(found.cases))
        return result

    with ThreadPoolExecutor(workers or min(_MOST_WORKERS, usable_cpus())) as pool:
        results = list(pool.map(measured, found.cases))
    names = {case.name for case in found.cases}
    of_all = [
        Finding(kind="problem", case=None, message=text)
        for case, texts in told.items()
        if case not in names
        for text in texts
    ]
    overviews = tuple(result.overview for result in results)
    overview = DatasetOverview(
        dataset=folder.name,
        channel_names=content.channel_names,
        labels=content.labels,
        findings=(*of_all, *findings_of(overviews, content)),
        cases=overviews,
    )
    return LookedAt(overview, {r.overview.case: r.picture for r in results if r.picture is not None})


def write_overview(looked_at: LookedAt, folder: Path) -> Path:
    """Write ``overview.html``, ``overview.json`` and ``overview.csv``, and return the page.

    Args:
        looked_at: A data set.
        folder: Made if it is missing.

    Raises:
        OutputError: They cannot be written.
        SetupError: Jinja is not installed.
    """
    from ctseg.train.overview_page import overview_page

    page = overview_page(looked_at)
    make_folder(folder)
    write_text(folder / JSON_NAME, looked_at.overview.model_dump_json(indent=1))
    write_text(folder / CSV_NAME, overview_csv(looked_at.overview))
    write_text(folder / PAGE_NAME, page)
    return folder / PAGE_NAME


def overview_csv(overview: DatasetOverview) -> str:
    """Return a row for each case: its grid, the percentiles of its channels, the volumes of its labels."""
    shown = ("percentile_00_5", "median", "percentile_99_5")
    spreads = [f"{name} {part}" for name in overview.channel_names for part in ("whole", "labels")]
    rows: list[list[Any]] = [
        [
            "case", *(f"size_{axis}" for axis in "zyx"), *(f"spacing_{axis}_mm" for axis in "zyx"), "orientation",
            "left_handed",
*(f"{spread} {word}" for spread in spreads for word in shown),
            *(f"{name} ml" for name in overview.labels), "findings",
        ]
    ]  # fmt: skip
    of_case = findings_by_case(overview.findings)
    for case in overview.cases:
        row: list[Any] = [case.case, *(case.shape or [""] * 3), *(case.spacing_mm or [""] * 3)]
        row += [case.orientation or "", "" if case.left_handed is None else case.left_handed]
        for name in overview.channel_names:
            channel = case.channels.get(name)
            for spread in (channel and channel.whole, channel and channel.foreground):
                row += [getattr(spread, word) for word in shown] if spread is not None else [""] * 3
        row += [case.labels[name].volume_ml if name in case.labels else "" for name in overview.labels]
        rows.append([*row, "; ".join(finding.message for finding in of_case.get(case.case, ()))])
    return csv_table(rows)


def findings_by_case(findings: Sequence[Finding]) -> Mapping[str, Sequence[Finding]]:
    """Return what sticks out by the case that it is of, what matters most first."""
    by_case: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.case is not None:
            by_case[finding.case].append(finding)
    return {case: sorted(those, key=lambda one: KINDS.index(one.kind)) for case, those in by_case.items()}
