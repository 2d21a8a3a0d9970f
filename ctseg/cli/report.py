"""The command ``report``: what became of a folder, without a model."""

import argparse
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ctseg.cli.console import add_verbosity
from ctseg.cli.dicom import add_dicom, series_rules
from ctseg.cli.exit_codes import DONE, SOME_FAILED
from ctseg.cli.parser import Parser
from ctseg.errors import InputError

if TYPE_CHECKING:
    from ctseg.evaluate.evaluation import Evaluation
    from ctseg.predict.report import Report
    from ctseg.predict.review import Review

logger = logging.getLogger(__name__)


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``report``."""
    report = commands.add_parser(
        "report",
        help="say what became of a folder of cases",
        description="Write report.json and report.csv anew from what became of every case, whoever segmented it, and "
        "print what is not done, a line a case. With -i, cases of the input that nobody has ended are told too. Needs "
        "no model and no server. With --html, write pages to look at as well: OUTPUT/report/index.html, and a page "
        "with a viewer for each case, whose scan is looked for in -i: without -i pages have no pictures. They take "
        "the place of those of an earlier call as a whole, or leave them. Pages hold patient data. Exit status: 0 all "
        "done, 1 something is not, 2 wrong use or setup, such as a folder that is none of ctseg's, 3 the disk is full "
        "or went away, 130 interrupted, 143 terminated.",
    )
    report.add_argument("-o", "--output", type=Path, required=True, help="the output folder of ctseg predict")
    report.add_argument("-i", "--input", type=Path, help="the scan or folder of scans that should be done")
    report.add_argument("--recursive", action="store_true", help="scans in sub-folders of the input too")
    report.add_argument(
        "--channels", type=_channels, help="channels of a case (default: those of the model that worked there)"
    )
    pages = report.add_argument_group("pages", "for people to look at; they open from any disk, without a network")
    pages.add_argument("--html", action="store_true", help="write OUTPUT/report/index.html and a page for each case")
    pages.add_argument(
        "-r", "--references", type=Path,
        help="folder of label maps to compare with: their outlines and scores are shown (default: the scores in "
        "OUTPUT/evaluation.json, if ctseg evaluate has written one)",
    )  # fmt: skip
    pages.add_argument(
        "--single", metavar="CASE", help="write one page that holds this case and its viewer, to send or keep by itself"
    )
    add_dicom(report)
    add_verbosity(report)
    report.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ctseg.files.identity import printable
    from ctseg.predict.report import REPORT_NAME
    from ctseg.predict.review import review_folder

    if args.references is not None and not (args.html or args.single is not None):
        args.parser.error("-r is of pages: add --html, or compare with ctseg evaluate")
    review = review_folder(
        args.output,
        args.input,
        channels=args.channels,
        recursive=args.recursive,
        series=series_rules(args),
        case_name_from=tuple(args.case_name_from),
    )
    for case, why in review.left:
        print(printable(f"{case}: {why}"))
    for case, why in review.kept:
        print(printable(f"{case}: {why}"))
    for run in review.working:
        print(f"{run} still works in {args.output}")
    if review.different_lists is not None:
        print(review.different_lists)
    if review.left:
        print(f"{len(review.left)} of {review.cases} cases are not done")
    print(f"{counted(review.report)}: {args.output / REPORT_NAME}")
    if args.html or args.single is not None:
        _write_pages(args, review)
    return SOME_FAILED if review.left or review.different_lists else DONE


def _write_pages(args: argparse.Namespace, review: "Review") -> None:
    """Write the pages of a folder, and say where they are and what they could not show."""
    from ctseg.evaluate.pages.run import write_run_pages
    from ctseg.files.identity import printable

    written = write_run_pages(
        args.output,
        review.report,
        left=review.left,
        cases=None if args.input is None else review.found,
        evaluation=_evaluation(args),
        references=args.references,
        single=args.single,
        case_done=lambda case: logger.info("%s: %s", case.name, "its page is written" if case.page else case.status),
    )
    without = written.without
    if args.input is None:
        print("the pages show no scan: name the folder of scans with -i")
        without = ()
    if written.removed:
        cases = "1 case" if written.removed == 1 else f"{written.removed} cases"
        print(f"{cases} had a page of an earlier call, which is removed: there is nothing to show on it now")
    reasons = Counter(why for _, why in without)
    for case, why in without:
        if reasons[why] == 1:
            print(printable(f"{case}: {why}"))
    for why, count in reasons.items():
        if count > 1:
            print(f"{count} cases: {why}")
    print(f"page, with patient data: {written.first.absolute().as_uri()}")


def _evaluation(args: argparse.Namespace) -> "Evaluation | None":
    """Return the scores that pages show: against the references, else those that stand in the folder."""
    from ctseg.evaluate.evaluation import EVALUATION_NAME, read_evaluation
    from ctseg.evaluate.folder import evaluate_folder

    path = args.output / EVALUATION_NAME
    try:
        earlier = read_evaluation(path) if path.exists() else None
    except InputError as error:
        logger.warning("%s: its scores are not shown", error)
        earlier = None
    if args.references is None:
        return earlier
    cases = None if args.single is None else {args.single}
    return evaluate_folder(args.output, args.references, earlier=earlier, cases=cases)


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
