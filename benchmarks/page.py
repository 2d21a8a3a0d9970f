"""``benchmark.md``: the result as tables, with what they say in words."""

from collections.abc import Iterable, Sequence
from statistics import median

from benchmarks.budgets import met_and_missed
from benchmarks.results import (
    LEAST_VOXELS_OF_A_DICE,
    TRACE_NAME,
    BenchmarkResult,
    DicomReading,
    EndToEnd,
    Floor,
    Memory,
    Micro,
    ProgramFigures,
    StageSums,
    Trace,
    scans_text,
)

IDLE_CPUS = 0.2
"""More than that taken by others, and the times are not to be trusted."""


def page_of(result: BenchmarkResult) -> str:
    """Return the Markdown page of a result."""
    machine = result.machine
    parts = [
        f"# Benchmark of {result.started[:10]} ({result.mode})",
        "",
        f"{machine.processor}, {machine.cpus} CPUs, {machine.memory_gb:.0f} GB, {machine.system}, "
        f"Python {machine.python}; {machine.busy_cpus:.2f} CPUs busy before the start; "
        f"{result.seconds / 60:.0f} minutes.",
        "",
        ", ".join(f"{name} {version}" for name, version in result.versions.items()) + ".",
        "",
        *_warnings(result),
        "Every time is wall clock unless it says otherwise. The networks have random weights. `runs` says how many "
        "runs of each program a figure comes from: the median of them, or for functions and replays the shortest. "
        "Both programs run in turns.",
        "",
        "## What it says",
        "",
        *_reading(result),
        *_end_to_end(result.end_to_end),
        *_floor(result.floor),
        *_traces(result.traces),
        *_functions(result.micro),
        *_memory(result.memory),
        *_dicom(result.dicom),
        *_startup(result),
        *_budgets(result),
        *_scans(result),
        *_problems(result),
    ]
    return "\n".join(parts).rstrip() + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, and an empty one."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'|'.join('---' if index == 0 else '---:' for index in range(len(head)))}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _warnings(result: BenchmarkResult) -> list[str]:
    lines = []
    if result.mode == "tiny":
        lines += ["**A check that the benchmark runs; these figures mean nothing.**", ""]
    elif result.machine.busy_cpus > IDLE_CPUS:
        lines += ["**The machine was not idle when this began: do not trust the times.**", ""]
    return lines


def _reading(result: BenchmarkResult) -> list[str]:
    lines = [f"- {met_and_missed(result.budgets)}"]
    for row in result.end_to_end:
        what = f"- {row.network}, {row.classes} classes, {scans_text(row.scans)}: ctseg takes {row.ctseg.wall_s:.1f} s"
        if row.nnunet is None:
            lines.append(f"{what} and {row.ctseg.peak_mb:.0f} MiB. {row.note}.")
            continue
        faster = row.nnunet.work_s / row.ctseg.work_s
        lines.append(
            f"{what}, nnU-Net {row.nnunet.wall_s:.1f} s; without start-up ({row.ctseg.startup_s:.1f} s and "
            f"{row.nnunet.startup_s:.1f} s) that is {_times(faster)}. Peak memory {row.ctseg.peak_mb:.0f} and "
            f"{row.nnunet.peak_mb:.0f} MiB."
        )
    lines += [
        f"- {row.model}: a folder takes {row.ratio:.2f} x the time of its bare windows"
        + (
            f", the server sleeping {_busy(row):.0%} of it."
            if row.sleep_ms is not None
            else f"; the client's own {row.client_cpu_s_per_megavoxel * row.megavoxels:.1f} CPU s on the network's "
            f"CPUs ({result.machine.cpus}) would be {_crowding(row, result.machine.cpus):.0%} of that time."
        )
        for row in result.floor
    ]
    lines += [
        f"- {trace.model}, {trace.scans} scans with a clock in the server: it computes {trace.busy_share:.1%} of the "
        f"folder, {trace.busy_share_between:.1%} between its first and its last answer."
        for trace in result.traces
    ]
    missed = [budget for budget in result.budgets if not budget.met]
    lines += [f"- MISSED: {budget.what}: {budget.figure}, promised {budget.budget}." for budget in missed]
    if result.problems:
        lines.append(f"- {len(result.problems)} steps were left out or failed; they stand at the end.")
    return [*lines, ""]


def _times(faster: float) -> str:
    return f"{faster:.1f} x faster" if faster >= 1 else f"{1 / faster:.1f} x slower"


def _crowding(row: Floor, cpus: int) -> float:
    """What the client's CPU seconds take of the machine, against the time of the bare windows."""
    return row.client_cpu_s_per_megavoxel * row.megavoxels / cpus / row.replay_s


def _busy(row: Floor) -> float:
    return row.windows * (row.sleep_ms or 0.0) / 1000 / row.folder_s


def _end_to_end(rows: Sequence[EndToEnd]) -> list[str]:
    if not rows:
        return []
    alone = [f"- {row.model}, {scans_text(row.scans)}, ctseg alone: {row.note}." for row in rows if row.nnunet is None]
    return [
        "## Whole commands",
        "",
        "`nnUNetv2_predict -device cpu --disable_tta` beside `ctseg predict --disable_tta` with the server that it "
        "starts; CPU and memory of all processes, server and children included. Start-up is the same command on a "
        "scan of one window. Client CPU is that of the command's own process (for nnU-Net: with the network, without "
        "its workers).",
        "",
        *_commands(rows),
        *([*alone, ""] if alone else []),
        "Labels of ctseg beside those of stock nnU-Net, which rounds its logits to float16:",
        "",
        *_agreements(rows),
        "Where ctseg's time goes (seconds summed over the cases, which overlap):",
        "",
        *_stages(rows),
    ]


def _commands(rows: Sequence[EndToEnd]) -> list[str]:
    def figures(row: EndToEnd, name: str, program: ProgramFigures) -> list[str]:
        sent = [f"{(run.bytes_sent or 0) / 1e6:.0f} + {(run.bytes_received or 0) / 1e6:.0f}" for run in program.runs]
        return [
            f"{row.model}: {scans_text(row.scans)}, {row.megavoxels:.1f} Mvoxel",
            name,
            f"{program.wall_s:.1f}",
            f"{program.startup_s:.1f}",
            f"{program.work_s:.1f}",
            f"{program.cpu_s:.1f}",
            f"{program.client_cpu_s / row.megavoxels:.2f}",
            f"{program.peak_mb:.0f}",
            sent[0] if name == "ctseg" else "none",
            f"{len(program.runs)} + {len(program.startup)}",
        ]

    head = ["model and scans", "program", "s", "of it start-up", "without start-up", "CPU s", "client CPU s/Mvoxel"]
    return table(
        [*head, "peak MiB", "MB sent + received", "runs + start-up runs"],
        [
            figures(row, name, program)
            for row in rows
            for name, program in (("nnU-Net", row.nnunet), ("ctseg", row.ctseg))
            if program is not None
        ],
    )


def _agreements(rows: Sequence[EndToEnd]) -> list[str]:
    return table(
        ["model and scans", "equal voxels", f"lowest Dice of a label of {LEAST_VOXELS_OF_A_DICE} voxels"],
        [
            [
                f"{row.model}: {scans_text(row.scans)}",
                f"{row.agreement.equal_share:.4%}",
                "no label" if row.agreement.lowest_dice is None else f"{row.agreement.lowest_dice:.4f}",
            ]
            for row in rows
            if row.agreement is not None
        ],
    )


def _stages(rows: Sequence[EndToEnd]) -> list[str]:
    return table(
        ["model and scans", "server start", "folder", *StageSums.model_fields, "windows"],
        [
            [
                f"{row.model}: {scans_text(row.scans)}",
                f"{run.server_start_s or 0:.1f}",
                f"{run.folder_s or 0:.1f}",
                *(f"{getattr(run.stages, stage):.1f}" for stage in StageSums.model_fields),
                str(run.windows),
            ]
            for row in rows
            for run in row.ctseg.runs[-1:]
        ],
    )


def _floor(rows: Sequence[Floor]) -> list[str]:
    if not rows:
        return []
    lines = ["## The floor", ""]
    lines += [
        "A folder by `ctseg predict` (server start excluded) beside the replay of its windows, cut before, at the best "
        "concurrency found, the answers dropped. Sleeping models stand for a GPU elsewhere: they use no CPU.",
        "",
    ]
    head = ["model", "scans", "windows", "asleep s", "replay s", "concurrency x batch", "folder s", "ratio", "runs"]
    return lines + table(
        [*head, "client CPU s/Mvoxel"],
        [
            [
                row.model,
                str(row.scans),
                str(row.windows),
                "" if row.sleep_ms is None else f"{row.windows * row.sleep_ms / 1000:.2f}",
                f"{row.replay_s:.2f}",
                f"{row.replays[-1].concurrency} x {row.replays[-1].batch}",
                f"{row.folder_s:.2f}",
                f"{row.ratio:.3f}",
                str(len(row.folders)),
                f"{row.client_cpu_s_per_megavoxel:.2f}",
            ]
            for row in rows
        ],
    )


def _traces(traces: Sequence[Trace]) -> list[str]:
    if not traces:
        return []
    lines = ["## How busy the server is", ""]
    lines += [
        "One more run of each folder, with a clock around the client's stages and around the model's computing in the "
        "server; the spans stand in the JSON. A thread takes a whole case, three at a time.",
        "",
        f"![Stages of each case above the server's computing]({TRACE_NAME})",
        "",
    ]
    return lines + table(
        ["model", "scans", "windows", "folder s", "server computes", "between first and last", "client CPU s"],
        [
            [
                trace.model,
                str(trace.scans),
                str(trace.windows),
                f"{trace.folder_s:.2f}",
                f"{trace.busy_share:.1%}",
                f"{trace.busy_share_between:.1%}",
                f"{trace.client_cpu_s:.2f}",
            ]
            for trace in traces
        ],
    )


def _functions(rows: Sequence[Micro]) -> list[str]:
    if not rows:
        return []
    head = ["function", "classes", "from", "to", "nnU-Net s", "ctseg s", "faster", "nnU-Net MiB", "ctseg MiB"]
    return [
        "## Functions, array to array",
        "",
        "Preparing: `DefaultPreprocessor.run_case_npy` beside `ctseg.numerics.prepare`. Blending: nnU-Net's "
        "sliding window beside `SlabBlender`, with a network that answers at once. Export: nnU-Net's "
        "`convert_predicted_logits_to_segmentation_with_correct_shape` beside `LabelRestorer`. Memory is above "
        "what stood before the call.",
        "",
        *table(
            [*head, "equal", "runs", "note"],
            [
                [
                    row.function,
                    "" if row.classes is None else str(row.classes),
                    "x".join(map(str, row.source_shape)),
                    "x".join(map(str, row.target_shape)),
                    f"{min(row.nnunet_s):.3f}",
                    f"{min(row.ctseg_s):.3f}",
                    f"{row.speedup:.1f} x",
                    f"{row.nnunet_extra_mb:.0f}",
                    f"{row.ctseg_extra_mb:.0f}",
                    "" if row.equal_share is None else f"{row.equal_share:.4%}",
                    str(len(row.ctseg_s)),
                    row.note,
                ]
                for row in rows
            ],
        ),
    ]


def _memory(rows: Sequence[Memory]) -> list[str]:
    if not rows:
        return []
    return [
        "Peak memory of a whole case in the client, with a network that answers at once:",
        "",
        *table(
            ["classes", "scan", "patch", "peak MiB", "budget MiB", "runs"],
            [
                [
                    str(row.classes),
                    "x".join(map(str, row.scan_shape)),
                    "x".join(map(str, row.patch_size)),
                    f"{row.peak_mb:.0f}",
                    f"{row.allowed_mb:.0f}",
                    "1",
                ]
                for row in rows
            ],
        ),
    ]


def _dicom(rows: Sequence[DicomReading]) -> list[str]:
    if not rows:
        return []
    return [
        "## Reading DICOM",
        "",
        "A CT series, a file a slice, from the names of the files to the volume in HU: ctseg (its headers are read "
        "first, and the series is put together) beside pydicom, which is told the order and reads with two threads.",
        "",
        *table(
            ["encoding", "voxels (z, y, x)", "MB", "pydicom s", "ctseg s", "of it headers", "ratio", "runs"],
            [
                [
                    row.encoding,
                    "x".join(map(str, row.shape)),
                    f"{row.files_mb:.0f}",
                    row.pydicom_text,
                    f"{min(row.ctseg_s):.2f}",
                    f"{min(row.ctseg_headers_s):.2f}",
                    "" if row.ratio is None else f"{row.ratio:.2f}",
                    str(len(row.ctseg_s)),
                ]
                for row in rows
            ],
        ),
    ]


def _startup(result: BenchmarkResult) -> list[str]:
    startup = result.startup
    if startup is None:
        return []
    return [
        "## Before the first case",
        "",
        f"A Python that imports the client: {median(startup.client_import_s):.2f} s ({len(startup.client_import_s)} "
        f"runs). Kernels compiled, once for an installation: {startup.first_compile_s:.1f} s; read from the cache: "
        f"{startup.load_kernels_s:.2f} s (1 run each). No time above has the compilation in it.",
        "",
    ]


def _budgets(result: BenchmarkResult) -> list[str]:
    if not result.budgets:
        return []
    return [
        "## Budgets",
        "",
        *table(
            ["what", "promised", "measured", "", "runs"],
            [
                [budget.what, budget.budget, budget.figure, "met" if budget.met else "**missed**", str(budget.runs)]
                for budget in result.budgets
            ],
        ),
    ]


def _scans(result: BenchmarkResult) -> list[str]:
    return [
        "## Scans",
        "",
        *table(
            ["scan", "voxels (z, y, x)", "mm (z, y, x)", "from"],
            [
                [
                    scan.case,
                    "x".join(map(str, scan.shape)),
                    " x ".join(f"{step:.3g}" for step in scan.spacing_mm),
                    scan.origin,
                ]
                for scan in result.scans
            ],
        ),
    ]


def _problems(result: BenchmarkResult) -> list[str]:
    if not result.problems:
        return []
    return ["## Missing", ""] + [
        f"- {problem.step}: {'FAILED: ' if problem.is_failure else ''}{problem.message.splitlines()[0][:300]}"
        for problem in result.problems
    ]
