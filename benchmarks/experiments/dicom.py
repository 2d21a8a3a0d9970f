"""Reading CT series in DICOM: ctseg beside pydicom with two threads, on the same files."""

import logging
from functools import partial
from pathlib import Path
from typing import get_args

from benchmarks.bench import Bench
from benchmarks.experiments.dicom_files import write_series
from benchmarks.experiments.dicom_reading import ReadingJob, ReadingResult
from benchmarks.record import Record
from benchmarks.results import DicomEncoding, DicomProgram, DicomReading, Scan
from ctseg.errors import SetupError

log = logging.getLogger(__name__)


def measure_dicom(bench: Bench, record: Record) -> None:
    """Measure the longest scan in every encoding."""
    scan = (bench.scans.large or bench.scans.small)[-1]
    for encoding in get_args(DicomEncoding):
        step = partial(_compare, bench, scan, encoding)
        record.step(f"reading DICOM, {encoding}", step, record.dicom.append)


def _compare(bench: Bench, scan: Scan, encoding: DicomEncoding) -> DicomReading:
    """Read a series by both programs in turns, each time in a process of its own."""
    folder = bench.new_folder("dicom")
    write_series(bench.scans.file(scan), folder, encoding)
    results: dict[DicomProgram, list[ReadingResult]] = {"pydicom": [], "ctseg": []}
    order: tuple[DicomProgram, ...] = ("pydicom", "ctseg")
    for turn in range(bench.sizes.micro_runs):
        for program in order if turn % 2 == 0 else order[::-1]:
            results[program] += _read(bench, folder, program)
    if len({result.digest for program in order for result in results[program]}) > 1:
        raise SetupError(f"{scan.case}, {encoding}: pydicom and ctseg read different voxels")
    row = DicomReading(
        encoding=encoding,
        shape=scan.shape,
        files_mb=sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        pydicom_s=tuple(result.seconds for result in results["pydicom"]),
        ctseg_s=tuple(result.seconds for result in results["ctseg"]),
        ctseg_headers_s=tuple(result.headers_s for result in results["ctseg"]),
    )
    log.info("    pydicom %s s, ctseg %.2f s", row.pydicom_text, min(row.ctseg_s))
    return row


def _read(bench: Bench, folder: Path, program: DicomProgram) -> list[ReadingResult]:
    """Return what one run took; nothing where pydicom has no decoder."""
    job = ReadingJob(folder=str(folder), program=program)
    measured = bench.child("benchmarks.experiments.dicom_reading", job)
    result = ReadingResult.model_validate_json(measured.output.strip().splitlines()[-1])
    return [result] if result.digest else []
