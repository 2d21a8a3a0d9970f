"""What was promised, beside what was measured."""

from collections.abc import Sequence
from statistics import median

from benchmarks.results import Budget, DicomReading, EndToEnd, Floor, Memory, Micro, StartUp, runs_text, scans_text

PREPARE_SPEEDUP = 10.0
EXPORT_SPEEDUP = 40.0
SWIN_SPEEDUP = 3.0
FLOOR_RATIO = 1.05
FLOOR_SLEEPS_MS = (100.0, 350.0)
IMPORT_S = 1.0
DICOM_RATIO = 2.0


def budgets_of(
    startup: StartUp | None,
    end_to_end: Sequence[EndToEnd],
    floor: Sequence[Floor],
    micro: Sequence[Micro],
    memory: Sequence[Memory],
    *,
    dicom: Sequence[DicomReading] = (),
) -> tuple[Budget, ...]:
    """Return every budget that something was measured for, met or missed."""
    return (
        *_of_functions(micro),
        *(_of_memory(row) for row in memory),
        *(_of_dicom(row, row.ratio) for row in dicom if row.ratio is not None),
        *(_of_floor(row) for row in floor if row.sleep_ms is None or row.sleep_ms in FLOOR_SLEEPS_MS),
        *(budget for row in end_to_end for budget in _of_commands(row)),
        *(() if startup is None else (_of_startup(startup),)),
    )


def _of_functions(rows: Sequence[Micro]) -> list[Budget]:
    found = []
    for row in rows:
        size = "x".join(map(str, row.target_shape if row.function == "export" else row.source_shape))
        what = {"prepare": "preparing", "blend": "blending", "export": "logits to labels"}[row.function]
        heads = "" if row.classes is None else f", {row.classes} classes"
        wanted = {"prepare": PREPARE_SPEEDUP, "export": EXPORT_SPEEDUP}.get(row.function, 1.0)
        found.append(
            Budget(
                what=f"{what}, {size}{heads}",
                budget=f"{wanted:g} x faster than nnU-Net" if wanted > 1 else "not slower than nnU-Net",
                figure=f"{row.speedup:.1f} x",
                met=row.speedup >= wanted,
                runs=len(row.ctseg_s),
            )
        )
        found.append(
            Budget(
                what=f"memory of {what}, {size}{heads}",
                budget="not more than nnU-Net",
                figure=f"{row.ctseg_extra_mb:.0f} against {row.nnunet_extra_mb:.0f} MiB",
                met=row.ctseg_extra_mb <= row.nnunet_extra_mb,
                runs=len(row.ctseg_s),
            )
        )
    return found


def _of_memory(row: Memory) -> Budget:
    return Budget(
        what=f"memory of a case, {'x'.join(map(str, row.scan_shape))}, {row.classes} classes",
        budget=f"{row.allowed_mb:.0f} MiB (1.3 x classes x patch depth x plane + in flight + 3 x scan)",
        figure=f"{row.peak_mb:.0f} MiB",
        met=row.peak_mb <= row.allowed_mb,
        runs=1,
    )


def _of_dicom(row: DicomReading, ratio: float) -> Budget:
    return Budget(
        what=f"reading DICOM, {row.encoding}, {'x'.join(map(str, row.shape))}",
        budget=f"{DICOM_RATIO:g} x the time of pydicom with two threads",
        figure=f"{ratio:.2f} x",
        met=ratio <= DICOM_RATIO,
        runs=len(row.ctseg_s),
    )


def _of_floor(row: Floor) -> Budget:
    network = "the real network" if row.sleep_ms is None else f"a network of {row.sleep_ms:g} ms a window"
    return Budget(
        what=f"folder of {row.scans} scans, {row.model}",
        budget=f"{FLOOR_RATIO:g} x the replay of its windows, {network}",
        figure=f"{row.ratio:.3f} x",
        met=row.ratio <= FLOOR_RATIO,
        runs=len(row.folders),
    )


def _of_commands(row: EndToEnd) -> list[Budget]:
    what = f"{row.model}, {scans_text(row.scans)}"
    if row.nnunet is None:
        return []
    runs = len(row.ctseg.runs)
    work = row.nnunet.work_s / row.ctseg.work_s
    whole = row.nnunet.wall_s / row.ctseg.wall_s
    wanted = SWIN_SPEEDUP if row.network == "Swin UNETR" else 1.0
    return [
        Budget(
            what=f"wall clock without start-up, {what}",
            budget=f"{wanted:g} x faster than nnUNetv2_predict" if wanted > 1 else "not slower than nnUNetv2_predict",
            figure=f"{work:.2f} x",
            met=work >= wanted,
            runs=runs,
        ),
        Budget(
            what=f"wall clock with start-up, {what}",
            budget="not slower than nnUNetv2_predict",
            figure=f"{whole:.2f} x",
            met=whole >= 1,
            runs=runs,
        ),
        Budget(
            what=f"CPU seconds, {what}",
            budget="not more than nnUNetv2_predict",
            figure=f"{row.ctseg.cpu_s:.1f} against {row.nnunet.cpu_s:.1f} s",
            met=row.ctseg.cpu_s <= row.nnunet.cpu_s,
            runs=runs,
        ),
        Budget(
            what=f"peak memory of all processes, {what}",
            budget="not more than nnUNetv2_predict",
            figure=f"{row.ctseg.peak_mb:.0f} against {row.nnunet.peak_mb:.0f} MiB",
            met=row.ctseg.peak_mb <= row.nnunet.peak_mb,
            runs=runs,
        ),
    ]


def _of_startup(startup: StartUp) -> Budget:
    seconds = median(startup.client_import_s)
    return Budget(
        what="the client is imported",
        budget=f"under {IMPORT_S:g} s, no torch",
        figure=f"{seconds:.2f} s, {'torch' if startup.client_imports_torch else 'no torch'}",
        met=seconds < IMPORT_S and not startup.client_imports_torch,
        runs=len(startup.client_import_s),
    )


def met_and_missed(budgets: Sequence[Budget]) -> str:
    """Return a sentence that counts them."""
    met = sum(budget.met for budget in budgets)
    counts = runs_text([budget.runs for budget in budgets]) if budgets else "0"
    return f"{met} of {len(budgets)} budgets are met (figures of {counts} runs each)."
