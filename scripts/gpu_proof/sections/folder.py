"""The same folder of scans by ``ctseg predict`` and by ``nnUNetv2_predict`` on the same device, in turns."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np

from benchmarks.experiments.commands import agreement_of
from benchmarks.models import Network, nnunet_program
from benchmarks.results import Agreement, Scan
from benchmarks.scans import link_scans, write_tiny_scan
from ctseg.serving.entries import list_models
from scripts.gpu_proof.bench import DEMO, DEMO_SCANS, SPACING_MM, Bench
from scripts.gpu_proof.rows import Teller
from scripts.gpu_proof.sections.build import entry_name

LARGE = (200, 512, 512)
"""(z, y, x) of a scan made by reflecting one of the demo's."""
MEDIUM = (192, 320, 320)
"""(z, y, x) of another, at the spacing of the networks with random weights: 32 windows, eight times mirrored."""
REHEARSED, REHEARSED_MEDIUM = (51, 80, 80), (16, 48, 48)
LEAST_SHARE_OF_WORK = 0.25
"""Of the start-up, under which its scatter is taken for work."""
_MARGIN = 1.3
"""How much more time has to be left than a turn took, for another."""
_LEAST_EQUAL, _LEAST_DICE = {"fp32": 0.9999, "fp16": 0.999}, {"fp32": 0.9995, "fp16": 0.999}
"""Against nnU-Net in float32; stock nnU-Net, which rounds logits to float16, is held to the second."""


@dataclass
class Runs:
    """Wall seconds of one program: with a scan of one window, and on the folder."""

    startup_s: float = 0.0
    wall_s: list[float] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median, start-up included."""
        return median(self.wall_s)

    @property
    def work_s(self) -> float | None:
        """Median without the start-up; None where the work is too short to tell beside it."""
        work = self.wall - self.startup_s
        return work if work > LEAST_SHARE_OF_WORK * self.startup_s else None


@dataclass(frozen=True)
class Job:
    """A network, its entries and its scans.

    Attributes:
        bundle: Name of its bundle.
        network: For nnU-Net's command.
        entries: Names of its entries, by precision.
        scans: To segment; the largest last.
        folder: Where they lie.
    """

    bundle: str
    network: Network
    entries: dict[str, str]
    scans: list[Scan]
    folder: Path


def run(bench: Bench, tell: Teller) -> None:
    """Compare labels and time with the demo's network, time alone with those of random weights."""
    models = list_models(bench.repository) if bench.repository.is_dir() else []
    if not bench.found.nnunet or not bench.found.triton or not models:
        lacks = "nnU-Net" if not bench.found.nnunet else "Triton" if not bench.found.triton else "an entry"
        tell.not_run("folders", f"{lacks} was not found")
        return
    (bench.scratch / "scans").mkdir(exist_ok=True)
    startups: dict[str, float] = {}
    again: tuple[Job, dict[str, Runs]] | None = None
    for name, network in ((DEMO, bench.demo), *((network.name, network) for network in bench.networks)):
        # with random weights FP16 is enough for the time: labels are near ties everywhere
        precisions = ("fp32", "fp16") if name == DEMO else ("fp16",)
        entries = {p: entry for p in precisions if (entry := entry_name(name, bench.device, p)) in models}
        if not entries:
            tell.not_run(f"a folder with {name}", "there is no entry of it")
            continue
        scans = _scans_of(bench, name)
        folder = link_scans(scans, bench.scratch / "scans", bench.scratch / "in" / name)
        job = Job(name, network, entries, scans, folder)
        with tell.attempt(f"a folder with {name}"):
            programs = _compare(bench, tell, job, startups)
            if name == DEMO and not bench.rehearse:
                again = job, programs
    if again is not None:
        with tell.attempt(f"a folder with {DEMO}, second turn"):
            _compare_again(bench, tell, *again)


def _scans_of(bench: Bench, name: str) -> list[Scan]:
    """Return the scans of a network; those that are not there yet are made from the demo's."""
    folder = bench.scratch / "scans"
    files = sorted(DEMO_SCANS.glob("*_0000.nii.gz"))
    if bench.rehearse:
        return [_reshaped(files[0], folder, f"cut_{name}", REHEARSED if name == DEMO else REHEARSED_MEDIUM)]
    if name != DEMO:
        return [_reshaped(files[0], folder, "medium", MEDIUM, SPACING_MM)]
    small = [_reshaped(file, folder, file.name.removesuffix("_0000.nii.gz")) for file in files]
    return [*small, _reshaped(files[0], folder, "large", LARGE)]


def _reshaped(
    file: Path,
    folder: Path,
    name: str,
    shape: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
) -> Scan:
    """Write a scan cut, or continued by reflection, to a shape (z, y, x), perhaps with another spacing said of it."""
    image = nib.nifti1.Nifti1Image.from_filename(file)
    voxels = np.asarray(image.dataobj).transpose(2, 1, 0)
    z, y, x = shape or voxels.shape
    missing = [(0, max(0, size - have)) for size, have in zip((z, y, x), voxels.shape, strict=True)]
    reshaped = np.ascontiguousarray(np.pad(voxels, missing, "symmetric")[:z, :y, :x].transpose(2, 1, 0))
    steps = spacing_mm or tuple(float(size) for size in image.header.get_zooms()[::-1])
    affine = image.affine if spacing_mm is None else np.diag([-steps[2], -steps[1], steps[0], 1.0])
    nib.save(nib.nifti1.Nifti1Image(reshaped, affine), folder / f"{name}_0000.nii.gz")
    return Scan(case=name, shape=(z, y, x), spacing_mm=(steps[0], steps[1], steps[2]), origin=file.name)


def _compare(bench: Bench, tell: Teller, job: Job, startups: dict[str, float]) -> dict[str, Runs]:
    """Tell each time as it is measured, then what the times and the labels come to; return the runs."""
    programs = {"nnunet": Runs(), **{precision: Runs() for precision in job.entries}}
    out = bench.scratch / "out"
    for name, runs in programs.items():
        if name not in startups:  # hardly the network's: measured once
            write_tiny_scan(next(iter(sorted(DEMO_SCANS.glob("*.nii.gz")))), bench.scratch / "tiny")
            startups[name] = _predict(bench, job, name, bench.scratch / "tiny", out / f"{name}_tiny")
            tell.ok(f"{_program(name)}: start-up, with one window", f"{startups[name]:.1f} s", wall_s=startups[name])
        runs.startup_s = startups[name]
    for name, runs in programs.items():
        _take_turn(bench, tell, job, name, runs)
    _tell_times(tell, job, programs)
    if job.bundle == DEMO:
        _tell_labels(bench, tell, job, programs)
    return programs


def _compare_again(bench: Bench, tell: Teller, job: Job, programs: dict[str, Runs]) -> None:
    """Take a second turn, the other way round, if there is time for it."""
    needed_s = _MARGIN * sum(runs.wall for runs in programs.values())
    if bench.left_s < needed_s:
        why = f"it would take {needed_s:.0f} s, {bench.left_s:.0f} s are left"
        tell.not_run(f"a folder with {job.bundle}, second turn", why)
        return
    for name in reversed(programs):
        _take_turn(bench, tell, job, name, programs[name])
    _tell_times(tell, job, programs)


def _take_turn(bench: Bench, tell: Teller, job: Job, name: str, runs: Runs) -> None:
    turn = len(runs.wall_s) + 1
    output = bench.scratch / "out" / f"{job.bundle}_{name}_{turn}"
    wall_s = _predict(bench, job, name, job.folder, output)
    runs.wall_s.append(wall_s)
    runs.outputs.append(output)
    tell.ok(f"{job.bundle}, {_program(name)}: turn {turn}", f"{wall_s:.1f} s", wall_s=wall_s)


def _program(name: str) -> str:
    return "nnU-Net" if name == "nnunet" else f"ctseg, {name}"


def _tell_labels(bench: Bench, tell: Teller, job: Job, programs: dict[str, Runs]) -> None:
    """Compare labels with stock nnU-Net, and those of the scans as they came with nnU-Net in float32."""
    every = [scan.case for scan in job.scans]
    given = [case for case in every if case != "large"]
    what = f"{job.bundle}, {{}}: labels beside"
    for precision in job.entries:  # first what needs no further run
        agreement = agreement_of(
            programs["nnunet"].outputs[-1], programs[precision].outputs[-1], every, job.network.classes
        )
        _judge_labels(tell, f"{what.format(precision)} stock nnU-Net, {len(every)} scans", agreement, "fp16")
    with tell.attempt(f"{job.bundle}: nnU-Net in float32"):
        reference = _in_float32(bench, job, given)
        for precision in job.entries:
            agreement = agreement_of(reference, programs[precision].outputs[-1], given, job.network.classes)
            named = f"{what.format(precision)} nnU-Net in float32, {len(given)} scans"
            _judge_labels(tell, named, agreement, precision)


def _predict(bench: Bench, job: Job, name: str, scans: Path, output: Path) -> float:
    """Run one program over a folder; return its wall seconds."""
    if name == "nnunet":
        words: list[str | Path] = [nnunet_program("nnUNetv2_predict"), "-i", scans, "-o", output]
        words += ["-d", job.network.dataset, "-tr", job.network.trainer, "-c", "3d_fullres", "-f", "0"]
        return bench.run([*words, "-device", bench.torch_device]).wall_s
    words = ["predict", "-i", scans, "-o", output, "-m", job.entries[name], "--repository", bench.repository]
    return bench.ctseg(*words).wall_s


def _tell_times(tell: Teller, job: Job, programs: dict[str, Runs]) -> None:
    theirs = programs["nnunet"]
    size = f"{len(job.scans)} scans, the largest {' x '.join(map(str, job.scans[-1].shape))}"
    for precision, ours in programs.items():
        if precision == "nnunet":
            continue
        figures = {
            "nnunet_wall_s": theirs.wall,
            "ctseg_wall_s": ours.wall,
            "nnunet_startup_s": theirs.startup_s,
            "ctseg_startup_s": ours.startup_s,
        }
        without = "too short to tell without start-up"
        if theirs.work_s and ours.work_s:
            figures["ratio_without_startup"] = theirs.work_s / ours.work_s
            without = f"without start-up {theirs.work_s / ours.work_s:.2f} x"
        tell.ok(
            f"{job.bundle}, {precision}: {size}, mirrored",
            f"nnU-Net {theirs.wall:.1f} s ({theirs.startup_s:.1f} s of it start-up), ctseg {ours.wall:.1f} s "
            f"({ours.startup_s:.1f} s): {theirs.wall / ours.wall:.2f} x, {without}; {len(ours.wall_s)} runs",
            "",
            **figures,
        )


def _judge_labels(tell: Teller, what: str, agreement: Agreement, limit: str) -> None:
    least_dice, least_equal = _LEAST_DICE[limit], _LEAST_EQUAL[limit]
    dice = agreement.lowest_dice
    holds = agreement.equal_share >= least_equal and (dice is None or dice >= least_dice)
    tell.judge(
        what,
        holds,
        f"{agreement.equal_share:.4%} of voxels equal, lowest Dice {'of none' if dice is None else f'{dice:.5f}'}",
        f"at least {least_equal:.2%}, Dice {least_dice}",
        equal_share=agreement.equal_share,
        **({} if dice is None else {"lowest_dice": dice}),
    )


def _in_float32(bench: Bench, job: Job, cases: list[str]) -> Path:
    """Segment scans by nnU-Net's predictor with float32 accumulators and logits; return the folder of labels."""
    output = bench.scratch / "out" / "float32"
    words = {
        "trained": str(bench.trained(job.network)),
        "files": [str(job.folder / f"{case}_0000.nii.gz") for case in cases],
        "output": str(output),
        "device": bench.torch_device,
    }
    bench.python(f"from scripts.gpu_proof.float32_reference import segment; segment(**{json.dumps(words)})")
    return output
