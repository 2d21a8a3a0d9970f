"""Whole commands: ``nnUNetv2_predict`` and ``ctseg predict`` in turns on the same scans."""

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from benchmarks.bench import Bench, Prediction
from benchmarks.models import Network, serve_network, trained_folder
from benchmarks.record import Record
from benchmarks.results import (
    LEAST_VOXELS_OF_A_DICE,
    Agreement,
    EndToEnd,
    Machine,
    Program,
    ProgramFigures,
    ProgramRun,
    Scan,
    scans_text,
)
from benchmarks.scans import megavoxels
from benchmarks.sizes import NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL, Row
from ctseg.errors import SetupError
from ctseg.numerics.dice import dice_of_counts

log = logging.getLogger(__name__)

BEARABLE_SHARE_OF_MEMORY = 0.6
"""What nnU-Net may take without putting the machine at risk."""


@dataclass(frozen=True)
class ReadyNetwork:
    """A network that both programs can run, and what a run costs them whatever they segment.

    Attributes:
        network: What was trained (not at all), exported and built.
        startups: Runs of each program on a scan of one window.
    """

    network: Network
    startups: dict[Program, tuple[ProgramRun, ...]]


class WholeCommands:
    """Compares both commands, row by row; each network is made when a row first needs it.

    Args:
        bench: Where they run.
        record: Takes what was measured.
        machine: Whose memory decides what nnU-Net is asked to do.
    """

    def __init__(self, bench: Bench, record: Record, machine: Machine) -> None:
        self.ready: list[ReadyNetwork] = []
        self._bench = bench
        self._record = record
        self._bearable_bytes = BEARABLE_SHARE_OF_MEMORY * machine.memory_gb * 1e9

    def compare(self, row: Row) -> None:
        """Run both commands on the scans of a row; ctseg alone where nnU-Net would take too much memory."""
        scans = self._bench.scans
        small = scans.small[: row.small]
        large = [scan for scan in scans.large if scan.case in row.large]
        ready = self._made(row.network) if small or large else None
        if ready is None:
            return
        name = row.network.name
        bearable = [scan for scan in large if _export_bytes(scan, row.network) < self._bearable_bytes]
        if both := [*small, *bearable]:
            self._step(f"{name} on {scans_text([scan.case for scan in both])}", ready, both, row.repeats)
        for scan in large:
            if scan not in bearable:
                note = (
                    f"nnU-Net would need about {_export_bytes(scan, row.network) / 1e9:.0f} GB for the logits of "
                    f"{scan.case}: left out above {self._bearable_bytes / 1e9:.0f} GB"
                )
                self._step(f"{name} on {scan.case}, ctseg alone", ready, [scan], row.repeats, note)

    def _step(self, name: str, ready: ReadyNetwork, scans: Sequence[Scan], repeats: int, note: str = "") -> None:
        measure = partial(_compare, self._bench, ready, scans, repeats, note)
        self._record.step(name, measure, self._record.end_to_end.append)

    def _made(self, network: Network) -> ReadyNetwork | None:
        """Return a network that can be run; None where it could not be made."""
        if all(ready.network != network for ready in self.ready):
            measure = partial(_make, self._bench, network, is_first=not self.ready)
            self._record.step(f"model {network.name}", measure, self.ready.append)
        return next((ready for ready in self.ready if ready.network == network), None)


def _export_bytes(scan: Scan, network: Network) -> float:
    return NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL * network.classes * float(np.prod(scan.shape))


def _make(bench: Bench, network: Network, *, is_first: bool) -> ReadyNetwork:
    """Write random weights, export, build, and run both programs on one window."""
    code = (
        "from pathlib import Path; from benchmarks.models import Network, write_trained_folder; "
        f"write_trained_folder(Path({str(bench.root)!r}), {network!r})"
    )
    bench.command([sys.executable, "-c", code])
    if not (trained_folder(bench.root, network) / "fold_0" / "checkpoint_final.pth").is_file():
        raise SetupError(f"{network.name}: no checkpoint was written")
    tiny = bench.tiny
    serve_network(bench.root, network, tiny.file(tiny.small[0]), timeout_s=bench.sizes.timeout_s)
    if is_first and not bench.sizes.is_check:  # once, so that what is measured later finds its files in memory
        for program in ("nnunet", "ctseg"):
            _predict(bench, program, network, tiny.folder)
    runs: dict[Program, list[ProgramRun]] = {"nnunet": [], "ctseg": []}
    for _ in range(bench.sizes.startup_repeats):
        for program, its_runs in runs.items():
            its_runs.append(_predict(bench, program, network, tiny.folder).run)
    return ReadyNetwork(network, {program: tuple(its_runs) for program, its_runs in runs.items()})


def _predict(bench: Bench, program: Program, network: Network, folder: Path) -> Prediction:
    if program == "nnunet":
        return bench.predict_by_nnunet(network, folder)
    return bench.predict_by_ctseg(network.name, folder)


def _compare(bench: Bench, ready: ReadyNetwork, scans: Sequence[Scan], repeats: int, note: str) -> EndToEnd:
    """Run both commands in turns; ctseg alone if a note says why."""
    network = ready.network
    folder = bench.link(scans)
    programs: tuple[Program, ...] = ("ctseg",) if note else ("nnunet", "ctseg")
    runs: dict[Program, list[ProgramRun]] = {program: [] for program in programs}
    outputs: dict[Program, Path] = {}
    for turn in range(repeats):
        for program in programs if turn % 2 == 0 else programs[::-1]:
            prediction = _predict(bench, program, network, folder)
            outputs[program] = prediction.output
            runs[program].append(prediction.run)
            log.info("    %-6s %7.1f s  %7.0f MiB", program, prediction.run.wall_s, prediction.run.peak_mb)
    figures = {
        program: ProgramFigures(startup=ready.startups[program], runs=tuple(its_runs))
        for program, its_runs in runs.items()
    }
    cases = tuple(scan.case for scan in scans)
    agreement = None if note else agreement_of(outputs["nnunet"], outputs["ctseg"], cases, network.classes)
    for output in outputs.values():
        shutil.rmtree(output)
    return EndToEnd(
        model=network.name,
        network=network.kind,
        classes=network.classes,
        scans=cases,
        megavoxels=megavoxels(scans),
        nnunet=figures.get("nnunet"),
        ctseg=figures["ctseg"],
        agreement=agreement,
        note=note,
    )


def agreement_of(theirs: Path, ours: Path, cases: Sequence[str], classes: int) -> Agreement:
    """Compare two folders of label maps voxel by voxel.

    Args:
        theirs: Folder of ``<case>.nii.gz``.
        ours: Folder of the same cases.
        cases: Their names.
        classes: Labels are 0, the background, to ``classes - 1``.
    """
    equal = total = 0
    dices = []
    for case in cases:
        one, other = (_labels(folder / f"{case}.nii.gz") for folder in (theirs, ours))
        same = one == other
        equal += int(same.sum())
        total += one.size
        voxels = [np.bincount(labels.ravel(), minlength=classes) for labels in (one, other, one[same])]
        dices += [
            dice_of_counts(common, first, second)
            for first, second, common in np.transpose(voxels)[1:].tolist()
            if first + second >= 2 * LEAST_VOXELS_OF_A_DICE
        ]
    return Agreement(equal_share=equal / total, lowest_dice=min(dices, default=None))


def _labels(path: Path) -> npt.NDArray[np.int64]:
    return np.asarray(nib.nifti1.Nifti1Image.from_filename(path).dataobj).astype(np.int64)
