"""The benchmark's story: scans, start-up, whole commands, functions, floor, trace, longer commands, page."""

import logging
import platform
import shutil
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.bench import set_up_bench
from benchmarks.experiments.commands import WholeCommands
from benchmarks.experiments.dicom import measure_dicom
from benchmarks.experiments.floor import measure_floors
from benchmarks.experiments.functions import measure_functions
from benchmarks.experiments.start_up import measure_start_up
from benchmarks.experiments.trace import measure_traces
from benchmarks.machine import installed_versions, this_machine
from benchmarks.models import nnunet_program
from benchmarks.page import IDLE_CPUS
from benchmarks.record import Record
from benchmarks.results import BenchmarkResult, Mode
from benchmarks.sizes import SIZES
from ctseg.errors import SetupError

log = logging.getLogger(__name__)

ROWS_BEFORE_THE_REST = 2
"""Rows of whole commands that come first: their networks are those of the floor and of the trace."""


def run_benchmark(
    scans: Path, output: Path, *, mode: Mode = "standard", large: Path | None = None, minutes: float | None = None
) -> BenchmarkResult:
    """Measure ctseg beside nnU-Net on this machine, and write ``benchmark.json`` and ``benchmark.md``.

    A step that fails is named in the result, and the others go on. The files are written after every step.

    Args:
        scans: Folder of CT scans, ``<case>_0000.nii.gz``.
        output: Folder for the results; made if missing.
        mode: How much is measured.
        large: A CT of a whole chest.
        minutes: No step starts later; None: as the mode says.

    Raises:
        SetupError: Not on Linux, or nnU-Net is not installed.
        InputError: There is no scan.
        OutputError: The results cannot be written.
    """
    _check_this_machine_can()
    sizes = SIZES[mode] if minutes is None else replace(SIZES[mode], minutes=minutes)
    with tempfile.TemporaryDirectory(prefix="ctseg-benchmark-") as scratch:
        bench = set_up_bench(Path(scratch), scans, large, sizes)
        opening = BenchmarkResult(
            mode=mode,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=this_machine(),
            versions=installed_versions(),
            scans=(*bench.scans.small, *bench.scans.large),
        )
        if opening.machine.busy_cpus > IDLE_CPUS:
            log.warning("WARNING: the machine is not idle: %.1f CPUs are busy", opening.machine.busy_cpus)
        record = Record(output, opening, sizes.minutes)
        if large is None and any(row.large for row in sizes.rows):
            record.leave_out("chest and long scan", "no CT of a whole chest was given")

        measure_start_up(bench, record)
        commands = WholeCommands(bench, record, opening.machine)
        for row in sizes.rows[:ROWS_BEFORE_THE_REST]:
            commands.compare(row)
        measure_functions(bench, record)
        measure_dicom(bench, record)
        measure_floors(bench, record, commands.ready)
        measure_traces(bench, record, commands.ready)
        for row in sizes.rows[ROWS_BEFORE_THE_REST:]:
            commands.compare(row)
        return record.write()


def _check_this_machine_can() -> None:
    """Refuse a machine on which nothing could be measured.

    Raises:
        SetupError: Not Linux, or no nnU-Net.
    """
    if platform.system() != "Linux":
        raise SetupError(f"the benchmark measures processes as Linux shows them, this is {platform.system()}")
    if shutil.which(str(nnunet_program("nnUNetv2_predict"))) is None:
        raise SetupError("nnUNetv2_predict is not installed: run the benchmark by `make benchmark`, which installs it")
