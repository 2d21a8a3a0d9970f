"""``network.md``: the result as tables, with what they say in words."""

from collections.abc import Sequence
from statistics import median

from benchmarks.network.results import ClientsRow, NetworkResult, NetworkRow
from benchmarks.page import IDLE_CPUS, table

BUDGET = 1.1
"""A folder of whole scans over a link, against the same folder on the server's machine."""
_RELAYED = (
    "**No network namespaces here: a relay on loopback held each connection to its rate. It takes CPU that a network "
    "would not.**"
)


def page_of(result: NetworkResult) -> str:
    """Return the Markdown page of a result."""
    machine = result.machine
    parts = [
        f"# Whole scans over networks, {result.started[:10]}",
        "",
        f"{machine.processor}, {machine.cpus} CPUs for client and server together, {machine.memory_gb:.0f} GB, "
        f"{machine.system}, Python {machine.python}; {machine.busy_cpus:.2f} CPUs busy before the start; "
        f"{result.seconds / 60:.0f} minutes.",
        "",
        ", ".join(f"{name} {version}" for name, version in result.versions.items()) + ".",
        "",
        *_warnings(result),
        f"Networks that sleep {result.sleep_ms:g} ms a window of {'x'.join(map(str, result.patch_size))}, as a GPU "
        f"would, one window after the other. Folders of copies of one scan: {result.scan}. `ctseg predict`, without "
        "its start: from the first case taken up to the last written. Medians.",
        "",
        *_reading(result),
        *_rows(result),
        *_clients(result.clients),
        *([] if not result.problems else ["## Missing", "", *(f"- {problem}" for problem in result.problems)]),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _warnings(result: NetworkResult) -> list[str]:
    lines = []
    if result.is_check:
        lines += ["**A check that the benchmark runs; these figures mean nothing.**", ""]
    elif result.machine.busy_cpus > IDLE_CPUS:
        lines += ["**The machine was not idle when this began: do not trust the times.**", ""]
    if any(row.link.kind == "relay" for row in result.rows):
        lines += [_RELAYED, ""]
    return lines


def baseline_of(row: NetworkRow, rows: Sequence[NetworkRow]) -> NetworkRow | None:
    """Return the same folder on the server's machine, windows through shared memory."""
    return next(
        (each for each in rows if (each.classes, each.link.kind, each.way) == (row.classes, "none", "windows")), None
    )


def _ratio(row: NetworkRow, rows: Sequence[NetworkRow]) -> float | None:
    here = baseline_of(row, rows)
    return None if here is None else row.folder_s / here.folder_s


def _reading(result: NetworkResult) -> list[str]:
    lines = []
    for row in result.rows:
        ratio = _ratio(row, result.rows)
        if row.link.kind == "none" or ratio is None:
            continue
        verdict = ""
        if row.way == "whole scans":
            verdict = f": {'within' if ratio <= BUDGET else 'MISSED, promised'} {BUDGET:g} x"
        lines.append(f"- {row.classes} classes, {row.way} over {row.link.name}: {ratio:.2f} x{verdict}.")
    return [*lines, ""] if lines else []


def _rows(result: NetworkResult) -> list[str]:
    if not result.rows:
        return []
    head = ["network", "link", "carries", "what travels", "scans", "asleep s", "folder s", "ratio", "up MB", "down MB"]
    return [
        "## A folder",
        "",
        "The ratio is to windows on the server's machine, through shared memory. MB are those of the link, headers "
        "included; on the server's machine, of the tensors. `Asleep` is the floor that the network sets.",
        "",
        *table(
            [*head, "server CPU s/Mvoxel", "client CPU s", "labels equal", "runs"],
            [
                [
                    f"{row.classes} classes",
                    row.link.name,
                    "" if row.link.kind == "none" else f"{row.link.carries_gbit_s:.2f} Gbit/s",
                    f"{row.way} ({row.runs[-1].transport})" + (f", {row.in_flight} at once" if row.in_flight else ""),
                    str(row.scans),
                    f"{row.runs[-1].windows * result.sleep_ms / 1000:.1f}",
                    f"{row.folder_s:.2f}",
                    "" if (ratio := _ratio(row, result.rows)) is None else f"{ratio:.2f}",
                    f"{median(run.up_mb for run in row.runs):.0f}",
                    f"{median(run.down_mb for run in row.runs):.0f}",
                    f"{row.server_cpu_s_per_megavoxel:.3f}",
                    f"{median(run.client_cpu_s for run in row.runs):.1f}",
                    "yes" if row.labels_equal else "**NO**",
                    ", ".join(f"{run.folder_s:.2f}" for run in row.runs),
                ]
                for row in result.rows
            ],
        ),
    ]


def _clients(rows: Sequence[ClientsRow]) -> list[str]:
    if not rows:
        return []
    return [
        "## Several clients at once",
        "",
        "Each sends whole scans, one after the other; all are threads of one process, with a connection each. A wait "
        "is from when a scan was sent to when its labels were there. The least share: of its scans, how many the least "
        "served client had back when the first one had all.",
        "",
        *table(
            ["network", "link", "clients", "scans each", "s", "scans a minute", "median wait s", "longest wait s",
             "least share", "server CPU s/Mvoxel"],
            [
                [
                    f"{row.classes} classes",
                    row.link.name,
                    str(row.clients),
                    str(row.scans_each),
                    f"{row.seconds:.1f}",
                    f"{row.scans_per_minute:.1f}",
                    f"{row.median_wait_s:.2f}",
                    f"{row.longest_wait_s:.2f}",
                    f"{row.least_share:.0%}",
                    f"{row.server_cpu_s / row.megavoxels:.3f}",
                ]
                for row in rows
            ],
        ),
    ]  # fmt: skip
