"""The benchmark's order of things: scans, models, whole commands, floor, functions, budgets, page."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import psutil

from benchmarks.budgets import budgets_of
from benchmarks.experiments.functions import Job, Worker, sample_of
from benchmarks.experiments.replay import ReplayJob, ReplayResult
from benchmarks.experiments.trace import TraceJob, draw, read_server_log, read_spans, trace_of
from benchmarks.measured_process import Measured, run_measured
from benchmarks.models import (
    SPACING_MM,
    Network,
    ctseg_command,
    nnunet_environment,
    nnunet_program,
    serve_network,
    trained_folder,
    write_recorder,
    write_sleeper,
)
from benchmarks.page import IDLE_CPUS, page_of
from benchmarks.results import (
    JSON_NAME,
    LEAST_VOXELS_OF_A_DICE,
    PAGE_NAME,
    TRACE_NAME,
    Agreement,
    BenchmarkResult,
    EndToEnd,
    Floor,
    Machine,
    Memory,
    Micro,
    Problem,
    Program,
    ProgramFigures,
    ProgramRun,
    ReplayRun,
    Scan,
    StageSums,
    StartUp,
    Trace,
)
from benchmarks.scans import AS_GIVEN, collect_scans, link_scans, megavoxels, scan_file, write_tiny_scan
from ctseg.errors import CtsegError, OutputError, SetupError
from ctseg.files.atomic import write_text
from ctseg.numerics.resample import compute_new_shape
from ctseg.predict.report import REPORT_NAME, Report

Mode = Literal["tiny", "quick", "standard", "full"]

NNUNET_EXPORT_S_PER_CLASS_VOXEL = 8e-8
"""On two cores; decides only how large a volume nnU-Net's export is asked to take."""
NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL = 10
IDLE_WATCH_S = 3.0
_SERVER_READY = "tritonserver ("
_CLIENT_MODULES = "ctseg.cli.main, ctseg.cli.predict, ctseg.predict.folder, ctseg.files.cases, ctseg.triton.predictor"
_VERSIONS = (
    "ctseg", "nnunetv2", "torch", "monai", "onnxruntime", "openvino", "numpy", "numba", "scipy", "scikit-image",
    "tritonclient", "nvidia-pytriton",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A network, and the scans that both commands segment with it in one go.

    Attributes:
        network: What runs.
        small: How many of the small scans.
        large: Names of the large ones. Those that nnU-Net cannot hold in memory, ctseg segments alone.
        repeats: Runs of each command.
    """

    network: Network
    small: int
    large: tuple[str, ...]
    repeats: int


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rows: Whole commands.
        more_scans: Make scans from those given, see :func:`collect_scans`.
        startup_repeats: Runs of each command on the scan of one window.
        sleeps_ms: Milliseconds a window, with how often the small scans are repeated in the folder.
        real_copies: How often they are repeated for the real networks.
        ways: See :class:`ReplayJob`.
        probe_windows: See :class:`ReplayJob`.
        floor_repeats: Replays and folders of each model.
        micro_classes: Heads of the logits that are blended and exported.
        micro_runs: Runs of each function, if nnU-Net's is quick.
        largest_export_s: nnU-Net's export is given a volume that takes it about so long.
        largest_export_bytes: And at most so much memory.
        trace_sleep_ms: Milliseconds a window of the sleeping model whose folder is drawn; None draws nothing.
        minutes: No step starts later; None: no limit.
        timeout_s: Longest time for one command; None: no limit.
    """

    rows: tuple[Row, ...]
    more_scans: bool
    startup_repeats: int
    sleeps_ms: tuple[tuple[float, int], ...]
    real_copies: int
    ways: tuple[tuple[int, int], ...]
    probe_windows: int
    floor_repeats: int
    micro_classes: tuple[int, ...]
    micro_runs: int
    largest_export_s: float
    largest_export_bytes: float
    trace_sleep_ms: float | None
    minutes: float | None
    timeout_s: float | None


_UNET_PATCH = (48, 128, 128)
_TINY = Network("U-Net", 3, (16, 32, 32), 901)
_UNET2 = Network("U-Net", 2, _UNET_PATCH, 901)
_SWIN2 = Network("Swin UNETR", 2, (64, 64, 64), 902)
_UNET25 = Network("U-Net", 25, _UNET_PATCH, 903)
_UNET118 = Network("U-Net", 118, _UNET_PATCH, 904)
_ALL = 1000

SIZES: dict[Mode, Sizes] = {
    "tiny": Sizes(
        rows=(Row(_TINY, 1, (), 1),),
        more_scans=False,
        startup_repeats=1,
        sleeps_ms=((5.0, 1),),
        real_copies=1,
        ways=((2, 0),),
        probe_windows=2,
        floor_repeats=1,
        micro_classes=(3,),
        micro_runs=1,
        largest_export_s=0.02,
        largest_export_bytes=1e8,
        trace_sleep_ms=5.0,
        minutes=None,
        timeout_s=300.0,
    ),
    "quick": Sizes(
        rows=(Row(_UNET2, 3, ("chest",), 2), Row(_SWIN2, 2, (), 2), Row(_UNET25, 0, ("chest",), 2)),
        more_scans=False,
        startup_repeats=1,
        sleeps_ms=((350.0, 2), (100.0, 8), (25.0, 8)),
        real_copies=1,
        ways=((2, 0), (4, 0), (2, 1)),
        probe_windows=8,
        floor_repeats=1,
        micro_classes=(2, 25, 118),
        micro_runs=2,
        largest_export_s=8.0,
        largest_export_bytes=6e9,
        trace_sleep_ms=100.0,
        minutes=12.0,
        timeout_s=240.0,
    ),
    "standard": Sizes(
        rows=(
            Row(_UNET2, 9, ("chest",), 2),
            Row(_SWIN2, 9, ("chest",), 1),
            Row(_UNET2, 0, ("long",), 2),
            Row(_UNET25, 3, ("chest",), 2),
            Row(_UNET118, 3, (), 2),
            Row(_SWIN2, 0, ("long",), 1),
            Row(_UNET118, 0, ("chest",), 1),
            Row(_UNET25, 0, ("long",), 1),
            Row(_UNET118, 0, ("long",), 1),
        ),
        more_scans=True,
        startup_repeats=1,
        sleeps_ms=((350.0, 2), (100.0, 8), (25.0, 8)),
        real_copies=3,
        ways=((2, 0), (4, 0), (2, 1)),
        probe_windows=8,
        floor_repeats=2,
        micro_classes=(2, 25, 118),
        micro_runs=2,
        largest_export_s=8.0,
        largest_export_bytes=6e9,
        trace_sleep_ms=100.0,
        minutes=None,
        timeout_s=1200.0,
    ),
    "full": Sizes(
        rows=tuple(
            Row(network, _ALL, ("chest", "chest_mirrored", "long"), 3)
            for network in (_UNET2, _SWIN2, _UNET25, _UNET118)
        ),
        more_scans=True,
        startup_repeats=3,
        sleeps_ms=((350.0, 8), (100.0, 12), (25.0, 16)),
        real_copies=3,
        ways=((1, 0), (2, 0), (3, 0), (4, 0), (2, 1), (4, 1)),
        probe_windows=16,
        floor_repeats=3,
        micro_classes=(2, 25, 118),
        micro_runs=3,
        largest_export_s=60.0,
        largest_export_bytes=12e9,
        trace_sleep_ms=100.0,
        minutes=None,
        timeout_s=None,
    ),
}


@dataclass
class _Found:
    """What has been measured so far."""

    startup: StartUp | None = None
    end_to_end: list[EndToEnd] = field(default_factory=list)
    floor: list[Floor] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    micro: list[Micro] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def run_benchmark(
    scans: Path,
    output: Path,
    *,
    mode: Mode = "standard",
    large: Path | None = None,
    minutes: float | None = None,
    report: Callable[[str], None] = print,
) -> BenchmarkResult:
    """Measure ctseg beside nnU-Net on this machine, and write ``benchmark.json`` and ``benchmark.md``.

    A step that fails is named in the result, and the others go on. The files are written after every step.

    Args:
        scans: Folder of CT scans, ``<case>_0000.nii.gz``.
        output: Folder for the results; made if missing.
        mode: How much is measured.
        large: A CT of a whole chest.
        minutes: No step starts later; None: as the mode says.
        report: Takes lines that say how it goes.

    Raises:
        SetupError: Not on Linux, or nnU-Net is not installed.
        InputError: There is no scan.
        OutputError: The results cannot be written.
    """
    if platform.system() != "Linux":
        raise SetupError(f"the benchmark measures processes as Linux shows them, this is {platform.system()}")
    if shutil.which(str(nnunet_program("nnUNetv2_predict"))) is None:
        raise SetupError("nnUNetv2_predict is not installed: pip install 'ctseg[benchmark]'")
    with tempfile.TemporaryDirectory(prefix="ctseg-benchmark-") as scratch:
        benchmark = _Benchmark(Path(scratch), output, mode, report, minutes)
        return benchmark.run(scans, large)


class _Benchmark:
    """Holds what all steps share."""

    def __init__(
        self, scratch: Path, output: Path, mode: Mode, report: Callable[[str], None], minutes: float | None
    ) -> None:
        self._root = scratch
        self._output = output
        self._mode = mode
        self._sizes = SIZES[mode] if minutes is None else replace(SIZES[mode], minutes=minutes)
        self._report = report
        self._found = _Found()
        self._started = time.monotonic()
        self._date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._machine = _machine()
        self._scans: list[Scan] = []
        self._startups: dict[tuple[str, Program], tuple[ProgramRun, ...]] = {}
        self._environment = nnunet_environment(scratch)
        if mode != "tiny":  # an empty cache of our own, so that compiling can be measured; it takes long
            self._environment["NUMBA_CACHE_DIR"] = str(scratch / "kernels")
        self._serial = 0

    def run(self, folder: Path, large: Path | None) -> BenchmarkResult:
        """Run all steps."""
        sizes, root = self._sizes, self._root
        scans = root / "scans"
        small, big = collect_scans(folder, scans, large, more=sizes.more_scans)
        big = [scan for scan in big if any(scan.case in row.large for row in sizes.rows)]
        self._scans = [*small, *big]
        tiny = write_tiny_scan(scan_file(small[0], scans), root / "tiny")
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            (root / name).mkdir()
        if large is None and any(row.large for row in sizes.rows):
            message = "left out: a CT of a whole chest is named by --large"
            self._found.problems.append(Problem(step="chest and long scan", message=message, is_failure=False))
        if self._machine.busy_cpus > IDLE_CPUS:
            self._report(f"WARNING: the machine is not idle: {self._machine.busy_cpus:.1f} CPUs are busy")
        self._step("start-up", self._measure_startup)
        ready: list[Network] = []
        first = sizes.rows[:2]
        for row in first:
            self._make_and_compare(row, small, big, tiny, ready)
        self._measure_functions(small, big)
        given = [scan for scan in small if scan.origin == AS_GIVEN]
        if ready:  # the last has the smallest patch, so the most windows
            for sleep_ms, copies in sizes.sleeps_ms:
                name = f"floor, {sleep_ms:g} ms a window"
                self._step(name, partial(self._sleeping, ready[-1], sleep_ms, given, copies))
        for network in list(ready):
            self._step(
                f"floor, {network.name}", partial(self._floor, network.name, given, None, copies=sizes.real_copies)
            )
        if ready and sizes.trace_sleep_ms is not None:
            self._step("trace", partial(self._trace, list(ready), sizes.trace_sleep_ms, given))
        for row in sizes.rows[2:]:
            self._make_and_compare(row, small, big, tiny, ready)
        return self._write()

    def _make_and_compare(
        self, row: Row, small: Sequence[Scan], big: Sequence[Scan], tiny: Scan, ready: list[Network]
    ) -> None:
        network = row.network
        large = [scan for scan in big if scan.case in row.large]
        if not small[: row.small] and not large:
            return
        if network not in ready:
            self._step(f"model {network.name}", partial(self._make, network, tiny, ready))
        if network not in ready:
            return
        bearable = [scan for scan in large if self._export_bytes(scan, network) < self._bearable_bytes]
        if both := [*small[: row.small], *bearable]:
            self._step(f"{network.name} on {_names(both)}", partial(self._compare, network, both, row.repeats))
        for scan in large:
            if scan not in bearable:
                note = (
                    f"nnU-Net would need about {self._export_bytes(scan, network) / 1e9:.0f} GB for the logits of "
                    f"{scan.case}: left out above {self._bearable_bytes / 1e9:.0f} GB"
                )
                name = f"{network.name} on {scan.case}, ctseg alone"
                self._step(name, partial(self._compare, network, [scan], row.repeats, note))

    @property
    def _bearable_bytes(self) -> float:
        """What nnU-Net may take without putting the machine at risk."""
        return 0.6 * self._machine.memory_gb * 1e9

    def _export_bytes(self, scan: Scan, network: Network) -> float:
        return NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL * network.classes * float(np.prod(scan.shape))

    def _step(self, name: str, step: Callable[[], object]) -> None:
        """Run a step; a failure is kept, and the results so far are written."""
        minutes = (time.monotonic() - self._started) / 60
        if self._sizes.minutes is not None and minutes > self._sizes.minutes:
            self._found.problems.append(
                Problem(step=name, message=f"left out: {self._sizes.minutes:g} minutes were over", is_failure=False)
            )
            return
        self._report(f"[{minutes:5.1f} min] {name}")
        try:
            step()
        except CtsegError as error:
            self._report(f"  FAILED: {error}")
            self._found.problems.append(Problem(step=name, message=f"{type(error).__name__}: {error}", is_failure=True))
        self._write()

    def _command(
        self, words: Sequence[str | Path], watch: Sequence[Path] = (), marker: str = ""
    ) -> tuple[Measured, float | None]:
        return run_measured(
            words, environment=self._environment, timeout_s=self._sizes.timeout_s, watch=watch, marker=marker
        )

    # --- start-up and models

    def _measure_startup(self) -> None:
        words = [sys.executable, "-c", f"import {_CLIENT_MODULES}, sys; print('torch' in sys.modules)"]
        imports = [self._command(words)[0] for _ in range(1 if self._mode == "tiny" else 3)]
        words = [
            sys.executable,
            "-c",
            "import time; from ctseg.compiled.loading import load_kernels; from ctseg.numerics import KERNEL_MODULES; "
            "t = time.perf_counter(); [load_kernels(name) for name in KERNEL_MODULES]; "
            "print(time.perf_counter() - t)",
        ]
        compiled, loaded = (float(self._command(words)[0].output.splitlines()[-1]) for _ in range(2))
        self._found.startup = StartUp(
            client_import_s=tuple(item.wall_s for item in imports),
            client_imports_torch="True" in imports[0].output,
            first_compile_s=compiled,
            load_kernels_s=loaded,
        )

    def _make(self, network: Network, tiny: Scan, ready: list[Network]) -> None:
        code = (
            "from pathlib import Path; from benchmarks.models import Network, write_trained_folder; "
            f"write_trained_folder(Path({str(self._root)!r}), {network!r})"
        )
        self._command([sys.executable, "-c", code])
        if not (trained_folder(self._root, network) / "fold_0" / "checkpoint_final.pth").is_file():
            raise SetupError(f"{network.name}: no checkpoint was written")
        serve_network(self._root, network, scan_file(tiny, self._root / "tiny"), timeout_s=self._sizes.timeout_s)
        folder = self._root / "tiny"
        if not ready and self._mode != "tiny":  # once, so that what is measured later finds its files in memory
            self._nnunet(network, folder)
            self._ctseg(network.name, folder)
        runs: dict[Program, list[ProgramRun]] = {"nnunet": [], "ctseg": []}
        for _ in range(self._sizes.startup_repeats):
            runs["nnunet"].append(self._nnunet(network, folder)[0])
            runs["ctseg"].append(self._ctseg(network.name, folder)[0])
        for program, its_runs in runs.items():
            self._startups[network.name, program] = tuple(its_runs)
        ready.append(network)

    # --- whole commands

    def _new_folder(self, name: str) -> Path:
        self._serial += 1
        return self._root / "out" / f"{self._serial:03d}_{name}"

    def _nnunet(self, network: Network, folder: Path) -> tuple[ProgramRun, Path]:
        output = self._new_folder("nnunet")
        words: list[str | Path] = [
            nnunet_program("nnUNetv2_predict"),
            "-i",
            folder,
            "-o",
            output,
            "-d",
            network.dataset,
        ]
        words += ["-tr", network.trainer, "-c", "3d_fullres", "-f", "0", "-device", "cpu", "--disable_tta"]
        measured, _ = self._command(words)
        run = ProgramRun(
            wall_s=measured.wall_s, cpu_s=measured.cpu_s, client_cpu_s=measured.client_cpu_s, peak_mb=measured.peak_mb
        )
        return run, output

    def _ctseg(self, model: str, folder: Path) -> tuple[ProgramRun, Path]:
        output = self._new_folder("ctseg")
        path = output / REPORT_NAME
        words: list[str | Path] = [
            "predict",
            "-i",
            folder,
            "-o",
            output,
            "-m",
            model,
            "--repository",
            self._root / "repository",
        ]
        measured, ready_s = self._command(ctseg_command(*words, "--disable_tta"), [path], _SERVER_READY)
        report = Report.model_validate_json(path.read_bytes())
        ended_s = path.stat().st_mtime - measured.started
        run = ProgramRun(
            wall_s=measured.wall_s,
            cpu_s=measured.cpu_s,
            client_cpu_s=measured.client_cpu_s,
            peak_mb=measured.peak_mb,
            windows=sum(case.windows for case in report.cases),
            bytes_sent=sum(case.bytes_sent for case in report.cases),
            bytes_received=sum(case.bytes_received for case in report.cases),
            server_start_s=ready_s,
            folder_s=max(ended_s - measured.watched_s[path], 1e-3) if path in measured.watched_s else None,
            stages=StageSums(
                read=sum(case.seconds.read for case in report.cases),
                prepare=sum(case.seconds.prepare for case in report.cases),
                network=sum(case.seconds.network for case in report.cases),
                restore=sum(case.seconds.restore for case in report.cases),
                write=sum(case.seconds.write for case in report.cases),
            ),
        )
        return run, output

    def _compare(self, network: Network, scans: Sequence[Scan], repeats: int, note: str = "") -> None:
        """Run both commands in turns; ctseg alone if a note says why."""
        folder = link_scans(scans, self._root / "scans", self._new_folder("in"))
        programs: tuple[Program, ...] = ("ctseg",) if note else ("nnunet", "ctseg")
        runs: dict[Program, list[ProgramRun]] = {program: [] for program in programs}
        outputs: dict[Program, Path] = {}
        for turn in range(repeats):
            for program in programs if turn % 2 == 0 else programs[::-1]:
                run, outputs[program] = (
                    self._nnunet(network, folder) if program == "nnunet" else self._ctseg(network.name, folder)
                )
                runs[program].append(run)
                self._report(f"    {program:6} {run.wall_s:7.1f} s  {run.peak_mb:7.0f} MiB")
        figures = {
            program: ProgramFigures(startup=self._startups[network.name, program], runs=tuple(its_runs))
            for program, its_runs in runs.items()
        }
        agreement = None if note else _agreement(outputs["nnunet"], outputs["ctseg"], scans, network.classes)
        self._found.end_to_end.append(
            EndToEnd(
                model=network.name,
                network=network.kind,
                classes=network.classes,
                scans=tuple(scan.case for scan in scans),
                megavoxels=megavoxels(scans),
                nnunet=figures.get("nnunet"),
                ctseg=figures["ctseg"],
                agreement=agreement,
                note=note,
            )
        )
        for output in outputs.values():
            shutil.rmtree(output)

    # --- the floor

    def _sleeping(self, network: Network, sleep_ms: float, scans: Sequence[Scan], copies: int) -> None:
        model = write_sleeper(self._root / "repository", network.name, sleep_ms)
        self._floor(model, scans, sleep_ms, copies=copies, network=network)

    def _floor(
        self,
        model: str,
        scans: Sequence[Scan],
        sleep_ms: float | None,
        *,
        copies: int = 1,
        network: Network | None = None,
    ) -> None:
        folder = link_scans(scans, self._root / "scans", self._new_folder("in"), copies=copies)
        job = ReplayJob(
            repository=str(self._root / "repository"),
            model=model,
            scans=str(folder),
            ways=self._sizes.ways,
            probe_windows=self._sizes.probe_windows,
        )
        replays: list[ReplayRun] = []
        folders: list[ProgramRun] = []
        windows = 0
        for _ in range(self._sizes.floor_repeats):
            measured, _ready = self._command(
                [sys.executable, "-m", "benchmarks.experiments.replay", job.model_dump_json()]
            )
            result = ReplayResult.model_validate_json(measured.output.strip().splitlines()[-1])
            replays.append(result.run)
            windows = result.windows
            folders.append(self._ctseg(model, folder)[0])
        startup = self._startups[network.name if network else model, "ctseg"]
        row = Floor(
            model=model,
            sleep_ms=sleep_ms,
            scans=len(scans) * copies,
            megavoxels=megavoxels(scans) * copies,
            windows=windows,
            replays=tuple(replays),
            folders=tuple(folders),
            startup_client_cpu_s=float(np.median([run.client_cpu_s for run in startup])),
        )
        self._report(f"    replay {row.replay_s:.2f} s, folder {row.folder_s:.2f} s: {row.ratio:.3f}")
        self._found.floor.append(row)

    def _trace(self, networks: Sequence[Network], sleep_ms: float, scans: Sequence[Scan]) -> None:
        """Draw what client and server do while a folder is segmented."""
        repository = self._root / "repository"
        sleeper = f"{networks[-1].name}-sleep{sleep_ms:g}"
        if not (repository / sleeper).is_dir():
            write_sleeper(repository, networks[-1].name, sleep_ms)
        for like, sleeping in ((sleeper, sleep_ms), *((network.name, None) for network in networks)):
            folder = link_scans(scans, self._root / "scans", self._new_folder("in"), copies=2)
            log, spans = self._root / f"{like}.log", self._root / f"{like}.spans"
            model = write_recorder(repository, like, log)
            output = self._new_folder("ctseg")
            words = ("predict", "-i", folder, "-o", output, "-m", model, "--repository", repository, "--disable_tta")
            job = TraceJob(words=tuple(map(str, words)), spans=str(spans))
            measured, _ready = self._command(
                [sys.executable, "-m", "benchmarks.experiments.trace", job.model_dump_json()]
            )
            report = Report.model_validate_json((output / REPORT_NAME).read_bytes())
            trace = trace_of(
                like, sleeping, read_spans(spans), read_server_log(log),
                windows=sum(case.windows for case in report.cases), client_cpu_s=measured.client_cpu_s,
            )  # fmt: skip
            self._report(f"    {like}: server busy {trace.busy_share:.1%} of {trace.folder_s:.2f} s")
            self._found.traces.append(trace)
        self._output.mkdir(parents=True, exist_ok=True)
        draw(self._found.traces, self._output / TRACE_NAME)

    # --- functions

    def _measure_functions(self, small: Sequence[Scan], big: Sequence[Scan]) -> None:
        chest = (big or small)[0]
        patch = self._sizes.rows[0].network.patch_size
        with ExitStack() as stack:
            workers: dict[Program, Worker] = {}

            def start() -> None:
                workers["nnunet"] = stack.enter_context(Worker("nnunet", self._environment))
                workers["ctseg"] = stack.enter_context(Worker("ctseg", self._environment))

            self._step("functions", start)
            if len(workers) < 2:
                return
            for scan in [small[0], *(scan for scan in big if "mirrored" not in scan.origin)]:
                job = Job(
                    function="prepare",
                    patch_size=patch,
                    scan=str(scan_file(scan, self._root / "scans")),
                    target_shape=scan.shape,
                    source_shape=scan.shape,
                    runs=self._sizes.micro_runs,
                    sample="",
                )
                self._step(f"preparing {scan.case}", partial(self._function, workers, job, ""))
            for classes in self._sizes.micro_classes:
                shape, note = self._export_shape(chest, classes)
                source = compute_new_shape(shape, chest.spacing_mm, SPACING_MM)
                padded = (max(source[0], patch[0]), max(source[1], patch[1]), max(source[2], patch[2]))
                job = Job(
                    function="export", classes=classes, patch_size=patch, source_shape=source, target_shape=shape,
                    spacing_mm=chest.spacing_mm, runs=self._sizes.micro_runs if not note else 1, sample="",
                )  # fmt: skip
                self._step(f"export of {classes} classes", partial(self._function, workers, job, note))
                job = job.model_copy(update={"function": "blend", "source_shape": padded, "target_shape": padded})
                self._step(f"blending {classes} classes", partial(self._function, workers, job, note))
                for scan in [chest, *big[-1:]] if len(big) > 1 else [chest]:
                    memory = job.model_copy(
                        update={"function": "memory", "scan": str(scan_file(scan, self._root / "scans")), "runs": 1}
                    )
                    name = f"memory of {classes} classes, {scan.case}"
                    self._step(name, partial(self._memory, workers["ctseg"], memory, scan))

    def _export_shape(self, scan: Scan, classes: int) -> tuple[tuple[int, int, int], str]:
        """Return the grid on which nnU-Net's export takes neither too long nor too much memory."""
        sizes = self._sizes
        voxels = min(
            sizes.largest_export_s / (NNUNET_EXPORT_S_PER_CLASS_VOXEL * classes),
            sizes.largest_export_bytes / (NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL * classes),
        )
        whole = float(np.prod(scan.shape))
        if voxels >= whole:
            return scan.shape, ""
        factor = (voxels / whole) ** (1 / 3)
        depth, rows, columns = (max(8, round(size * factor)) for size in scan.shape)
        note = f"smaller than {'x'.join(map(str, scan.shape))}: nnU-Net takes too long or too much memory for that"
        return (depth, rows, columns), note

    def _function(self, workers: dict[Program, Worker], job: Job, note: str) -> None:
        """Run a function of both programs, run by run in turns."""
        seconds: dict[Program, list[float]] = {"nnunet": [], "ctseg": []}
        extra = dict.fromkeys(seconds, 0.0)
        samples: dict[Program, Path] = {program: self._root / f"sample_{program}.npy" for program in seconds}
        for turn in range(job.runs):
            for program in ("nnunet", "ctseg") if turn % 2 == 0 else ("ctseg", "nnunet"):
                once = job.model_copy(update={"runs": 1, "sample": str(samples[program])})
                result = workers[program].run(once)
                seconds[program] += result.seconds
                extra[program] = max(extra[program], result.extra_mb)
        mine, theirs = sample_of(samples["ctseg"]), sample_of(samples["nnunet"])
        target = job.target_shape
        if job.function == "prepare":
            target = (theirs.shape[1], theirs.shape[2], theirs.shape[3])
        close = mine == theirs if job.function == "export" else np.isclose(mine, theirs, rtol=1e-2, atol=1e-3)
        row = Micro.model_validate(
            {
                "function": job.function,
                "classes": None if job.function == "prepare" else job.classes,
                "source_shape": job.source_shape,
                "target_shape": target,
                "nnunet_s": tuple(seconds["nnunet"]),
                "ctseg_s": tuple(seconds["ctseg"]),
                "nnunet_extra_mb": extra["nnunet"],
                "ctseg_extra_mb": extra["ctseg"],
                "equal_share": float(np.mean(close)),
                "note": note,
            }
        )
        self._report(f"    nnU-Net {min(row.nnunet_s):.3f} s, ctseg {min(row.ctseg_s):.3f} s: {row.speedup:.1f} x")
        self._found.micro.append(row)

    def _memory(self, worker: Worker, job: Job, scan: Scan) -> None:
        result = worker.run(job.model_copy(update={"sample": str(self._root / "sample_memory.npy")}))
        self._report(f"    {result.extra_mb:.0f} MiB of {result.allowed_mb:.0f}")
        self._found.memory.append(
            Memory(
                classes=job.classes,
                scan_shape=scan.shape,
                patch_size=job.patch_size,
                peak_mb=result.extra_mb,
                allowed_mb=result.allowed_mb,
            )
        )

    # --- the result

    def _write(self) -> BenchmarkResult:
        found = self._found
        result = BenchmarkResult(
            mode=self._mode,
            started=self._date,
            seconds=time.monotonic() - self._started,
            machine=self._machine,
            versions=_versions(),
            scans=tuple(self._scans),
            startup=found.startup,
            end_to_end=tuple(found.end_to_end),
            floor=tuple(found.floor),
            traces=tuple(found.traces),
            micro=tuple(found.micro),
            memory=tuple(found.memory),
            budgets=budgets_of(found.startup, found.end_to_end, found.floor, found.micro, found.memory),
            problems=tuple(found.problems),
        )
        try:
            self._output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._output}: cannot be made: {error.strerror or error}") from error
        write_text(self._output / JSON_NAME, result.model_dump_json(indent=2) + "\n")
        write_text(self._output / PAGE_NAME, page_of(result))
        return result


def _agreement(theirs: Path, ours: Path, scans: Sequence[Scan], classes: int) -> Agreement:
    equal = total = 0
    dices = []
    for scan in scans:
        both = [
            np.asarray(nib.nifti1.Nifti1Image.from_filename(folder / f"{scan.case}.nii.gz").dataobj)
            for folder in (theirs, ours)
        ]
        equal += int((both[0] == both[1]).sum())
        total += both[0].size
        counts = [np.bincount(labels.astype(np.int64).ravel(), minlength=classes) for labels in both]
        shared = np.bincount(both[0][both[0] == both[1]].astype(np.int64), minlength=classes)
        sums = counts[0] + counts[1]
        dices += [
            2 * int(shared[label]) / int(sums[label])
            for label in range(1, classes)
            if sums[label] >= 2 * LEAST_VOXELS_OF_A_DICE
        ]
    return Agreement(equal_share=equal / total, lowest_dice=min(dices, default=None))


def _names(scans: Sequence[Scan]) -> str:
    return scans[0].case if len(scans) == 1 else f"{len(scans)} scans"


def _machine() -> Machine:
    names = {
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return Machine(
        system=platform.platform(terse=True),
        processor=", ".join(sorted(names)) or platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        memory_gb=psutil.virtual_memory().total / 1e9,
        busy_cpus=psutil.cpu_percent(interval=IDLE_WATCH_S) / 100 * (psutil.cpu_count() or 1),
        python=platform.python_version(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
