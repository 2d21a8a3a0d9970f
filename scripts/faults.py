"""Run the slow tests of faults, and print the table of docs/reliability.md with what came of each row.

    .venv/bin/python -m scripts.faults          # those of tests/faults, 10 idle minutes
    .venv/bin/python -m scripts.faults --all    # every test that the table names

Exit status: 0 where all that ran passed; 1 where a test failed, or a row names none.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
SLOW = "tests/faults"
_TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>test_\w+)`")
_WORST_FIRST = ("failed", "not run", "passed")


@dataclass(frozen=True)
class Row:
    """A fault that was tried.

    Attributes:
        fault: What was done.
        tests: The tests that hold what comes, ``file::name``.
    """

    fault: str
    tests: tuple[str, ...]


@dataclass
class Verdicts:
    """A plugin of pytest that notes what came of each test; those of one function together."""

    found: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a phase of a test."""
        test = report.nodeid.split("[")[0]
        if report.skipped:
            self.found[test].add("not run")
        elif report.failed:
            self.found[test].add("failed")
        elif report.when == "call":
            self.found[test].add("passed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run tests, print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="run every test that the table names, not only the slow")
    everything = parser.parse_args(argv).all
    rows = list(rows_of(PAGE.read_text(encoding="utf-8")))
    tests = sorted({test for row in rows for test in row.tests} | {SLOW}) if everything else [SLOW]
    verdicts = Verdicts()
    status = pytest.main(["-q", "--rootdir", str(ROOT), *tests], plugins=[verdicts])
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(rows, verdicts.found))
    return 1 if status != pytest.ExitCode.OK or not all(row.tests for row in rows) else 0


def rows_of(page: str) -> Iterator[Row]:
    """Yield the rows of all tables of the page, but their heads."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 3 and cells[0] != "Fault":
            yield Row(cells[0], tuple(f"{found['file']}::{found['name']}" for found in _TEST.finditer(cells[2])))


def verdict_of(row: Row, found: Mapping[str, set[str]]) -> str:
    """Return what came of a row's tests; one that was not asked for is held by ``make test``."""
    words = {word for test in row.tests for word in found.get(test, {"make test"})}
    return next((word for word in _WORST_FIRST if word in words), "make test")


def table_of(rows: Sequence[Row], found: Mapping[str, set[str]]) -> Table:
    """Return the table that is printed."""
    table = Table("", "fault", "held by", "", title=f"{len(rows)} faults")
    for number, row in enumerate(rows, 1):
        names = "\n".join(test.split("::")[1] for test in row.tests)
        table.add_row(str(number), row.fault, names or "no test", verdict_of(row, found))
    return table


if __name__ == "__main__":
    sys.exit(main())
