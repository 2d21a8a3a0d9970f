"""What a person sees while cases are segmented: a bar on a terminal, log lines elsewhere; and where time goes."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

from ctseg.predict.outcomes import Outcome, StageSeconds

Stage = Literal["read", "prepare", "network", "restore", "write"]
"""A case reads, prepares, waits for the network and restores what came in turns, and writes."""

logger = logging.getLogger(__name__)


class Progress:
    """Cases and windows done, with the time left; silent by itself.

    :class:`TerminalProgress` draws it. Every method may be called from any thread.
    """

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""

    def windows_planned(self, count: int) -> None:
        """A case turned out to have so many windows."""

    def windows_done(self, count: int) -> None:
        """So many more windows came back."""

    def stage_began(self, case: str, stage: Stage) -> None:
        """A case entered a stage, on the thread that calls; ``network`` and ``restore`` alternate many times."""

    def stage_ended(self, case: str, stage: Stage) -> None:
        """The case left the stage, by an error too."""

    def case_done(self, outcome: Outcome) -> None:
        """A case ended, one way or another."""
        if outcome.status == "ok":
            logger.info("%s: done in %.1f s, %d windows", outcome.case, outcome.seconds.total, outcome.windows)
        elif outcome.status == "skipped":
            logger.info("%s: skipped, its label map is there", outcome.case)
        elif outcome.status == "kept":
            logger.warning("%s: kept: %s", outcome.case, "; ".join(outcome.warnings))
        elif outcome.error is not None:
            logger.error("%s: %s", outcome.error.type, outcome.error.message)
        for failed in outcome.failed_formats:
            if not failed.foreseen:  # else it was told before the network
                logger.error("%s: %s was not written: %s", outcome.case, failed.format, failed.error.message)


class TerminalProgress(Progress):
    """A progress bar on standard error.

    Args:
        cases: How many cases there are.
    """

    def __init__(self, cases: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
        )
        self._lock = threading.Lock()
        self._cases = self._bar.add_task("cases", total=cases)
        self._windows = self._bar.add_task("windows", total=0)
        self._planned = 0

    def __enter__(self) -> "TerminalProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing; the bar stays as it is."""
        self._bar.stop()

    def windows_planned(self, count: int) -> None:
        """A case turned out to have so many windows."""
        with self._lock:
            self._planned += count
            self._bar.update(self._windows, total=self._planned)

    def windows_done(self, count: int) -> None:
        """So many more windows came back."""
        self._bar.advance(self._windows, count)

    def case_done(self, outcome: Outcome) -> None:
        """A case ended; a failure is printed above the bar."""
        super().case_done(outcome)
        self._bar.advance(self._cases)


class StageClock:
    """Measures the stages of one case, and tells a :class:`Progress` of them.

    Args:
        case: Its name.
        progress: Told when a stage begins and ends.
    """

    def __init__(self, case: str = "", progress: Progress | None = None) -> None:
        self.case = case
        self.progress = progress or Progress()
        self._started = time.monotonic()
        self._seconds: dict[Stage, float] = dict.fromkeys(("read", "prepare", "network", "restore", "write"), 0.0)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count what happens inside to a stage."""
        began = time.monotonic()
        self.progress.stage_began(self.case, stage)
        try:
            yield
        finally:
            self._seconds[stage] += time.monotonic() - began
            self.progress.stage_ended(self.case, stage)

    @property
    def seconds(self) -> StageSeconds:
        """The wall-clock seconds so far, rounded to milliseconds, as the report has them."""
        return StageSeconds(
            **{stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
            total=round(time.monotonic() - self._started, 3),
        )


def progress_for(cases: int, *, quiet: bool = False) -> Progress:
    """Return a bar if standard error is a terminal and nobody asked for quiet; else log lines only."""
    if quiet or not sys.stderr.isatty():
        return Progress()
    return TerminalProgress(cases)
