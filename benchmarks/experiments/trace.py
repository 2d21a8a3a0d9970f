"""The trace: a folder once more, with a clock around the client's stages and around the model in the server."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.experiments.commands import ReadyNetwork
from benchmarks.experiments.traced_folder import TraceJob, read_spans
from benchmarks.models import sleeper_name, write_recorder, write_sleeper
from benchmarks.picture import draw_traces
from benchmarks.record import Record
from benchmarks.results import TRACE_NAME, Span, Trace
from ctseg.predict.report import REPORT_NAME, Report

log = logging.getLogger(__name__)

COPIES = 2
"""How often each scan is in the folder."""


def measure_traces(bench: Bench, record: Record, ready: Sequence[ReadyNetwork]) -> None:
    """Trace a model that sleeps and the networks themselves, and draw what was found."""
    sleep_ms = bench.sizes.trace_sleep_ms
    if not ready or sleep_ms is None:
        return

    def keep(trace: Trace) -> None:
        record.traces.append(trace)
        draw_traces(record.traces, record.output / TRACE_NAME)

    most_windows = ready[-1].network.name  # the last has the smallest patch
    record.step(f"trace, {sleep_ms:g} ms a window", partial(_sleeping_trace, bench, most_windows, sleep_ms), keep)
    for network in ready:
        name = network.network.name
        record.step(f"trace, {name}", partial(_trace, bench, name, None), keep)


def _sleeping_trace(bench: Bench, like: str, sleep_ms: float) -> Trace:
    model = sleeper_name(like, sleep_ms)
    if not (bench.repository / model).is_dir():  # that of the floor
        write_sleeper(bench.repository, like, sleep_ms)
    return _trace(bench, model, sleep_ms)


def _trace(bench: Bench, like: str, sleep_ms: float | None) -> Trace:
    """Segment a folder by a model that writes down when it computes."""
    server_log = bench.root / f"{like}.log"
    output = bench.new_folder("ctseg")
    job = TraceJob(
        repository=str(bench.repository),
        model=write_recorder(bench.repository, like, server_log),
        scans=str(bench.link(bench.scans.given, copies=COPIES)),
        output=str(output),
        spans=str(bench.root / f"{like}.spans"),
    )
    measured = bench.child("benchmarks.experiments.traced_folder", job)
    report = Report.model_validate_json((output / REPORT_NAME).read_bytes())
    trace = trace_of(
        like, sleep_ms, read_spans(Path(job.spans)), read_server_log(server_log),
        windows=sum(case.windows for case in report.cases), client_cpu_s=measured.client_cpu_s,
    )  # fmt: skip
    log.info("    %s: server busy %.1f%% of %.2f s", like, 100 * trace.busy_share, trace.folder_s)
    return trace


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
