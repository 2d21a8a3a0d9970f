"""What the proof says: rows of what was found beside what was expected, as a document and as a table."""

import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from ctseg.documents import Document

Verdict = Literal["ok", "failed", "not found", "not run"]
"""``not found``: the machine lacks it. ``not run``: nobody tried, and the row says why."""

JSON_NAME = "gpu.json"
PAGE_NAME = "gpu.md"
_LONGEST_CELL = 400
_ROOT = Path(__file__).parents[2]


class Row(Document):
    """One claim and what became of it.

    Attributes:
        section: Part of the proof.
        what: The claim, or what was measured.
        found: What was seen.
        expected: What it has to be; empty where nothing was promised.
        verdict: What that comes to.
        figures: The numbers in ``found``, for programs; their units end their names.
    """

    section: str
    what: str
    found: str
    expected: str = ""
    verdict: Verdict
    figures: dict[str, float] = Field(default_factory=dict)


class Host(Document):
    """Where it ran.

    Attributes:
        system: Operating system.
        processor: Name of the CPU.
        cpus: Usable ones.
        memory_gb: In 10^9 bytes.
        python: Version.
        gpus: Names, with the driver and the CUDA version that it supports.
        versions: Of the packages that the figures depend on.
        gpus_problem: Why nobody knows the GPUs; empty where the driver was asked.
    """

    system: str
    processor: str
    cpus: int
    memory_gb: float
    python: str
    gpus: tuple[str, ...]
    versions: dict[str, str]
    gpus_problem: str = ""


class Proof(Document):
    """The whole of ``gpu.json``.

    Attributes:
        schema_version: Of this document.
        started: UTC.
        seconds: Until this was written.
        rehearsal: On the CPU with small sizes: no figure counts.
        host: Where it ran.
        rows: In the order in which they were found.
    """

    schema_version: Literal[1] = 1
    started: str
    seconds: float
    rehearsal: bool
    host: Host
    rows: tuple[Row, ...]

    def count(self, verdict: Verdict) -> int:
        """Return how many rows have a verdict."""
        return sum(row.verdict == verdict for row in self.rows)

    def to_markdown(self) -> str:
        """Return the table for people."""
        host = self.host
        nothing = f"not known: {host.gpus_problem}" if host.gpus_problem else "none"
        gpus = "; ".join(host.gpus) or nothing
        lines = [
            f"# {'Rehearsal of the GPU proof, on a CPU' if self.rehearsal else 'GPU proof'}, {self.started[:10]}",
            "",
            f"{self.count('ok')} ok, {self.count('failed')} failed, {self.count('not found')} not found, "
            f"{self.count('not run')} not run; {self.seconds:.0f} s.",
            "",
            f"GPU: {gpus}. {host.processor}, {host.cpus} CPUs, {host.memory_gb:.0f} GB, "
            f"{host.system}, Python {host.python}.",
            "",
            ", ".join(f"{name} {version}" for name, version in host.versions.items()),
        ]
        if self.rehearsal:
            lines += [
                "",
                "**A rehearsal runs the same code at small sizes without a GPU: none of its figures counts.**",
            ]
        for section in dict.fromkeys(row.section for row in self.rows):
            lines += ["", f"## {section}", "", "| what | found | expected | verdict |", "|---|---|---|---|"]
            lines += [_line(row) for row in self.rows if row.section == section]
        return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    mark = f"**{row.verdict}**" if row.verdict == "failed" else row.verdict
    # errors end with what matters
    found = _cell(row.found, keep_end=row.verdict == "failed")
    return f"| {_cell(row.what)} | {found} | {_cell(row.expected)} | {mark} |"


def _cell(text: str, *, keep_end: bool = False) -> str:
    """Return text as one cell, shortened if it is long."""
    flat = " ".join(text.replace("|", "\\|").split())
    if len(flat) <= _LONGEST_CELL:
        return flat
    return f"… {flat[-_LONGEST_CELL:]}" if keep_end else f"{flat[:_LONGEST_CELL]} …"


class Teller:
    """Takes the rows of one section, and writes each to a file at once, so that what dies later loses none.

    Args:
        section: Name of the section.
        file: Takes one JSON document a line.

    Attributes:
        section: Name of the section.
        file: Where the rows are.
    """

    def __init__(self, section: str, file: Path) -> None:
        self.section = section
        self.file = file

    def row(self, verdict: Verdict, what: str, found: str, expected: str = "", **figures: float) -> None:
        """Tell one row, without the machine's paths; figures that are no numbers are said, not kept."""
        unusable = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
        row = Row(
            section=self.section,
            what=without_machine_paths(what),
            found=without_machine_paths("; ".join([found, *unusable])),
            expected=without_machine_paths(expected),
            verdict=verdict,
            figures={name: value for name, value in figures.items() if math.isfinite(value)},
        )
        with self.file.open("a", encoding="utf-8") as file:
            file.write(row.model_dump_json() + "\n")
        print(f"  {verdict:9}  {what}: {found}", flush=True)

    def ok(self, what: str, found: str, expected: str = "", **figures: float) -> None:
        """Tell what is as it should be, or what was measured without a promise."""
        self.row("ok", what, found, expected, **figures)

    def judge(self, what: str, holds: bool, found: str, expected: str, **figures: float) -> None:
        """Tell whether something is as it should be."""
        self.row("ok" if holds else "failed", what, found, expected, **figures)

    def not_found(self, what: str, found: str) -> None:
        """Tell what this machine lacks."""
        self.row("not found", what, found)

    def not_run(self, what: str, why: str) -> None:
        """Tell what nobody tried."""
        self.row("not run", what, why)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn any exception of the ``with`` block into a failed row; the section goes on."""
        try:
            yield
        except Exception as error:
            self.row("failed", what, f"{type(error).__name__}: {error}", "no error")


def without_machine_paths(text: str) -> str:
    """Return text in which words stand for this machine's folders, such as ``REPOSITORY`` for the repository's."""
    words = {
        Path(sys.prefix): "ENVIRONMENT",
        _ROOT: "REPOSITORY",
        Path.home(): "HOME",
        Path(tempfile.gettempdir()): "TEMP",
    }
    for folder, word in sorted(words.items(), key=lambda item: -len(str(item[0]))):
        if len(folder.parts) > 1:
            text = re.sub(rf"(?<![\w.-]){re.escape(str(folder))}(?![\w-])", word, text)
    return text


def read_rows(file: Path) -> list[Row]:
    """Return the rows that a section told; the last line may be cut off where it was killed."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            continue
    return rows
