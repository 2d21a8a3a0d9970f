"""Hold the agreement of folds against the Dice, where there are references.

    ctseg predict -i CT -o LABELS -m MODEL --agreement
    python -m scripts.agreement_against_dice LABELS -r REFERENCES --picture agreement.png

Takes several output folders. Prints Pearson's and Spearman's correlation for each label and over all of them, as they
come, and every point; draws the points. Needs matplotlib.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from ctseg.evaluate.folder import evaluate_folder
from ctseg.predict.report import REPORT_NAME, Report

FEWEST_POINTS = 3
"""Two points have a correlation of 1 or -1, which says nothing."""


@dataclass(frozen=True)
class Point:
    """One label of one case.

    Attributes:
        case: Name of the case.
        label: Name of the label.
        agreement: Of the folds.
        dice: Against the reference.
    """

    case: str
    label: str
    agreement: float
    dice: float


def points_of(labels: Path, references: Path) -> list[Point]:
    """Return the labels of a run that have both an agreement and a Dice.

    A label that no fold found has no agreement, whatever the reference has: it is no point.

    Args:
        labels: Output folder of ``ctseg predict``.
        references: Label maps of the same names.
    """
    report = Report.model_validate_json((labels / REPORT_NAME).read_bytes())
    agreement = {outcome.case: outcome.agreement for outcome in report.cases}
    return [
        Point(case.case, label, agreement[case.case][label], scores.dice)
        for case in evaluate_folder(labels, references).cases
        for label, scores in case.labels.items()
        if label in agreement.get(case.case, {}) and not math.isnan(scores.dice)
    ]


def correlations(points: Sequence[Point]) -> tuple[float, float]:
    """Return Pearson's and Spearman's correlation of agreement and Dice; NaN for fewer than three points."""
    if len(points) < FEWEST_POINTS:
        return math.nan, math.nan
    agreement, dice = np.array([(point.agreement, point.dice) for point in points]).T
    return float(stats.pearsonr(agreement, dice).statistic), float(stats.spearmanr(agreement, dice).statistic)


def table_of(points: Sequence[Point]) -> str:
    """Return the correlations as a table in Markdown, a row for each label and one for all points."""
    rows = ["| label | points | agreement | Dice | Pearson | Spearman |", "|---|---|---|---|---|---|"]
    names = list(dict.fromkeys(point.label for point in points))
    for name, chosen in [(name, [point for point in points if point.label == name]) for name in names] + [
        ("all", list(points))
    ]:
        pearson, spearman = correlations(chosen)
        ranges = [
            f"{min(values):.3f} to {max(values):.3f}"
            for values in ([point.agreement for point in chosen], [point.dice for point in chosen])
        ]
        rows.append(f"| {name} | {len(chosen)} | {ranges[0]} | {ranges[1]} | {pearson:.2f} | {spearman:.2f} |")
    return "\n".join(rows)


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw agreement against Dice, a colour and a mark for each label."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 5.0), layout="constrained")
    names = list(dict.fromkeys(point.label for point in points))
    for index, name in enumerate(names):
        chosen = [point for point in points if point.label == name]
        pearson, spearman = correlations(chosen)
        axes.scatter(
            [point.agreement for point in chosen],
            [point.dice for point in chosen],
            marker="os^Dv*"[index % 6],
            alpha=0.75,
            label=f"{name}: n = {len(chosen)}, r = {pearson:.2f}, ρ = {spearman:.2f}",
        )
    axes.plot([0, 1], [0, 1], color="0.8", zorder=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="agreement of the folds", ylabel="Dice", aspect="equal")
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    """Print the table and the points; write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, nargs="+", help="output folders of ctseg predict --agreement")
    parser.add_argument("-r", "--references", type=Path, required=True, help="folder of their references")
    parser.add_argument("--label", action="append", help="only this one, once for each (default: all)")
    parser.add_argument("--picture", type=Path, help="where to draw the points (PNG)")
    args = parser.parse_args()
    points = [point for folder in args.labels for point in points_of(folder, args.references)]
    points = [point for point in points if args.label is None or point.label in args.label]
    if not points:
        parser.error("no label has both an agreement and a Dice: was the run asked for --agreement, of several folds?")
    print(table_of(points))
    print()
    for point in sorted(points, key=lambda point: (point.label, point.agreement)):
        print(f"{point.label:12} {point.case:20} agreement {point.agreement:.3f}  Dice {point.dice:.3f}")
    if args.picture is not None:
        draw(points, args.picture)


if __name__ == "__main__":
    main()
