"""What a person sees of the stages of a long command: bars on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ctseg.stages import Stage, watched

FIRST_LINE_S = 10.0
"""A command that is over sooner has no line."""
MOST_BETWEEN_S = 60.0
"""Between two lines; they come ever less often, up to this."""


@contextlib.contextmanager
def shown_stages() -> Iterator[Callable[[str], None]]:
    """Show on standard error which stages run in the block, with the time left where that can be told.

    Yields:
        What prints a line of the command on standard output, above the bars.
    """
    if sys.stderr.isatty():
        with TerminalStages() as bars, watched(bars):
            yield bars.tell
        return
    with LineStages() as lines, watched(lines):
        yield _print


def _print(line: str) -> None:
    print(line, flush=True)


class TerminalStages:
    """A line with bar, time and time left for each stage that runs; those that are over go."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            redirect_stdout=False,  # what goes to a file would go to the terminal
        )
        self._tasks: dict[int, object] = {}

    def __enter__(self) -> "TerminalStages":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, line: str) -> None:
        """Print a line above the bars, or where standard output goes."""
        if sys.stdout.isatty():
            self._bars.console.print(line, soft_wrap=True, markup=False, highlight=False)
        else:
            _print(line)

    def began(self, stage: Stage) -> None:
        """See :class:`ctseg.stages.Watcher`."""
        self._tasks[id(stage)] = self._bars.add_task(stage.what, total=stage.total, count=count_of(stage))

    def advanced(self, stage: Stage) -> None:
        """See :class:`ctseg.stages.Watcher`."""
        if (task := self._tasks.get(id(stage))) is not None:
            self._bars.update(task, completed=stage.done, count=count_of(stage))  # type: ignore[arg-type]

    def ended(self, stage: Stage) -> None:
        """See :class:`ctseg.stages.Watcher`."""
        if (task := self._tasks.pop(id(stage), None)) is not None:
            self._bars.remove_task(task)  # type: ignore[arg-type]


class LineStages:
    """A line now and then of the stages that run, for logs.

    Args:
        tell: Takes a line; None writes to standard error.
        clock: Seconds that only grow.
        wait_s: Seconds between two looks at the clock; None: nobody looks but who calls :meth:`look`.
    """

    def __init__(
        self,
        tell: Callable[[str], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait_s: float | None = 1.0,
    ) -> None:
        self._tell = tell or (lambda line: print(line, file=sys.stderr, flush=True))
        self._clock, self._wait_s = clock, wait_s
        self._stages: list[Stage] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._next_s = clock() + FIRST_LINE_S
        self._pause_s = FIRST_LINE_S
        self._thread = threading.Thread(target=self._looking, name="stages", daemon=True)

    def __enter__(self) -> "LineStages":
        if self._wait_s is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def began(self, stage: Stage) -> None:
        """See :class:`ctseg.stages.Watcher`."""
        with self._lock:
            self._stages.append(stage)

    def advanced(self, stage: Stage) -> None:
        """See :class:`ctseg.stages.Watcher`."""

    def ended(self, stage: Stage) -> None:
        """See :class:`ctseg.stages.Watcher`."""
        with self._lock, contextlib.suppress(ValueError):
            self._stages.remove(stage)

    def look(self) -> None:
        """Tell what runs, if it is time to."""
        with self._lock:
            if not self._stages or self._clock() < self._next_s:
                return
            self._pause_s = min(2 * self._pause_s, MOST_BETWEEN_S)
            self._next_s = self._clock() + self._pause_s
            line = "  " + " > ".join(map(state_of, self._stages))
        self._tell(line)

    def _looking(self) -> None:
        while not self._ended.wait(self._wait_s):
            with contextlib.suppress(OSError, ValueError):  # a terminal or pipe that went away
                self.look()


def state_of(stage: Stage) -> str:
    """Return a stage in words: ``PyTorch on the scan: 12 of 80 windows, 1:05, 5:40 left``."""
    parts = [part for part in (count_of(stage), clock_time(stage.elapsed_s)) if part]
    if stage.left_s is not None:
        parts.append(f"{clock_time(stage.left_s)} left")
    return f"{stage.what}: {', '.join(parts)}"


def count_of(stage: Stage) -> str:
    """Return how much of a stage is done: ``12 of 80 windows``; empty where that is not counted."""
    if stage.total is None:
        return ""
    return f"{stage.done} of {stage.total} {stage.unit}".rstrip()


def clock_time(seconds: float) -> str:
    """Return seconds as ``1:05``, or ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
