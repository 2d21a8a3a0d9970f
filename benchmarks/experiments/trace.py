"""One ``ctseg predict`` that writes down when each case was in which stage.

Runs as ``python -m benchmarks.experiments.trace JOB``: the command itself, in this process, with a clock around
the functions that are its stages. The server's own times come from :mod:`benchmarks.recording_model`.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.results import Span, Trace
from ctseg.cli.main import main as ctseg
from ctseg.predict import folder as batch
from ctseg.predict import segment

COLOURS = {"read": "#7f7f7f", "prepare": "#1f77b4", "network": "#c7dcc7", "restore": "#d62728", "write": "#9467bd"}


class TraceJob(BaseModel):
    """What to run.

    Attributes:
        words: Of the command line of ctseg.
        spans: File to write the spans to, one of JSON a line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...]
    spans: str


class _Clock:
    """Collects spans; a thread works on one case at a time."""

    def __init__(self) -> None:
        self._here = threading.local()
        self.spans: list[Span] = []

    def begin(self, case: str) -> None:
        self._here.case = case

    def note(self, stage: str, began: float) -> None:
        self.spans.append(
            Span.model_validate({"row": self._here.case, "stage": stage, "begin": began, "end": time.time()})
        )

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if stage == "read":
                self.begin(Path(args[0][0]).name.removesuffix(".nii.gz").removesuffix("_0000"))
            began = time.time()
            try:
                return function(*args, **kwargs)
            finally:
                self.note(stage, began)

        return run


def main() -> int:
    """Run the job in the first argument."""
    job = TraceJob.model_validate_json(sys.argv[1])
    clock = _Clock()
    parts: Any = (batch, segment)  # their functions are replaced below, which types do not foresee
    case, story = parts
    case.read_volume = clock.timed("read", case.read_volume)
    case.write_label_map = clock.timed("write", case.write_label_map)
    story.prepare = clock.timed("prepare", story.prepare)
    story.apply_postprocessing = clock.timed("restore", story.apply_postprocessing)
    predict = story._predict

    def waiting(*args: Any) -> Iterator[Any]:
        # between two answers the case is restored; while the next is awaited, it is on the network
        began = time.time()
        for logits in predict(*args):
            clock.note("network", began)
            began = time.time()
            yield logits
            clock.note("restore", began)
            began = time.time()

    story._predict = waiting
    status = ctseg(job.words)
    Path(job.spans).write_text("".join(span.model_dump_json() + "\n" for span in clock.spans))
    return status


def read_spans(path: Path) -> list[Span]:
    """Return what :func:`main` wrote."""
    return [Span.model_validate_json(line) for line in path.read_text().splitlines()]


def read_server_log(path: Path) -> list[Span]:
    """Return what the recording model wrote."""
    pairs = [line.split() for line in path.read_text().splitlines()]
    return [Span(row="server", stage="compute", begin=float(begin), end=float(end)) for begin, end in pairs]


def busy_seconds(spans: Sequence[Span], begin: float, end: float) -> float:
    """Return how long at least one of the spans was running between two times."""
    busy, reached = 0.0, begin
    for span in sorted(spans, key=lambda span: span.begin):
        first, last = max(span.begin, reached), min(span.end, end)
        if last > first:
            busy += last - first
            reached = last
    return busy


def trace_of(
    model: str,
    sleep_ms: float | None,
    client: Sequence[Span],
    server: Sequence[Span],
    *,
    windows: int,
    client_cpu_s: float,
) -> Trace:
    """Return a trace that begins with the first case; what the server did before (its proof) is left out."""
    begin, end = min(span.begin for span in client), max(span.end for span in client)
    computed = [span for span in server if span.end > begin]
    first, last = min(span.begin for span in computed), max(span.end for span in computed)
    moved = [
        span.model_copy(update={"begin": round(span.begin - begin, 4), "end": round(span.end - begin, 4)})
        for span in (*client, *computed)
    ]
    return Trace(
        model=model,
        sleep_ms=sleep_ms,
        scans=len({span.row for span in client}),
        windows=windows,
        folder_s=end - begin,
        busy_share=busy_seconds(computed, begin, end) / (end - begin),
        busy_share_between=busy_seconds(computed, first, last) / (last - first),
        client_cpu_s=client_cpu_s,
        spans=tuple(sorted(moved, key=lambda span: (span.row == "server", span.row, span.begin))),
    )


def draw(traces: Sequence[Trace], path: Path) -> None:
    """Draw the stages of every case above the times at which the server computed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    rows = [[*dict.fromkeys(span.row for span in trace.spans)] for trace in traces]
    figure, axes = plt.subplots(
        len(traces), 1, squeeze=False, figsize=(10, 0.7 * len(traces) + 0.28 * sum(map(len, rows))),
        height_ratios=[len(names) + 1 for names in rows], layout="constrained",
    )  # fmt: skip
    for axis, trace, names in zip(axes[:, 0], traces, rows, strict=True):
        for place, name in enumerate(names):
            for stage in (*COLOURS, "compute"):
                bars = [(span.begin, span.end - span.begin) for span in trace.spans
                        if (span.row, span.stage) == (name, stage)]  # fmt: skip
                axis.broken_barh(bars, (place - 0.4, 0.8), color=COLOURS.get(stage, "#2ca02c"), linewidth=0)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(0, trace.folder_s)
        axis.tick_params(axis="x", labelsize=7)
        what = (
            "the real network, on the same CPUs" if trace.sleep_ms is None else f"sleeps {trace.sleep_ms:g} ms a window"
        )
        axis.set_title(
            f"{trace.model} ({what}): {trace.scans} scans, {trace.windows} windows, {trace.folder_s:.2f} s; "
            f"server busy {trace.busy_share:.0%}",
            fontsize=8, loc="left",
        )  # fmt: skip
    axes[-1, 0].set_xlabel("seconds since the first scan was taken up", fontsize=8)
    patches = [Patch(color=colour, label=stage) for stage, colour in COLOURS.items()]
    patches[2].set_label("network (a case waits for answers)")
    patches.append(Patch(color="#2ca02c", label="server computes"))
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
