"""The page of a data set."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ctseg.evaluate.pages.charts import Line, line_chart
from ctseg.evaluate.pages.colours import colours_of, css
from ctseg.evaluate.pages.rendering import number, render
from ctseg.train.case_overview import is_ct
from ctseg.train.intensities import CT_RANGE_HU, merged
from ctseg.train.overview import LookedAt, findings_by_case
from ctseg.train.overview_document import CaseOverview, DatasetOverview, Histogram

if TYPE_CHECKING:
    from markupsafe import Markup

_WHOLE, _LABELLED = "#8a94a0", "#c2553f"
_MOST_COLUMNS = 6
_SHOWN_FIRST = 8


@dataclass(frozen=True)
class _LabelRow:
    name: str
    colour: str
    having: int
    cases: int
    volumes_ml: Sequence[float]

    @property
    def median_ml(self) -> float:
        return statistics.median(self.volumes_ml) if self.volumes_ml else math.nan

    @property
    def least_ml(self) -> float:
        return min(self.volumes_ml, default=math.nan)

    @property
    def most_ml(self) -> float:
        return max(self.volumes_ml, default=math.nan)


def overview_page(looked_at: LookedAt) -> str:
    """Return the page of a data set: what sticks out, then the whole, then every case.

    Raises:
        SetupError: Jinja is not installed.
    """
    overview = looked_at.overview
    of_case = findings_by_case(overview.findings)
    labels = _label_rows(overview)
    return render(
        "dataset.html.j2",
        title=f"{overview.dataset}: {len(overview.cases)} cases",
        facts=_facts(overview),
        findings=[(kind, list(those)) for kind, those in groupby(overview.findings, key=lambda one: one.kind)],
        shown_first=_SHOWN_FIRST,
        anchors={case.case: f"case-{place}" for place, case in enumerate(overview.cases)},
        intensities=[(name, _of_channel(overview, name)) for name in overview.channel_names],
        grids=_grids(overview),
        labels=labels,
        columns=labels if len(labels) <= _MOST_COLUMNS else [],
        cases=[
            {
                "overview": case,
                "picture": looked_at.pictures.get(case.case),
                "histogram": _of_case(case, overview.channel_names[0]),
                "findings": of_case.get(case.case, ()),
                "having": sum(1 for label in case.labels.values() if label.voxels),
            }
            for case in sorted(overview.cases, key=lambda case: -len(of_case.get(case.case, ())))
        ],
    )


def _facts(overview: DatasetOverview) -> list[tuple[str, str]]:
    cases = overview.cases
    turned = Counter(case.orientation for case in cases if case.orientation is not None)
    return [
        ("cases", str(len(cases))),
        ("channels", ", ".join(overview.channel_names)),
        ("labels", str(sum(1 for name in overview.labels if name != "ignore"))),
        ("ignore label", "yes" if "ignore" in overview.labels else ""),
        ("spacing, median (z, y, x)", _medians([case.spacing_mm for case in cases], "mm")),
        ("voxels, median (z, y, x)", _medians([case.shape for case in cases], "")),
        ("x, y and z run to", ", ".join(f"{code} ({count})" for code, count in turned.most_common())),
    ]


def _medians(values: Sequence[tuple[float, float, float] | None], unit: str) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    return " × ".join(number(statistics.median(value[axis] for value in there)) for axis in range(3)) + f" {unit}"


def _grids(overview: DatasetOverview) -> list[tuple[str, list[float], str]]:
    drawn: list[tuple[str, list[float], str]] = []
    for axis, name in enumerate("zyx"):
        drawn.append(
            (f"spacing along {name}", [case.spacing_mm[axis] for case in overview.cases if case.spacing_mm], "mm")
        )
    for axis, name in enumerate("zyx"):
        drawn.append((f"voxels along {name}", [float(case.shape[axis]) for case in overview.cases if case.shape], ""))
    return drawn


def _label_rows(overview: DatasetOverview) -> list[_LabelRow]:
    colours = colours_of({name: values for name, values in overview.labels.items() if name != "ignore"})
    labelled = [case for case in overview.cases if case.labels]
    rows = []
    for name in overview.labels:
        volumes = [case.labels[name].volume_ml for case in labelled if case.labels[name].voxels]
        colour = css(colours[name]) if name in colours else "#888888"
        rows.append(_LabelRow(name, colour, len(volumes), len(labelled), volumes))
    return rows


def _of_channel(overview: DatasetOverview, name: str) -> "Markup":
    """Draw how the intensities of all cases are spread."""
    channels = [case.channels[name] for case in overview.cases if name in case.channels]
    whole = [channel.whole_histogram for channel in channels]
    labelled = [channel.foreground_histogram for channel in channels if channel.foreground_histogram is not None]
    low = CT_RANGE_HU[0] if is_ct(name) else min((histogram.low for histogram in whole), default=0.0)
    high = 1500.0 if is_ct(name) else max((histogram.high for histogram in whole), default=1.0)
    return _drawn(merged(whole, low, high), merged(labelled, low, high), "HU" if is_ct(name) else "", (560, 170))


def _of_case(case: CaseOverview, name: str) -> "Markup | None":
    channel = case.channels.get(name)
    if channel is None:
        return None
    high = 700.0 if is_ct(name) else channel.whole_histogram.high
    whole = merged([channel.whole_histogram], channel.whole_histogram.low, high)
    labelled = None
    if channel.foreground_histogram is not None:
        labelled = merged([channel.foreground_histogram], channel.whole_histogram.low, high)
    return _drawn(whole, labelled, "", (230, 84), thin=4)


def _drawn(whole: Histogram, labelled: Histogram | None, unit: str, size: tuple[int, int], thin: int = 1) -> "Markup":
    lines = []
    for name, histogram, colour in (("whole scan", whole, _WHOLE), ("in labels", labelled, _LABELLED)):
        if histogram is not None and any(histogram.counts):
            lines.append(Line(name, _shares(histogram, thin), colour, filled=True))
    return line_chart(lines, x_name=unit, y_range=(0.0, 1.05), y_ticks=False, size=size)


def _shares(histogram: Histogram, thin: int) -> list[tuple[float, float]]:
    """Return the square roots of counts as shares of the highest: what is rare is seen, too."""
    counts = [sum(histogram.counts[place : place + thin]) for place in range(0, len(histogram.counts), thin)]
    width, highest = (histogram.high - histogram.low) / len(counts), max(counts)
    return [(histogram.low + (place + 0.5) * width, math.sqrt(count / highest)) for place, count in enumerate(counts)]
