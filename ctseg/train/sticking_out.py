"""What sticks out in a data set: cases unlike the others, by robust measures, and what is odd by itself."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ctseg.train.case_overview import DatasetContent, is_ct
from ctseg.train.overview_document import CaseOverview, Finding

KINDS = (
    "problem", "no_hu", "doubled", "empty", "missing_label", "intensity", "volume", "spacing", "size", "orientation",
    "border",
)  # fmt: skip
"""Of findings, what matters most first."""
FEWEST = 5
"""Cases below which nothing is compared: there is no usual one."""
LIMIT = 3.5
"""Robust z-score from which a value sticks out."""
SMALLEST_RATIO = 1.15
"""Spread of sizes and volumes that is taken at least, so that of nearly equal ones none sticks out: a value has to be
``1.15 ** 3.5 = 1.63`` times the median, or as much below it."""
SMALLEST_HU = 15.0
"""The same for CT: a value has to be 52 HU away from the median; of other channels, a tenth of the usual range."""
_NAMES_TOLD = 3
_USUAL = 0.75
"""Share of cases with a label from which its absence is told."""


def findings_of(cases: Sequence[CaseOverview], content: DatasetContent) -> tuple[Finding, ...]:
    """Return what sticks out, what matters most first.

    A value sticks out where it is more than 3.5 times the spread away from the median, the spread being 1.4826 times
    the median absolute deviation; spacings, sizes and volumes are compared by their logarithms.

    Args:
        cases: All of the data set.
        content: What its ``dataset.json`` says.

    Source:
        Iglewicz and Hoaglin, How to detect and handle outliers, 1993: the modified z-score and its 3.5.
    """
    found = [
        *(
            Finding(kind="problem", case=case.case, message=problem.removeprefix(f"case {case.case}: "))
            for case in cases
            for problem in case.problems
        ),
        *_no_hu(cases, content),
        *_doubled(cases),
        *_labels_missing(cases, content),
        *_intensities(cases, content),
        *_volumes(cases, content),
        *_spacings(cases),
        *_sizes(cases),
        *_orientations(cases),
        *_borders(cases, content),
    ]
    return tuple(sorted(found, key=lambda finding: KINDS.index(finding.kind)))


def outliers(
    values: Mapping[str, float], *, smallest: float, scale: Callable[[float], float] = float
) -> tuple[float, dict[str, float]]:
    """Return the median and, by case, the values that stick out, the furthest first.

    Args:
        values: By case.
        smallest: Least spread, on the scale.
        scale: What values are compared by; ``math.log`` for ratios.
    """
    if len(values) < FEWEST:
        return math.nan, {}
    scaled = {case: scale(value) for case, value in values.items()}
    middle = float(np.median(list(scaled.values())))
    spread = max(smallest, 1.4826 * float(np.median([abs(value - middle) for value in scaled.values()])))
    far = {case: abs(value - middle) / spread for case, value in scaled.items()}
    out = sorted((case for case in far if far[case] > LIMIT), key=lambda case: -far[case])
    return float(np.median(list(values.values()))), {case: values[case] for case in out}


def _no_hu(cases: Sequence[CaseOverview], content: DatasetContent) -> list[Finding]:
    found = []
    for name in filter(is_ct, content.channel_names):
        odd = {case.case: why for case in cases if name in case.channels and (why := case.channels[name].no_hu)}
        kinds = Counter(map(_without_numbers, odd.values()))
        if len(odd) > len(cases) / 2 and (most := kinds.most_common(1)[0])[1] > 1:
            alike = [case for case, why in odd.items() if _without_numbers(why) == most[0]]
            told = f"{len(alike)} of {len(cases)} cases, such as {alike[0]}: {name}: {odd[alike[0]]}"
            found.append(Finding(kind="no_hu", case=None, message=told))
            odd = {case: why for case, why in odd.items() if case not in alike}
        found += [Finding(kind="no_hu", case=case, message=f"{name}: {why}") for case, why in odd.items()]
    return found


def _without_numbers(text: str) -> str:
    return re.sub(r"[-+.\w]*\d[-+.\w]*", "#", text)


def _doubled(cases: Sequence[CaseOverview]) -> list[Finding]:
    same: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        if case.voxels_sha256 is not None:
            same[case.voxels_sha256].append(case.case)
    return [
        Finding(
            kind="doubled",
            case=case,
            message=f"the same scan, voxel by voxel, as {_some([other for other in names if other != case])}: "
            "folds may train on what they validate",
        )
        for names in same.values()
        if len(names) > 1
        for case in names
    ]


def _some(names: Sequence[str]) -> str:
    shown = " and ".join(names[:_NAMES_TOLD])
    return f"{shown} and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else shown


def _labels_missing(cases: Sequence[CaseOverview], content: DatasetContent) -> list[Finding]:
    real = [name for name in content.labels if name != "ignore"]
    labelled = [case for case in cases if case.labels]
    found, empty = [], set()
    for case in labelled:
        if not any(case.labels[name].voxels for name in real):
            empty.add(case.case)
            found.append(Finding(kind="empty", case=case.case, message="no voxel has a label"))
    for name in real:
        having = sum(1 for case in labelled if case.labels[name].voxels)
        if labelled and having == 0:
            found.append(Finding(kind="missing_label", case=None, message=f"{name} is in no case"))
        elif len(labelled) >= FEWEST and having >= _USUAL * len(labelled):
            found += [
                Finding(
                    kind="missing_label",
                    case=case.case,
                    message=f"{name} is missing, which {having} of {len(labelled)} cases have",
                )
                for case in labelled
                if not case.labels[name].voxels and case.case not in empty
            ]
    return found


def _intensities(cases: Sequence[CaseOverview], content: DatasetContent) -> list[Finding]:
    found = []
    for name in content.channel_names:
        unit = " HU" if is_ct(name) else ""
        channels = {case.case: case.channels[name] for case in cases if name in case.channels}
        spreads = {case: channel.foreground for case, channel in channels.items() if channel.foreground is not None}
        ranges = [channel.whole.percentile_99_5 - channel.whole.percentile_00_5 for channel in channels.values()]
        smallest = SMALLEST_HU if is_ct(name) else 0.1 * float(np.median(ranges or [1.0])) or 1.0
        usual, far = [], {}
        for what in ("percentile_00_5", "median", "percentile_99_5"):
            values = {case: float(getattr(spread, what)) for case, spread in spreads.items()}
            middle, out = outliers(values, smallest=smallest)
            usual.append(f"{middle:.4g}")
            far.update(out)
        found += [
            Finding(
                kind="intensity",
                case=case,
                message=f"{name} in the labels: 0.5 %, median and 99.5 % are {spreads[case].percentile_00_5:.4g}, "
                f"{spreads[case].median:.4g} and {spreads[case].percentile_99_5:.4g}{unit}; the median case has "
                + ", ".join(usual),
            )
            for case in far
            if not channels[case].no_hu
        ]
    return found


def _volumes(cases: Sequence[CaseOverview], content: DatasetContent) -> list[Finding]:
    found = []
    for name in content.labels:
        if name == "ignore":
            continue
        volumes = {
            case.case: case.labels[name].volume_ml for case in cases if name in case.labels and case.labels[name].voxels
        }
        middle, far = outliers(volumes, smallest=math.log(SMALLEST_RATIO), scale=math.log)
        found += [
            Finding(
                kind="volume",
                case=case,
                message=f"{name} has {volume:.3g} ml, where the median case has {middle:.3g} ml",
            )
            for case, volume in far.items()
        ]
    return found


def _spacings(cases: Sequence[CaseOverview]) -> list[Finding]:
    return _along_axes(
        {case.case: case.spacing_mm for case in cases if case.spacing_mm is not None}, "spacing", "mm between voxels"
    )


def _sizes(cases: Sequence[CaseOverview]) -> list[Finding]:
    extents = {
        case.case: tuple(n * mm for n, mm in zip(case.shape, case.spacing_mm, strict=True))
        for case in cases
        if case.shape is not None and case.spacing_mm is not None
    }
    return _along_axes(extents, "size", "mm from end to end")


def _along_axes(values: Mapping[str, Sequence[float]], kind: str, unit: str) -> list[Finding]:
    found = []
    for axis, name in enumerate("zyx"):
        of_axis = {case: float(value[axis]) for case, value in values.items()}
        middle, far = outliers(of_axis, smallest=math.log(SMALLEST_RATIO), scale=math.log)
        found += [
            Finding(
                kind=kind,
                case=case,
                message=f"{value:.4g} {unit} along {name}, where the median case has {middle:.4g}",
            )
            for case, value in far.items()
        ]
    return found


def _orientations(cases: Sequence[CaseOverview]) -> list[Finding]:
    there = {case.case: case.orientation for case in cases if case.orientation is not None}
    counts = Counter(there.values())
    if len(counts) < 2:
        return []
    usual, count = counts.most_common(1)[0]
    mirrored = {case.case for case in cases if case.left_handed}
    mostly_mirrored = len(mirrored) > len(there) / 2
    return [
        Finding(
            kind="orientation",
            case=case,
            message=f"x, y and z run to {orientation}, where {count} of {len(there)} cases have {usual}"
            + (": its voxels lie mirrored against theirs" if (case in mirrored) != mostly_mirrored else ""),
        )
        for case, orientation in there.items()
        if orientation != usual
    ]


def _borders(cases: Sequence[CaseOverview], content: DatasetContent) -> list[Finding]:
    found = []
    for name in content.labels:
        if name == "ignore":
            continue
        having = [case for case in cases if name in case.labels and case.labels[name].voxels]
        cut = {case.case: case.labels[name].at_border_of for case in having if case.labels[name].at_border_of}
        if len(cut) > len(having) / 2 and len(having) >= FEWEST:
            text = f"{name} touches the border of the scan in {len(cut)} of {len(having)} cases"
            found.append(Finding(kind="border", case=None, message=text))
            continue
        found += [
            Finding(
                kind="border",
                case=case,
                message=f"{name} touches the {' and the '.join(faces)} border of the scan: is it cut off there?",
            )
            for case, faces in cut.items()
        ]
    return found
