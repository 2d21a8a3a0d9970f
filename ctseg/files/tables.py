"""Tables in CSV, for spreadsheets: names from outside are text in them, never a formula."""

import csv
import io
from collections.abc import Iterable, Sequence

from ctseg.files.identity import printable

_BEGINNINGS = tuple("=+-@＝＋－＠")
"""What spreadsheets take for the beginning of a formula, with and without quotes around the cell."""


def csv_table(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV.

    Args:
        rows: Cells; numbers are written as they are, a text on one line, and behind a single quote where a spreadsheet
            would take it for a formula.

    Source:
        OWASP, "CSV Injection", and its Application Security Verification Standard, 1.2.10.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)  # a tab or a line's end at the beginning hides one
    return f"'{text}" if text.startswith(_BEGINNINGS) else text
