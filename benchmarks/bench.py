"""The bench: a scratch folder in which both programs segment the same scans and are measured whole."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured_process import Measured, run_measured
from benchmarks.models import Network, ctseg_command, nnunet_environment, nnunet_program
from benchmarks.results import ProgramRun, Scan, StageSums
from benchmarks.scans import ScanFolder, collect_scans, link_scans, write_tiny_scan
from benchmarks.sizes import Sizes
from ctseg.documents import Document
from ctseg.predict.report import REPORT_NAME, Report

_SERVER_READY = "tritonserver ("
"""Words of the log of ``ctseg predict`` once its server is ready."""


@dataclass(frozen=True)
class Prediction:
    """One run of a program over a folder of scans.

    Attributes:
        run: What it took.
        output: Folder of its label maps.
    """

    run: ProgramRun
    output: Path


class Bench:
    """Runs programs in a scratch folder; made by :func:`set_up_bench`.

    Args:
        root: The scratch folder.
        sizes: How much is measured.
        scans: To measure with.
        tiny: A scan of one window.
    """

    def __init__(self, root: Path, sizes: Sizes, scans: ScanFolder, tiny: Scan) -> None:
        self.root = root
        self.sizes = sizes
        self.scans = scans
        self.tiny = ScanFolder(root / "tiny", (tiny,), ())
        self.environment = nnunet_environment(root)
        if not sizes.is_check:  # an empty cache of our own, so that compiling can be measured; it takes long
            self.environment["NUMBA_CACHE_DIR"] = str(root / "kernels")
        self._serial = 0

    @property
    def repository(self) -> Path:
        """The model repository of all models that are measured."""
        return self.root / "repository"

    def new_folder(self, name: str) -> Path:
        """Return a folder that is not there yet."""
        self._serial += 1
        return self.root / "out" / f"{self._serial:03d}_{name}"

    def link(self, scans: Sequence[Scan], *, copies: int = 1) -> Path:
        """Return a new folder with links to some scans, each as often as asked."""
        return link_scans(scans, self.scans.folder, self.new_folder("in"), copies=copies)

    def command(
        self, words: Sequence[str | Path], *, watch: Sequence[Path] = (), marker: str = ""
    ) -> tuple[Measured, float | None]:
        """Run a command; see :func:`benchmarks.measured_process.run_measured`."""
        return run_measured(
            words, environment=self.environment, timeout_s=self.sizes.timeout_s, watch=watch, marker=marker
        )

    def child(self, module: str, job: Document) -> Measured:
        """Run a module of this package in a process of its own, with a job as its argument.

        Raises:
            SetupError: It failed.
        """
        return self.command([sys.executable, "-m", module, job.model_dump_json()])[0]

    def predict_by_nnunet(self, network: Network, scans: Path) -> Prediction:
        """Run ``nnUNetv2_predict`` over a folder of scans.

        Raises:
            SetupError: It failed.
        """
        output = self.new_folder("nnunet")
        words: list[str | Path] = [nnunet_program("nnUNetv2_predict"), "-i", scans, "-o", output]
        words += ["-d", network.dataset, "-tr", network.trainer, "-c", "3d_fullres", "-f", "0"]
        words += ["-device", "cpu", "--disable_tta"]
        measured, _ = self.command(words)
        run = ProgramRun(
            wall_s=measured.wall_s, cpu_s=measured.cpu_s, client_cpu_s=measured.client_cpu_s, peak_mb=measured.peak_mb
        )
        return Prediction(run, output)

    def predict_by_ctseg(self, model: str, scans: Path) -> Prediction:
        """Run ``ctseg predict``, with a server of its own, over a folder of scans.

        Raises:
            SetupError: It failed.
        """
        output = self.new_folder("ctseg")
        path = output / REPORT_NAME
        words: list[str | Path] = ["predict", "-i", scans, "-o", output, "-m", model, "--repository", self.repository]
        measured, ready_s = self.command(ctseg_command(*words, "--disable_tta"), watch=[path], marker=_SERVER_READY)
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
            stages=_stage_sums(report),
        )
        return Prediction(run, output)


def set_up_bench(root: Path, folder: Path, large: Path | None, sizes: Sizes) -> Bench:
    """Return a bench in an empty scratch folder.

    Args:
        root: The scratch folder.
        folder: CT scans of one channel, ``<case>_0000.nii.gz``.
        large: A CT of a whole chest; None: none.
        sizes: How much will be measured.

    Raises:
        InputError: There is no scan, or one cannot be read.
    """
    found = collect_scans(folder, root / "scans", large, more=sizes.more_scans)
    needed = {case for row in sizes.rows for case in row.large}
    scans = ScanFolder(found.folder, found.small, tuple(scan for scan in found.large if scan.case in needed))
    tiny = write_tiny_scan(scans.file(scans.small[0]), root / "tiny")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (root / name).mkdir()
    return Bench(root, sizes, scans, tiny)


def _stage_sums(report: Report) -> StageSums:
    return StageSums(
        read=sum(case.seconds.read for case in report.cases),
        prepare=sum(case.seconds.prepare for case in report.cases),
        network=sum(case.seconds.network for case in report.cases),
        restore=sum(case.seconds.restore for case in report.cases),
        write=sum(case.seconds.write for case in report.cases),
    )
