"""Functions, array to array: preparing, export and blending of both programs in turns; memory of a whole case."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.bench import Bench
from benchmarks.experiments.function_jobs import Job, sample_of
from benchmarks.experiments.function_worker import Worker
from benchmarks.models import SPACING_MM
from benchmarks.record import Record
from benchmarks.results import Memory, Micro, Program, Scan
from benchmarks.sizes import NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL, NNUNET_EXPORT_S_PER_CLASS_VOXEL, Sizes
from ctseg.arrays import Shape3
from ctseg.numerics.resample import compute_new_shape

log = logging.getLogger(__name__)

Workers = Mapping[Program, Worker]


def measure_functions(bench: Bench, record: Record) -> None:
    """Measure the functions on a small scan and on the large ones, with few and with many classes."""
    with _workers(bench) as workers:
        _measure_preparing(bench, record, workers)
        for classes in bench.sizes.micro_classes:
            _measure_classes(bench, record, workers, classes)


@contextmanager
def _workers(bench: Bench) -> Iterator[Workers]:
    with ExitStack() as stack:
        yield {program: stack.enter_context(Worker(program, bench.environment)) for program in get_args(Program)}


def _measure_preparing(bench: Bench, record: Record, workers: Workers) -> None:
    scans = bench.scans
    for scan in [scans.small[0], *(scan for scan in scans.large if "mirrored" not in scan.origin)]:
        job = Job(
            function="prepare",
            patch_size=bench.sizes.rows[0].network.patch_size,
            scan=str(scans.file(scan)),
            target_shape=scan.shape,
            source_shape=scan.shape,
            runs=bench.sizes.micro_runs,
            sample="",
        )
        record.step(f"preparing {scan.case}", partial(_compare, bench, workers, job), record.micro.append)


def _measure_classes(bench: Bench, record: Record, workers: Workers, classes: int) -> None:
    """Measure what depends on the number of classes."""
    sizes, scans = bench.sizes, bench.scans
    patch = sizes.rows[0].network.patch_size
    chest = (scans.large or scans.small)[0]
    shape = bearable_export_shape(chest.shape, classes, sizes)
    size = "x".join(map(str, chest.shape))
    is_smaller = shape != chest.shape
    note = f"smaller than {size}: nnU-Net takes too long or too much memory for that" if is_smaller else ""
    source = compute_new_shape(shape, chest.spacing_mm, SPACING_MM)
    export = Job(
        function="export", classes=classes, patch_size=patch, source_shape=source, target_shape=shape,
        spacing_mm=chest.spacing_mm, runs=1 if is_smaller else sizes.micro_runs, sample="",
    )  # fmt: skip
    record.step(f"export of {classes} classes", partial(_compare, bench, workers, export, note), record.micro.append)

    padded = (max(source[0], patch[0]), max(source[1], patch[1]), max(source[2], patch[2]))
    blend = export.model_copy(update={"function": "blend", "source_shape": padded, "target_shape": padded})
    record.step(f"blending {classes} classes", partial(_compare, bench, workers, blend, note), record.micro.append)

    for scan in [chest, *scans.large[-1:]] if len(scans.large) > 1 else [chest]:
        whole = blend.model_copy(update={"function": "memory", "scan": str(scans.file(scan)), "runs": 1})
        name = f"memory of {classes} classes, {scan.case}"
        record.step(name, partial(_memory, bench, workers["ctseg"], whole, scan), record.memory.append)


def bearable_export_shape(whole: Shape3, classes: int, sizes: Sizes) -> Shape3:
    """Return the grid on which nnU-Net's export takes neither too long nor too much memory.

    Args:
        whole: The grid of a scan.
        classes: Heads of the logits.
        sizes: Say how long and how much memory.

    Returns:
        ``whole``, or a grid of the same proportions that is small enough, with at least 8 voxels along each axis.
    """
    voxels = min(
        sizes.largest_export_s / (NNUNET_EXPORT_S_PER_CLASS_VOXEL * classes),
        sizes.largest_export_bytes / (NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL * classes),
    )
    if voxels >= np.prod(whole):
        return whole
    factor = (voxels / float(np.prod(whole))) ** (1 / 3)
    depth, rows, columns = (max(8, round(size * factor)) for size in whole)
    return depth, rows, columns


def _compare(bench: Bench, workers: Workers, job: Job, note: str = "") -> Micro:
    """Run a function of both programs, run by run in turns."""
    seconds: dict[Program, list[float]] = {"nnunet": [], "ctseg": []}
    extra: dict[Program, float] = {"nnunet": 0.0, "ctseg": 0.0}
    samples: dict[Program, Path] = {program: bench.root / f"sample_{program}.npy" for program in seconds}
    order: tuple[Program, ...] = ("nnunet", "ctseg")
    for turn in range(job.runs):
        for program in order if turn % 2 == 0 else order[::-1]:
            once = job.model_copy(update={"runs": 1, "sample": str(samples[program])})
            result = workers[program].run(once)
            seconds[program] += result.seconds
            extra[program] = max(extra[program], result.extra_mb)
    mine, theirs = sample_of(samples["ctseg"]), sample_of(samples["nnunet"])
    close = mine == theirs if job.function == "export" else np.isclose(mine, theirs, rtol=1e-2, atol=1e-3)
    row = Micro.model_validate(
        {
            "function": job.function,
            "classes": None if job.function == "prepare" else job.classes,
            "source_shape": job.source_shape,
            "target_shape": theirs.shape[1:] if job.function == "prepare" else job.target_shape,
            "nnunet_s": tuple(seconds["nnunet"]),
            "ctseg_s": tuple(seconds["ctseg"]),
            "nnunet_extra_mb": extra["nnunet"],
            "ctseg_extra_mb": extra["ctseg"],
            "equal_share": float(np.mean(close)),
            "note": note,
        }
    )
    log.info("    nnU-Net %.3f s, ctseg %.3f s: %.1f x", min(row.nnunet_s), min(row.ctseg_s), row.speedup)
    return row


def _memory(bench: Bench, worker: Worker, job: Job, scan: Scan) -> Memory:
    result = worker.run(job.model_copy(update={"sample": str(bench.root / "sample_memory.npy")}))
    log.info("    %.0f MiB of %.0f", result.extra_mb, result.allowed_mb)
    return Memory(
        classes=job.classes,
        scan_shape=scan.shape,
        patch_size=job.patch_size,
        peak_mb=result.extra_mb,
        allowed_mb=result.allowed_mb,
    )
