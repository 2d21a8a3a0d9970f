"""Tables in CSV: what a spreadsheet would take for a formula is text."""

import csv

import pytest

from ctseg.files.tables import csv_table


@pytest.mark.parametrize("begins", [*"=+-@", *"\uff1d\uff0b\uff0d\uff20"])
def test_name_that_begins_as_a_formula_does_is_text(begins: str) -> None:
    name = f"{begins}cmd|' /C calc'!A0"
    ((cell, other),) = csv.reader([csv_table([[name, f"a{name}"]])])
    assert cell == f"'{name}"
    assert other == f"a{name}"


def test_text_is_on_one_line_and_hides_no_formula_behind_a_control() -> None:
    table = csv_table([[f"{begins}=1+1" for begins in "\t\r\n\0"]])
    assert table == "\\t=1+1,\\r=1+1,\\n=1+1,\\x00=1+1\n"


def test_numbers_and_other_texts_are_as_they_are() -> None:
    rows = [["case", "it's", ""], [-1.5, float("nan"), 3], ['a "b", c', True, "'x"]]
    assert csv_table(rows) == 'case,it\'s,\n-1.5,nan,3\n"a ""b"", c",True,\'x\n'
