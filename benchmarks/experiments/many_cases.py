"""What a folder run costs beside its cases: thousands of scans of one tiny window, and a network that does nothing.

Runs as ``python -m benchmarks.experiments.many_cases -o FOLDER``. What reading, preparing, restoring and writing the
same scans takes by itself is measured in the same process and taken off; so is ``fsync``, which is told apart.
"""

import argparse
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ctseg.arrays import Logits, Patches
from ctseg.documents import Document
from ctseg.files.cases import Case, find_cases
from ctseg.files.volume import read_volume, write_label_map
from ctseg.model_spec import ModelSpec
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.predictor import Identity
from ctseg.predict.report import fold_report
from ctseg.predict.segment import CaseContext
from ctseg.predict.segmenter import WindowSegmenter

_SPEC = Path(__file__).parents[2] / "model_repository" / "sarcoma" / "ctseg.json"
_PATCH = (8, 16, 16)


class Spent(Document):
    """What a piece of work took.

    Attributes:
        cpu_s: User and system time of the process without that in ``fsync``.
        wall_s: Wall clock.
        fsync_s: Wall clock in ``fsync``, summed over threads.
        fsyncs: How many there were.
    """

    cpu_s: float
    wall_s: float
    fsync_s: float
    fsyncs: int


class ManyCases(Document):
    """What so many cases took.

    Attributes:
        cases: How many.
        alone: Reading, preparing, restoring and writing them, and nothing else.
        first: A run over all of them.
        again: A run that continues, with all of them done.
        fold: Writing the report from the outcomes.
    """

    cases: int
    alone: Spent
    first: Spent
    again: Spent
    fold: Spent

    @property
    def bookkeeping_ms(self) -> float:
        """CPU of the first run for a case beyond the case itself, in milliseconds."""
        return (self.first.cpu_s - self.alone.cpu_s) / self.cases * 1e3


class Nothing:
    """A network that does nothing: every logit is zero."""

    max_batch_size = 1
    max_in_flight = 2

    def __init__(self) -> None:
        spec = ModelSpec.from_json(_SPEC.read_bytes(), source=str(_SPEC))
        self.spec = spec.model_copy(update={"patch_size": _PATCH})
        self.identity = Identity(self.spec.name, 1, self.spec.digest, (), "in process")

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:  # noqa: ARG002
        """Return zeros."""
        return np.zeros((len(patches), self.spec.num_heads, *patches.shape[2:]), np.float32)


def measure(cases: int, folder: Path) -> ManyCases:
    """Measure a folder of so many cases; ``folder`` is made, and removed at the end.

    Raises:
        RuntimeError: Not every case was segmented.
    """
    network, scans, output = Nothing(), folder / "scans", folder / "out"
    try:
        _write_scans(scans, cases, network.spec)
        found = find_cases(scans, channels=1)
        _alone(found[:1], network, folder / "alone")  # kernels are compiled
        alone = _spent(lambda: _alone(found, network, folder / "alone"))
        shutil.rmtree(folder / "alone")
        first = _spent(lambda: _run(scans, network, output, "ok"))
        again = _spent(lambda: _run(scans, network, output, "skipped"))
        fold = _spent(lambda: fold_report(output))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ManyCases(cases=cases, alone=alone, first=first, again=again, fold=fold)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a line for each number of cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.many_cases", description=__doc__)
    parser.add_argument("--output", "-o", type=Path, required=True, help="a new folder on the disk to measure with")
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 3000, 10000], help="default: %(default)s")
    args = parser.parse_args(argv)
    print(
        "| cases | bookkeeping, CPU ms a case | done already, CPU ms a case | fold, CPU s | fsync, ms (number) a case |"
    )
    print("|---|---|---|---|---|")
    for cases in args.cases:
        result = measure(cases, args.output)
        first = result.first
        print(
            f"| {cases} | {result.bookkeeping_ms:.2f} | {result.again.cpu_s / cases * 1e3:.2f} | "
            f"{result.fold.cpu_s:.2f} | {first.fsync_s / cases * 1e3:.1f} ({first.fsyncs / cases:.1f}) |",
            flush=True,
        )
    return 0


def _write_scans(folder: Path, cases: int, spec: ModelSpec) -> None:
    folder.mkdir(parents=True)
    voxels = np.random.default_rng(0).integers(-1000, 1000, _PATCH[::-1]).astype(np.int16)
    affine = np.diag([*spec.spacing_mm[::-1], 1.0])
    first = folder / "case00000_0000.nii.gz"
    nib.save(nib.Nifti1Image(voxels, affine), first)
    for number in range(1, cases):
        (folder / f"case{number:05}_0000.nii.gz").write_bytes(first.read_bytes())


def _alone(cases: Sequence[Case], network: Nothing, output: Path) -> None:
    output.mkdir(exist_ok=True)
    segmenter = WindowSegmenter(network)
    for case in cases:
        volume = read_volume(case.channels, network.spec.reader)
        result = segmenter.segment(volume, CaseContext())
        write_label_map(output / f"{case.name}.nii.gz", result.labels, volume)
    segmenter.close()


def _run(scans: Path, network: Nothing, output: Path, status: str) -> None:
    cases = find_cases(scans, channels=1)
    options = BatchOptions(mirroring=False, continue_prediction=status == "skipped")
    report = segment_cases(cases, network, output, options)
    if other := [case.case for case in report.cases if case.status != status]:
        raise RuntimeError(f"expected every case to be {status}, found others: {other[:3]}")


def _spent(work: Callable[[], object]) -> Spent:
    really, in_fsync = os.fsync, []

    def fsync(fd: Any) -> None:
        began, began_cpu = time.perf_counter(), time.thread_time()
        really(fd)
        in_fsync.append((time.perf_counter() - began, time.thread_time() - began_cpu))

    began, began_cpu = time.perf_counter(), _cpu_s()
    os.fsync = fsync
    try:
        work()
    finally:
        os.fsync = really
    cpu_s = _cpu_s() - began_cpu - sum(cpu for _, cpu in in_fsync)
    wall_s = time.perf_counter() - began
    return Spent(cpu_s=cpu_s, wall_s=wall_s, fsync_s=sum(wall for wall, _ in in_fsync), fsyncs=len(in_fsync))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
