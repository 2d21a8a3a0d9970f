"""The command ``dicom``, and the flags that choose DICOM series and name their cases."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.cli.console import add_verbosity
from ctseg.cli.exit_codes import DONE, SOME_FAILED
from ctseg.cli.parser import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from ctseg.files.dicom.choosing import SeriesRules
    from ctseg.files.dicom.input import DicomOfInput, SeriesOfInput
    from ctseg.files.dicom.series import CtSeries

_HEADINGS = ("study", "series", "description", "kernel", "slices", "voxels (x, y)", "mm (x, y, z)", "case", "taken")
_WRAPPED = ("description", "taken")
_IN_BLOCKS = (("study", "series", "description"), ("slices", "voxels (x, y)", "mm (x, y, z)", "kernel"))
_WIDEST = 10_000
_LEAST_WRAPPED = 24
"""Columns of text in which a reason can still be read."""


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``dicom``."""
    dicom = commands.add_parser("dicom", help="look at DICOM series", description="Look at DICOM series.")
    kinds = dicom.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = kinds.add_parser(
        "list",
        help="say which series there are, and which of them would be segmented",
        description="List the DICOM series of a file or a folder with any names of files: the case that each would be "
        "for `ctseg predict` with the same flags, or why it would be none. Shows descriptions, which may name a "
        "patient. Exit status: 0 there are series to segment, 1 one of them is refused, or there is none, 2 there is "
        "no DICOM.",
    )
    listing.add_argument("input", type=Path, metavar="DIR", help="a DICOM file, or a folder; searched at any depth")
    listing.add_argument(
        "--recursive", action="store_true", help="at any depth too where the folder itself holds scans of other formats"
    )
    listing.add_argument("--json", action="store_true", help="print JSON, not a table")
    add_dicom(listing)
    add_verbosity(listing)
    listing.set_defaults(run=_list)


def add_dicom(parser: Parser) -> None:
    """Add the flags that choose DICOM series and name their cases."""
    group = parser.add_argument_group("DICOM", "which series of a folder are taken (all), and what cases are called")
    group.add_argument(
        "--series", nargs="+", default=[], metavar="PATTERN",
        help="those with such a description: * is any text, capitals do not matter, such as \"Thorax 1.0*\"",
    )  # fmt: skip
    group.add_argument(
        "--series_kernel", nargs="+", default=[], metavar="PATTERN", help="those with such a kernel, such as \"B3*\""
    )  # fmt: skip
    group.add_argument(
        "--series_slices", type=_slices, default=(1, None), metavar="MIN-MAX",
        help="those with so many slices: 50-, 50-400, -400 or 120",
    )  # fmt: skip
    group.add_argument(
        "--case_name_from", nargs="+", default=[], metavar="KEYWORD",
        help="name cases by DICOM keywords, such as PatientID SeriesNumber, or by `folder`, the place in the input; "
        "such names may name a patient (default: study and series number, with digests of their UIDs)",
    )  # fmt: skip


def series_rules(args: argparse.Namespace) -> "SeriesRules":
    """Return the rules that the flags say.

    Raises:
        ValueError: No number of slices fits.
    """
    from ctseg.files.dicom.choosing import SeriesRules

    least, most = args.series_slices
    return SeriesRules(tuple(args.series), tuple(args.series_kernel), least, most)


def _slices(text: str) -> tuple[int, int | None]:
    from ctseg.files.dicom.choosing import SeriesRules, slices_from_text

    try:
        least, most = slices_from_text(text)
        SeriesRules(least_slices=least, most_slices=most)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return least, most


def _list(args: argparse.Namespace) -> int:
    from ctseg.files.scans import find_dicom
    from ctseg.predict.ownership import OwnFiles

    found = find_dicom(
        args.input, recursive=args.recursive, own=OwnFiles, series=series_rules(args),
        case_name_from=tuple(args.case_name_from),
    )  # fmt: skip
    rows = [_row(item, found) for item in found.series]
    if args.json:
        print(json.dumps({"series": rows, "left_out": [_left_out(item) for item in found.left_out]}, indent=1))
    else:
        _print_table(rows, found)
    taken = [row for row in rows if row["taken"]]
    refused = [row for row in rows if row["problem"] is not None and row["not_chosen"] is None]
    return DONE if taken and not refused else SOME_FAILED


def _row(item: "SeriesOfInput", found: "DicomOfInput") -> dict[str, Any]:
    from ctseg.files.dicom.series import uid_digest

    series = item.series
    problem = series.problem
    same = Counter(other.name.casefold() for other in found.chosen)[item.name.casefold()]
    if problem is None and item.not_chosen is None and same > 1:
        problem = f"{same} series would have the case's name: make names of more keywords"
    has_grid = series.problem is None
    return {
        "study": uid_digest(series.study_uid),
        "series": uid_digest(series.series_uid),
        "number": series.series_number,
        "description": series.description,
        "kernel": series.kernel,
        "slices": len(series.slices),
        "voxels_xy": [series.columns, series.rows] if has_grid else None,
        "spacing_mm_xyz": [round(size, 4) for size in series.geometry.spacing_mm[::-1]] if has_grid else None,
        "case": item.name,
        "taken": problem is None and item.not_chosen is None,
        "not_chosen": item.not_chosen,
        "problem": problem,
        "warnings": [*series.warnings, *_without_objects(series)],
    }


def _without_objects(series: "CtSeries") -> list[str]:
    return [] if series.frame_of_reference_uid else ["it has no FrameOfReferenceUID: label maps alone can be written"]


def _left_out(item: Any) -> dict[str, Any]:
    from ctseg.files.dicom.series import uid_digest

    return {
        "what": item.what,
        "study": uid_digest(item.study_uid) if item.study_uid else None,
        "series": uid_digest(item.series_uid) if item.series_uid else None,
        "number": item.series_number,
        "description": item.description,
        "files": item.files,
    }


def _print_table(rows: list[dict[str, Any]], found: "DicomOfInput") -> None:
    """Print a line for each series, in a narrow terminal a few; as wide as it has to be where none looks on."""
    from rich.console import Console

    from ctseg.files.identity import printable

    cells = [_cells(row) for row in rows] + [_cells_left_out(_left_out(item)) for item in found.left_out]
    cells = [tuple(map(printable, line)) for line in cells]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDEST)
    with console.capture() as printed:
        if _narrowest(cells) <= console.width:
            _print_columns(cells, console)
        else:
            _print_blocks(cells, console)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))
    told = [f"{sum(row['taken'] for row in rows)} of {len(rows)} series would be segmented", found.not_chosen_told]
    print("; ".join(filter(None, [*told, f"left out: {found.left_out_told}" if found.left_out else ""])))


def _narrowest(cells: list[tuple[str, ...]]) -> int:
    """Return how many columns of a terminal the table takes at least."""
    widest = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    return sum(
        2 + (min(width, _LEAST_WRAPPED) if heading in _WRAPPED else width)
        for heading, width in zip(_HEADINGS, widest, strict=True)
    )


def _print_columns(cells: list[tuple[str, ...]], console: "Console") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, overflow="fold", no_wrap=heading not in _WRAPPED)
    for line in cells:
        table.add_row(*map(Text, line))
    console.print(table)


def _print_blocks(cells: list[tuple[str, ...]], console: "Console") -> None:
    """Print a few lines for each series, the last with its case and why it is none."""
    from rich.padding import Padding
    from rich.text import Text

    for line in cells:
        said = dict(zip(_HEADINGS, line, strict=True))
        blocks = ["   ".join(f"{name} {said[name]}" for name in names if said[name]) for names in _IN_BLOCKS]
        blocks.append(": ".join(filter(None, (said["case"], said["taken"]))))
        for number, text in enumerate(filter(None, blocks)):
            console.print(Padding(Text(text, overflow="fold"), (0, 0, 0, 4 if number else 0)))
    console.print()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    has_grid = row["voxels_xy"] is not None
    if row["not_chosen"] is not None:
        taken = f"no: {row['not_chosen']} does not fit"
    else:
        taken = f"refused: {row['problem']}" if row["problem"] is not None else "; ".join(("yes", *row["warnings"]))
    return (
        row["study"],
        f"{'' if row['number'] is None else row['number']} ({row['series']})".strip(),
        row["description"],
        row["kernel"],
        str(row["slices"]),
        " x ".join(map(str, row["voxels_xy"])) if has_grid else "",
        " x ".join(f"{size:g}" for size in row["spacing_mm_xyz"]) if has_grid else "",
        row["case"] if row["not_chosen"] is None else "",
        taken,
    )


def _cells_left_out(row: dict[str, Any]) -> tuple[str, ...]:
    number = "" if row["number"] is None else str(row["number"])
    series = f"{number} ({row['series']})" if row["series"] else number
    files = f"{row['files']} file{'s' if row['files'] != 1 else ''}"
    return (row["study"] or "", series.strip(), row["description"], "", "", "", "", "", f"no: {row['what']}, {files}")
