"""``benchmark_trace.png``: when each case was in which stage, above the server's computing."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Trace
from ctseg.files.atomic import replacing

COLOURS = {"read": "#7f7f7f", "prepare": "#1f77b4", "network": "#c7dcc7", "restore": "#d62728", "write": "#9467bd"}


def draw_traces(traces: Sequence[Trace], path: Path) -> None:
    """Draw the stages of every case above the times at which the server computed.

    Args:
        traces: At least one.
        path: PNG to write.

    Raises:
        OutputError: It cannot be written.
    """
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
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90)
    plt.close(figure)
