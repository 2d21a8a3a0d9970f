"""The story: models, a server, a link; a folder on the server's machine and over the link; several clients at once."""

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.machine import installed_versions, this_machine
from benchmarks.measured_process import run_measured
from benchmarks.models import ctseg_command, publish_sleeper, window_spec
from benchmarks.network.clients import ClientsJob, ClientsResult
from benchmarks.network.links import Traffic, Wires, opened_wires
from benchmarks.network.page import page_of
from benchmarks.network.results import (
    JSON_NAME,
    PAGE_NAME,
    ClientsRow,
    FolderRun,
    Link,
    NetworkResult,
    NetworkRow,
    Way,
)
from benchmarks.network.server import ServerJob, ServerThere
from benchmarks.network.sizes import FolderSize, NetworkSizes
from benchmarks.results import Scan
from benchmarks.scans import ScanFolder, collect_scans, link_scans, megavoxels
from ctseg.errors import CtsegError, SetupError
from ctseg.files.atomic import write_text
from ctseg.predict.report import REPORT_NAME, Report

log = logging.getLogger(__name__)

_Row = TypeVar("_Row")
_HERE = Link(kind="none")
_WHERE: Mapping[Way, str] = {"windows": "client", "whole scans": "server"}
_HEADER = "CTSEG_BENCHMARK_HEADER"
_READ_BYTES = (
    "import sys; from benchmarks.network.clients import read_bytes; print(read_bytes(sys.argv[1], int(sys.argv[2])))"
)
_TIMEOUT_S = 3600.0


def run_network_benchmark(scans: Path, output: Path, sizes: NetworkSizes, large: Path | None = None) -> NetworkResult:
    """Measure a folder over links, and write ``network.json`` and ``network.md``, anew after every step.

    Args:
        scans: CT scans of one channel, ``<case>_0000.nii.gz``, of which the first is used without ``large``.
        output: Folder for the results; made if missing.
        sizes: How much is measured.
        large: A CT of a whole chest.

    Raises:
        SetupError: The server does not start.
        InputError: There is no scan.
        OutputError: The results cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # where both sides together take too much memory, nobody else is to be ended for it
        Path("/proc/self/oom_score_adj").write_text("1000")
    with tempfile.TemporaryDirectory(prefix="ctseg-benchmark-") as scratch, opened_wires() as wires:
        root = Path(scratch)
        found = collect_scans(scans, root / "scans", large, more=False)
        scan = (*found.large, *found.small)[0]
        record = _Record(output, sizes, scan)
        for folder in sizes.folders:
            with _served(root, wires, sizes, folder.classes) as server:
                bench = _Bench(root, wires, server, sizes, found, scan)
                bench.measure_folder(folder, record)
                if folder.classes == sizes.clients_classes:
                    bench.measure_clients(record)
        return record.write()


class _Record:
    """What was measured so far."""

    def __init__(self, output: Path, sizes: NetworkSizes, scan: Scan) -> None:
        self._output = output
        self._began = time.monotonic()
        self.rows: list[NetworkRow] = []
        self.clients: list[ClientsRow] = []
        self._problems: list[str] = []
        self._opening = NetworkResult(
            is_check=sizes.is_check,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=this_machine(),
            versions=installed_versions(),
            sleep_ms=sizes.sleep_ms,
            patch_size=sizes.patch_size,
            scan=f"{scan.case}, {'x'.join(map(str, scan.shape))}",
        )

    def step(self, name: str, measure: Callable[[], _Row], keep: Callable[[_Row], object] = lambda _: None) -> None:
        """Measure something and keep it; a failure is named in the result."""
        log.info("[%5.1f min] %s", (time.monotonic() - self._began) / 60, name)
        try:
            keep(measure())
        except CtsegError as error:
            log.error("  FAILED: %s", error)
            self._problems.append(f"{name}: {type(error).__name__}: {error}")
        self.write()

    def write(self) -> NetworkResult:
        """Write both files."""
        result = self._opening.model_copy(
            update={
                "seconds": time.monotonic() - self._began,
                "rows": tuple(self.rows),
                "clients": tuple(self.clients),
                "problems": tuple(self._problems),
            }
        )
        write_text(self._output / JSON_NAME, result.model_dump_json(indent=2) + "\n")
        write_text(self._output / PAGE_NAME, page_of(result))
        return result


@contextmanager
def _served(root: Path, wires: Wires, sizes: NetworkSizes, classes: int) -> Iterator[ServerThere]:
    """Serve a sleeping model of so many classes, and whole scans for it."""
    repository = root / f"repository{classes}"
    repository.mkdir()
    publish_sleeper(repository, window_spec(_model(classes), classes, sizes.patch_size), sizes.sleep_ms)
    job = ServerJob(repository=str(repository), address=wires.bind_address)
    words = wires.on_server([sys.executable, "-m", "benchmarks.network.server", job.model_dump_json()])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        line = process.stdout.readline()
        try:
            if not line:
                raise SetupError(f"the server of {classes} classes did not start: see above")
            yield ServerThere.model_validate_json(line)
        finally:
            process.stdin.close()


def _model(classes: int) -> str:
    return f"sleeper{classes}"


class _Bench:
    """Runs clients against a server.

    Args:
        root: Scratch folder.
        wires: Between them.
        server: The server.
        sizes: How much is measured.
        folder: The scans.
        scan: The one that is measured with.
    """

    def __init__(
        self, root: Path, wires: Wires, server: ServerThere, sizes: NetworkSizes, folder: ScanFolder, scan: Scan
    ) -> None:
        self._root, self._wires, self._server, self._sizes = root, wires, server, sizes
        self._scans, self._scan = folder, scan
        self._here = f"127.0.0.1:{server.port}"
        ((self._header, key),) = server.headers.items()
        self._environment = {_HEADER: key}
        self._labels: dict[int, Path] = {}
        self._serial = 0

    def measure_folder(self, size: FolderSize, record: _Record) -> None:
        """Run a folder on the server's machine and over each link, windows and whole scans."""
        scans, what = self._folder(size.scans), f"{size.classes} classes"
        record.step(f"{what}, warm up", partial(self._warm_up, size.classes))

        def measure(way: Way, link: Link, url: str, runs: int, in_flight: int | None = None) -> None:
            row = partial(self._row, size.classes, scans, way, link, url, runs, in_flight)
            record.step(f"{what}, {way}, {link.name}", row, record.rows.append)

        for way in _WHERE:
            measure(way, _HERE, self._here, size.runs)
        for gbit_s in self._sizes.links_gbit_s:
            with self._link(gbit_s) as (link, url):
                measure("whole scans", link, url, size.runs)
                measure("windows", link, url, size.windows_runs, size.in_flight)

    def _warm_up(self, classes: int) -> None:
        """Let memory be there and kernels be loaded, as on a server that has been running for a while."""
        scans = self._folder(2)
        for where in _WHERE.values():
            self._predict(classes, scans, where, self._here, _HERE, None)

    def _row(
        self, classes: int, scans: Path, way: Way, link: Link, url: str, runs: int, in_flight: int | None
    ) -> NetworkRow:
        done = [self._predict(classes, scans, _WHERE[way], url, link, in_flight) for _ in range(runs)]
        self._labels.setdefault(classes, done[0][1])
        count = len(list(scans.iterdir()))
        row = NetworkRow(
            classes=classes,
            way=way,
            link=link,
            in_flight=in_flight,
            scans=count,
            megavoxels=megavoxels([self._scan]) * count,
            runs=tuple(run for run, _ in done),
            labels_equal=all(_same_labels(self._labels[classes], output) for _, output in done),
        )
        log.info("    %.2f s; server %.3f CPU s/Mvoxel", row.folder_s, row.server_cpu_s_per_megavoxel)
        return row

    def measure_clients(self, record: _Record) -> None:
        """Let several clients send whole scans at once."""
        sizes = self._sizes
        with self._link(sizes.clients_gbit_s) as (link, url):
            for clients, each in sizes.clients:
                measure = partial(self._clients, link, url, clients, each)
                record.step(f"{clients} clients", measure, record.clients.append)

    @contextmanager
    def _link(self, gbit_s: float) -> Iterator[tuple[Link, str]]:
        """Hold the link to a rate; yield what it carries, and the server's address over it."""
        with self._wires.link(gbit_s, (self._server.port, self._server.bytes_port)) as (url, bytes_url):
            count = self._sizes.probe_bytes
            words = self._wires.on_client([sys.executable, "-c", _READ_BYTES, bytes_url, str(count)])
            seconds = float(run_measured(words, timeout_s=_TIMEOUT_S)[0].output)
            yield Link(kind=self._wires.kind, gbit_s=gbit_s, carries_gbit_s=count * 8e-9 / seconds), url

    def _folder(self, copies: int) -> Path:
        self._serial += 1
        return link_scans(
            [self._scan], self._scans.folder, self._root / f"in{self._server.port}_{self._serial}", copies=copies
        )

    def _predict(
        self, classes: int, scans: Path, where: str, url: str, link: Link, in_flight: int | None
    ) -> tuple[FolderRun, Path]:
        """Run ``ctseg predict`` on a folder; return what it took, and the label maps."""
        self._serial += 1
        output = self._root / f"out{self._server.port}_{self._serial}"
        words: list[Any] = ["predict", "-i", scans, "-o", output, "-m", _model(classes), "--url", url, "--where", where]
        words += ["--header_env", f"{self._header}={_HEADER}", "--disable_tta", "--timeout_s", "1200", "--quiet"]
        words += [] if in_flight is None else ["--max_in_flight", in_flight]
        words += ["--shared_memory", "on" if link.kind == "none" else "off"]
        command = list(map(str, ctseg_command(*words)))
        command = self._wires.on_server(command) if link.kind == "none" else self._wires.on_client(command)
        before, cpu_before = self._wires.traffic(), self._server_cpu_s()
        path = output / REPORT_NAME
        measured, _ = run_measured(command, environment=self._environment, timeout_s=_TIMEOUT_S, watch=[path])
        traffic, cpu_s = self._wires.traffic().since(before), self._server_cpu_s() - cpu_before
        report = Report.model_validate_json(path.read_bytes())
        if failed := [case for case in report.cases if case.status != "ok"]:
            raise SetupError(f"{failed[0].case}: {failed[0].error}")
        if link.kind == "none":
            traffic = Traffic(
                sum(case.bytes_sent for case in report.cases), sum(case.bytes_received for case in report.cases)
            )
        run = FolderRun(
            folder_s=path.stat().st_mtime - measured.started - measured.watched_s[path],
            client_cpu_s=measured.cpu_s,
            server_cpu_s=cpu_s,
            up_mb=traffic.up / 1e6,
            down_mb=traffic.down / 1e6,
            transport=", ".join(sorted({case.made_by.transport for case in report.cases if case.made_by})),
            windows=sum(case.windows for case in report.cases),
        )
        return run, output

    def _clients(self, link: Link, url: str, clients: int, each: int) -> ClientsRow:
        classes = self._sizes.clients_classes
        job = ClientsJob(
            url=url, headers=self._server.headers, model=_model(classes), scans=str(self._folder(1)),
            clients=clients, scans_each=each,
        )  # fmt: skip
        words = [sys.executable, "-m", "benchmarks.network.clients", job.model_dump_json()]
        cpu_before = self._server_cpu_s()
        measured, _ = run_measured(self._wires.on_client(words), timeout_s=_TIMEOUT_S)
        cpu_s = self._server_cpu_s() - cpu_before
        result = ClientsResult.model_validate_json(measured.output.strip().splitlines()[-1])
        waits = [wait for client in result.waits_s for wait in client]
        row = ClientsRow(
            classes=classes, link=link, clients=clients, scans_each=each, seconds=result.seconds,
            longest_wait_s=max(waits), median_wait_s=median(waits), least_share=result.least_share,
            server_cpu_s=cpu_s, megavoxels=megavoxels([self._scan]) * clients * each,
        )  # fmt: skip
        log.info("    %.1f scans a minute, longest wait %.1f s", row.scans_per_minute, row.longest_wait_s)
        return row

    def _server_cpu_s(self) -> float:
        server = psutil.Process(self._server.pid)
        times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        return float(sum(time.user + time.system for time in times))


def _same_labels(one: Path, other: Path) -> bool:
    """Whether two folders hold the same label maps, voxel by voxel."""
    names = sorted(path.name for path in one.glob("*.nii.gz"))
    return names == sorted(path.name for path in other.glob("*.nii.gz")) and all(
        np.array_equal(_labels_of(one / name), _labels_of(other / name)) for name in names
    )


def _labels_of(path: Path) -> npt.NDArray[Any]:
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)
