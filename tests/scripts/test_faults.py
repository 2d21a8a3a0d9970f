"""The table of faults: what is read from the page, and what is said of each row."""

import pytest

from scripts.faults import PAGE, SLOW, Row, rows_of, verdict_of

ONE, OTHER = "tests/a.py::test_one", "tests/faults/b.py::test_other"


def test_rows_are_read_with_their_tests() -> None:
    page = (
        f"| Fault | What comes | Test |\n|---|---|---|\n| kill -9 | nothing lost | `{ONE}`, `{OTHER}` |\n\nText | x.\n"
    )
    assert list(rows_of(page)) == [Row("kill -9", (ONE, OTHER))]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({OTHER: {"passed"}}, "passed"),
        ({}, "make test"),
        ({ONE: {"failed", "passed"}, OTHER: {"passed"}}, "failed"),
        ({OTHER: {"not run"}}, "not run"),
    ],
)
def test_the_worst_test_of_a_row_decides(found: dict[str, set[str]], verdict: str) -> None:
    assert verdict_of(Row("kill -9", (ONE, OTHER)), found) == verdict


def test_every_fault_has_a_test_and_there_are_a_hundred() -> None:
    rows = list(rows_of(PAGE.read_text(encoding="utf-8")))
    assert [row.fault for row in rows if not row.tests] == []
    assert len(rows) >= 100
    assert any(test.startswith(SLOW) for row in rows for test in row.tests)
