"""The command ``report``: what became of a folder, without a model."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.console import add_verbosity
from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.exit_codes import DONE, SOME_FAILED
from ctseg.cli.parser import Parser

if TYPE_CHECKING:
    from ctseg.predict.report import Report


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``report``."""
    report = commands.add_parser(
        "report",
        help="say what became of a folder of cases",
        description="Write report.json and report.csv anew from what became of every case, whoever segmented it, and "
        "print what is not done, a line a case. With -i, cases of the input that nobody has ended are told too. Needs "
        "no model and no server. Exit status: 0 all done, 1 something is not, 2 the folder is none of ctseg's.",
    )
    report.add_argument("-o", "--output", type=Path, required=True, help="the output folder of ctseg predict")
    report.add_argument("-i", "--input", type=Path, help="the scan or folder of scans that should be done")
    report.add_argument("--recursive", action="store_true", help="scans in sub-folders of the input too")
    report.add_argument(
        "--channels", type=_channels, help="channels of a case (default: those of the model that worked there)"
    )
    add_dicom(report)
    add_verbosity(report)
    report.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ctseg.predict.report import REPORT_NAME
    from ctseg.predict.review import review_folder

    review = review_folder(
        args.output,
        args.input,
        channels=args.channels,
        recursive=args.recursive,
        series=series_rules(args),
        case_name_from=tuple(args.case_name_from),
    )
    for case, why in review.left:
        print(f"{case}: {why}")
    for case, why in review.kept:
        print(f"{case}: {why}")
    for run in review.working:
        print(f"{run} still works in {args.output}")
    if review.different_lists is not None:
        print(review.different_lists)
    if review.left:
        print(f"{len(review.left)} of {review.cases} cases are not done")
    print(f"{counted(review.report)}: {args.output / REPORT_NAME}")
    return SOME_FAILED if review.left or review.different_lists else DONE


def counted(report: "Report", *, skipped: bool = False) -> str:
    """Return how many cases ended in which way, in words; a run has skipped some, a folder has none of these."""
    counts = Counter(case.status for case in report.cases)
    words = [f"{counts['ok']} done", *([f"{counts['skipped']} skipped"] if skipped else [])]
    words += [f"{counts['failed']} failed", *([f"{counts['kept']} kept"] if counts["kept"] else [])]
    failed = Counter(failed.format for case in report.cases for failed in case.failed_formats)
    words += [f"{count} without {name}" for name, count in sorted(failed.items())]
    left = Counter(case.reason for case in report.not_done)
    words += [f"{count} not done ({reason})" for reason, count in sorted(left.items())]
    return ", ".join(words)


def _channels(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value
