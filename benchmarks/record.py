"""What has been measured so far; written after every step, so that nothing is lost by what comes later."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.budgets import budgets_of
from benchmarks.page import page_of
from benchmarks.results import (
    JSON_NAME,
    PAGE_NAME,
    BenchmarkResult,
    DicomReading,
    EndToEnd,
    Floor,
    Memory,
    Micro,
    Problem,
    StartUp,
    Trace,
)
from ctseg.errors import CtsegError, OutputError
from ctseg.files.atomic import write_text

log = logging.getLogger(__name__)

Row = TypeVar("Row")


class Record:
    """Takes what the steps measured, and what became of those that did not.

    Args:
        output: Folder for ``benchmark.json`` and ``benchmark.md``; made if missing.
        opening: The result before anything is measured.
        minutes: No step starts later; None: no limit.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, output: Path, opening: BenchmarkResult, minutes: float | None) -> None:
        self.output = output
        self.startup: StartUp | None = None
        self.end_to_end: list[EndToEnd] = []
        self.floor: list[Floor] = []
        self.traces: list[Trace] = []
        self.micro: list[Micro] = []
        self.memory: list[Memory] = []
        self.dicom: list[DicomReading] = []
        self._problems: list[Problem] = []
        self._opening = opening
        self._minutes = minutes
        self._began = time.monotonic()
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{output}: cannot be made: {error.strerror or error}") from error

    def step(self, name: str, measure: Callable[[], Row], keep: Callable[[Row], object]) -> None:
        """Measure something and keep it; a failure is named in the result, and the next step goes on.

        Args:
            name: Of the step, for the page and the log.
            measure: Runs the step.
            keep: Takes what it measured.

        Raises:
            OutputError: The results cannot be written.
        """
        minutes = (time.monotonic() - self._began) / 60
        if self._minutes is not None and minutes > self._minutes:
            self.leave_out(name, f"{self._minutes:g} minutes were over")
            return
        log.info("[%5.1f min] %s", minutes, name)
        try:
            keep(measure())
        except CtsegError as error:
            log.error("  FAILED: %s", error)
            self._problems.append(Problem(step=name, message=f"{type(error).__name__}: {error}", is_failure=True))
        self.write()

    def leave_out(self, step: str, reason: str) -> None:
        """Say in the result why something is missing that nobody tried."""
        self._problems.append(Problem(step=step, message=f"left out: {reason}", is_failure=False))

    def write(self) -> BenchmarkResult:
        """Write both files.

        Raises:
            OutputError: They cannot be written.
        """
        result = self._opening.model_copy(
            update={
                "seconds": time.monotonic() - self._began,
                "startup": self.startup,
                "end_to_end": tuple(self.end_to_end),
                "floor": tuple(self.floor),
                "traces": tuple(self.traces),
                "micro": tuple(self.micro),
                "memory": tuple(self.memory),
                "dicom": tuple(self.dicom),
                "budgets": budgets_of(
                    self.startup, self.end_to_end, self.floor, self.micro, self.memory, dicom=self.dicom
                ),
                "problems": tuple(self._problems),
            }
        )
        write_text(self.output / JSON_NAME, result.model_dump_json(indent=2) + "\n")
        write_text(self.output / PAGE_NAME, page_of(result))
        return result
