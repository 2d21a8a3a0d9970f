"""The command ``evaluate``: label maps against references."""

import argparse
import contextlib
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.console import add_verbosity, without_controls
from ctseg.cli.exit_codes import DONE, SOME_FAILED
from ctseg.cli.parser import Parser
from ctseg.errors import SetupError

if TYPE_CHECKING:
    from ctseg.evaluate.compared_labels import ComparedLabels
    from ctseg.evaluate.evaluation import EvaluatedCase, Evaluation, LabelScores

_MOST_ROWS = 20
_WIDEST = 200


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``evaluate``, and nnU-Net's two words for it."""
    parser = commands.add_parser(
        "evaluate",
        help="compare label maps with references",
        description="Dice and the other counts as nnU-Net has them, distances between surfaces, and volumes, by case "
        "and label; written as evaluation.json, evaluation.csv and nnU-Net's summary.json. Files belong together by "
        "their names. Exit status: 0 all compared, 1 a case is missing or could not be compared, 2 nothing was done, "
        "3 the disk is full or went away, 130 interrupted, 143 terminated.",
    )
    parser.add_argument(
        "-i", "--labels", type=Path, required=True, help="folder of label maps, as ctseg predict writes"
    )
    parser.add_argument("-r", "--references", type=Path, required=True, help="folder of references")
    parser.add_argument(
        "-m", "--spec", type=Path,
        help="names of the labels: a ctseg.json, a bundle, a model in a repository, a dataset.json, a data set "
        "(default: the dataset.json in or beside the references, else the model that wrote the label maps, else all "
        "values)",
    )  # fmt: skip
    parser.add_argument("-djfile", type=Path, metavar="FILE", help="a dataset.json, in nnU-Net's spelling")
    parser.add_argument("-l", dest="label_values", type=int, nargs="+", metavar="VALUE", help="only these values")
    _add_common(parser)
    parser.set_defaults(run=_run)
    folder = commands.add_parser("evaluate_folder", help="as `evaluate`, in nnU-Net's words")
    _add_positional(folder)
    folder.add_argument("-djfile", type=Path, required=True, metavar="FILE", help="dataset.json")
    folder.set_defaults(run=_run, spec=None, label_values=None)
    simple = commands.add_parser("evaluate_simple", help="as `evaluate`, for values without names")
    _add_positional(simple)
    simple.add_argument("-l", dest="label_values", type=int, nargs="+", required=True, metavar="VALUE", help="which")
    simple.set_defaults(run=_run, spec=None, djfile=None)


def _add_positional(parser: Parser) -> None:
    parser.add_argument("references", type=Path, metavar="GT_FOLDER", help="folder of references")
    parser.add_argument("labels", type=Path, metavar="PRED_FOLDER", help="folder of label maps")
    _add_common(parser)


def _add_common(parser: Parser) -> None:
    parser.add_argument(
        "-il", dest="ignore_label", type=int, metavar="VALUE", help="voxels of the reference to leave out"
    )
    parser.add_argument("-pfile", type=Path, metavar="FILE", help="plans.json: taken, and of no effect")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="where the three files go (default: the folder of label maps); a name in .json is where summary.json goes",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance_mm", type=_tolerance, nargs="+", metavar="MM", help="of the normalised surface Dice (default: 1 3)"
    )
    parser.add_argument(
        "-np", dest="threads", type=_count, metavar="N", help="threads (default: the processors, up to 8)"
    )
    parser.add_argument("--chill", action="store_true", help="references without a label map are no failure")
    parser.add_argument("--json", action="store_true", help="print evaluation.json in place of tables")
    add_verbosity(parser)


def _run(args: argparse.Namespace) -> int:
    from ctseg.evaluate.evaluation import EVALUATION_NAME
    from ctseg.evaluate.folder import TOLERANCES_MM, evaluate_folder
    from ctseg.evaluate.summary import write_evaluation
    from ctseg.files.folders import require_folder, require_writable

    output, summary = args.output or args.labels, None
    if output.suffix == ".json":
        output, summary = output.parent, output
    for folder in (args.labels, args.references):
        require_folder(folder, of="label maps")
    compared = _compared(args)
    require_writable(output)
    with _bar(args.quiet) as case_done:
        evaluation = evaluate_folder(
            args.labels,
            args.references,
            compared,
            tolerances_mm=args.tolerance_mm or TOLERANCES_MM,
            threads=args.threads,
            case_done=case_done,
        )
    write_evaluation(evaluation, output, summary=summary)
    if args.json:
        print(evaluation.to_json())
    else:
        print(without_controls("\n".join(_lines(evaluation, output / EVALUATION_NAME))))
    return SOME_FAILED if evaluation.refused or (evaluation.missing and not args.chill) else DONE


def _compared(args: argparse.Namespace) -> "ComparedLabels | None":
    from ctseg.evaluate.compared_labels import (
        labels_named_beside,
        labels_named_in,
        labels_of_values,
        with_ignore_label,
    )

    given = [path for path in (args.spec, args.djfile) if path is not None]
    if len(given) + (args.label_values is not None) > 1:
        raise SetupError("labels are named twice: give one of -m, -djfile and -l")
    if args.label_values is not None:
        return labels_of_values(args.label_values, args.ignore_label)
    named = labels_named_in(given[0]) if given else labels_named_beside(args.labels, args.references)
    if args.ignore_label is None:
        return named
    if named is None:
        raise SetupError("-il needs to know the labels: give -m, -djfile or -l")
    return with_ignore_label(named, args.ignore_label)


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield what is told of each case that ends; on a terminal, a line says how many there are."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} cases compared"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("cases", total=None)
        yield lambda _: progress.advance(task)


def _lines(evaluation: "Evaluation", file: Path) -> list[str]:
    from ctseg.files.identity import printable

    lines = []
    if evaluation.cases:
        lines += [_cases_table(evaluation), "", _labels_table(evaluation), ""]
    lines += [f"{case}: no label map" for case in evaluation.missing]
    lines += [one.error for one in evaluation.refused]
    if evaluation.surplus:
        shown = ", ".join(evaluation.surplus[:_MOST_ROWS])
        more = len(evaluation.surplus) - _MOST_ROWS
        lines.append(f"no reference: {shown}{f' and {more} more' if more > 0 else ''}")
    counts = [
        f"{len(evaluation.cases)} compared",
        *([f"{len(evaluation.missing)} without a label map"] if evaluation.missing else []),
        *([f"{len(evaluation.refused)} could not be compared"] if evaluation.refused else []),
        *([f"{len(evaluation.surplus)} without a reference"] if evaluation.surplus else []),
    ]
    return [*lines, f"{', '.join(counts)}: {printable(str(file))}"]


def _cases_table(evaluation: "Evaluation") -> str:
    """Return a row for each case, the worst Dice first."""
    from ctseg.evaluate.evaluation import length_in_words

    with_worst = len(evaluation.labels) > 1
    headings = ["case, worst first", "Dice"]
    headings += ["worst label", "its Dice"] if with_worst else []
    headings += [
        "HD95 mm",
        "ASSD mm",
        *(f"NSD {length_in_words(tolerance)} mm" for tolerance in evaluation.tolerances_mm),
    ]
    headings += ["ml", "reference ml"]
    ordered = sorted(evaluation.cases, key=_badness)
    rows = []
    for case in ordered[:_MOST_ROWS]:
        name, worst = min(case.labels.items(), key=lambda item: _nan_last(item[1].dice))
        row = [case.case, _number(_mean_dice(case), 4)]
        row += [name, _number(worst.dice, 4)] if with_worst else []
        rows.append([*row, *_cells(worst)])
    table = _table(headings, rows, left={0, 2} if with_worst else {0})
    more = len(ordered) - _MOST_ROWS
    return f"{table}\n… and {more} better ones" if more > 0 else table


def _labels_table(evaluation: "Evaluation") -> str:
    """Return a row for each label: means over the cases that define the number, a median where infinity may be."""
    from ctseg.evaluate.evaluation import length_in_words

    headings = ["label", "cases", "Dice, mean", "least", "HD95 mm, median"]
    headings += [f"NSD {length_in_words(tolerance)} mm, mean" for tolerance in evaluation.tolerances_mm]
    rows = []
    for name in evaluation.labels:
        there = [scores for case in evaluation.cases if not math.isnan((scores := case.labels[name]).dice)]
        dice = [scores.dice for scores in there]
        distances = [scores.hd95_mm for scores in there if not math.isnan(scores.hd95_mm)]
        row = [name, str(len(there)), _number(_mean(dice), 4), _number(min(dice, default=math.nan), 4)]
        row.append(_number(statistics.median(distances) if distances else math.nan, 2))
        row += [
            _number(_mean([scores.nsd[i] for scores in there if not math.isnan(scores.nsd[i])]), 4)
            for i in range(len(evaluation.tolerances_mm))
        ]
        rows.append(row)
    return _table(headings, rows, left={0})


def _cells(scores: "LabelScores") -> list[str]:
    nsd = [_number(share, 4) for share in scores.nsd]
    volumes = [_number(volume, 2) for volume in (scores.volume_ml, scores.reference_volume_ml)]
    return [_number(scores.hd95_mm, 2), _number(scores.assd_mm, 2), *nsd, *volumes]


def _badness(case: "EvaluatedCase") -> tuple[float, float, str]:
    distances = [scores.hd95_mm for scores in case.labels.values() if not math.isnan(scores.hd95_mm)]
    return (_nan_last(_mean_dice(case)), -max(distances, default=0.0), case.case)


def _mean_dice(case: "EvaluatedCase") -> float:
    return _mean([scores.dice for scores in case.labels.values() if not math.isnan(scores.dice)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _number(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.{decimals}f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: set[int]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ctseg.files.identity import printable

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(word)) for word in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDEST)
    with console.capture() as printed:
        console.print(table)
    return "\n".join(line.rstrip() for line in printed.get().splitlines() if line.strip())


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 or more millimetres, found {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value
