"""``benchmark.json``: what was measured, run by run, so that every figure says how many runs it comes from."""

from collections.abc import Sequence
from statistics import median
from typing import Literal

from ctseg.documents import Document

JSON_NAME = "benchmark.json"
PAGE_NAME = "benchmark.md"
TRACE_NAME = "benchmark_trace.png"

LEAST_VOXELS_OF_A_DICE = 1000
"""Random weights give labels of a few voxels, of which a Dice says nothing."""

Mode = Literal["tiny", "quick", "standard", "full"]
"""How much is measured."""
Program = Literal["nnunet", "ctseg"]
DicomProgram = Literal["pydicom", "ctseg"]
DicomEncoding = Literal["uncompressed", "JPEG lossless", "JPEG 2000 lossless"]
FunctionName = Literal["prepare", "blend", "export"]
Stage = Literal["read", "prepare", "network", "restore", "write", "compute"]
"""Of a case, as :class:`ctseg.predict.progress.Progress` is told; the server computes."""


class Machine(Document):
    """Where it was measured.

    ``busy_cpus`` is what other processes took in the seconds before the benchmark: more than a small
    part of one CPU means that the machine was not idle, and no time below means much.
    """

    system: str
    processor: str
    cpus: int
    memory_gb: float
    busy_cpus: float
    python: str


class Scan(Document):
    """A scan that was segmented.

    Attributes:
        case: Its name.
        shape: (z, y, x).
        spacing_mm: Along (z, y, x).
        origin: Where it comes from.
    """

    case: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin: str


class StageSums(Document):
    """Wall seconds of ctseg's stages, summed over the cases; the stages of several cases overlap."""

    read: float
    prepare: float
    network: float
    restore: float
    write: float


class ProgramRun(Document):
    """One run of a command, children and server included.

    Attributes:
        wall_s: From the start of the process to its end.
        cpu_s: User and system seconds of all its processes.
        client_cpu_s: Of them, those of the command's own process (for ctseg: the client without the server).
        peak_mb: Largest sum of the processes' proportional set sizes, MiB; shared pages count once.
        windows: As the report says; None for nnU-Net.
        bytes_sent: As the report says; None for nnU-Net.
        bytes_received: As the report says; None for nnU-Net.
        server_start_s: Until the server was ready; None for nnU-Net.
        folder_s: From the first case taken up to the last written; None for nnU-Net.
        stages: None for nnU-Net.
    """

    wall_s: float
    cpu_s: float
    client_cpu_s: float
    peak_mb: float
    windows: int | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    server_start_s: float | None = None
    folder_s: float | None = None
    stages: StageSums | None = None


class ProgramFigures(Document):
    """The runs of one program on one set of scans.

    Attributes:
        startup: The same command on a scan of one window: what a run costs whatever it segments.
        runs: In the order in which they ran.
    """

    startup: tuple[ProgramRun, ...]
    runs: tuple[ProgramRun, ...]

    @property
    def wall_s(self) -> float:
        """Median, start-up included."""
        return median(run.wall_s for run in self.runs)

    @property
    def startup_s(self) -> float:
        """Median wall seconds on the scan of one window."""
        return median(run.wall_s for run in self.startup)

    @property
    def work_s(self) -> float:
        """Median wall seconds, start-up excluded; at least 1 ms."""
        return max(self.wall_s - self.startup_s, 1e-3)

    @property
    def cpu_s(self) -> float:
        """Median CPU seconds of all processes."""
        return median(run.cpu_s for run in self.runs)

    @property
    def client_cpu_s(self) -> float:
        """Median CPU seconds of the command's own process, start-up excluded; at least 0."""
        own = median(run.client_cpu_s for run in self.runs)
        return max(own - median(run.client_cpu_s for run in self.startup), 0.0)

    @property
    def peak_mb(self) -> float:
        """Median of the peaks, MiB."""
        return median(run.peak_mb for run in self.runs)


class Agreement(Document):
    """Labels of ctseg beside those of stock nnU-Net.

    Attributes:
        equal_share: Of all voxels of all scans.
        lowest_dice: Over scans and labels of so many voxels; None where there is none but the background.
    """

    equal_share: float
    lowest_dice: float | None


class EndToEnd(Document):
    """Both commands on one set of scans; where nnU-Net was left out, ``note`` says why."""

    model: str
    network: str
    classes: int
    scans: tuple[str, ...]
    megavoxels: float
    nnunet: ProgramFigures | None
    ctseg: ProgramFigures
    agreement: Agreement | None
    note: str = ""


class ReplayRun(Document):
    """All windows of the scans, cut before, sent once; the answers dropped.

    Attributes:
        concurrency: Requests at once; the best of those tried.
        batch: Windows in a request; the best of those tried.
        wall_s: From the first window sent to the last answered.
    """

    concurrency: int
    batch: int
    wall_s: float


class Floor(Document):
    """A folder beside the replay of its windows.

    Attributes:
        model: Name of the model.
        sleep_ms: What a window takes in a model that only sleeps; None for a real network.
        scans: How many.
        megavoxels: Of the scans as read.
        windows: Of all scans.
        replays: Alternating with ``folders``.
        folders: Runs of ``ctseg predict``.
        startup_client_cpu_s: Client CPU seconds of a run on a scan of one window.
    """

    model: str
    sleep_ms: float | None
    scans: int
    megavoxels: float
    windows: int
    replays: tuple[ReplayRun, ...]
    folders: tuple[ProgramRun, ...]
    startup_client_cpu_s: float

    @property
    def replay_s(self) -> float:
        """Shortest replay."""
        return min(run.wall_s for run in self.replays)

    @property
    def folder_s(self) -> float:
        """Median wall seconds of the folder, without the server's start."""
        return median(run.folder_s or run.wall_s for run in self.folders)

    @property
    def ratio(self) -> float:
        """Folder against replay."""
        return self.folder_s / self.replay_s

    @property
    def client_cpu_s_per_megavoxel(self) -> float:
        """CPU seconds of the client, start-up excluded, for a million voxels of the scans as read."""
        own = median(run.client_cpu_s for run in self.folders)
        return max(own - self.startup_client_cpu_s, 0.0) / self.megavoxels


class Span(Document):
    """When something ran.

    Attributes:
        row: A case, or ``server``.
        stage: Of a case, or ``compute``.
        begin: Seconds.
        end: Seconds.
    """

    row: str
    stage: Stage
    begin: float
    end: float


class Trace(Document):
    """One run of a folder, stage by stage, with a clock in client and server.

    Attributes:
        model: Name of the model.
        sleep_ms: What a window takes in a model that only sleeps; None for a real network.
        scans: How many.
        windows: Of all scans.
        folder_s: From the first case taken up to the last written.
        busy_share: Of that, the part in which the server computed.
        busy_share_between: The same between the begin of its first computation and the end of its last.
        client_cpu_s: CPU seconds of the client, start-up included.
        spans: Seconds since the first case was taken up.
    """

    model: str
    sleep_ms: float | None
    scans: int
    windows: int
    folder_s: float
    busy_share: float
    busy_share_between: float
    client_cpu_s: float
    spans: tuple[Span, ...]


class Micro(Document):
    """One function of ctseg beside nnU-Net's, array to array.

    Attributes:
        function: ``prepare``, ``blend`` or ``export``.
        classes: Heads of the logits; None for preparing.
        source_shape: (z, y, x) of what goes in.
        target_shape: (z, y, x) of what comes out.
        nnunet_s: Wall seconds of each run.
        ctseg_s: Wall seconds of each run.
        nnunet_extra_mb: Peak memory above what stood before the call, MiB; the input is not in it.
        ctseg_extra_mb: The same.
        equal_share: Of labels (export) or of values equal to 1e-3 (else), between the two.
        note: Such as a smaller volume, and why.
    """

    function: FunctionName
    classes: int | None
    source_shape: tuple[int, int, int]
    target_shape: tuple[int, int, int]
    nnunet_s: tuple[float, ...]
    ctseg_s: tuple[float, ...]
    nnunet_extra_mb: float
    ctseg_extra_mb: float
    equal_share: float | None = None
    note: str = ""

    @property
    def speedup(self) -> float:
        """Shortest run against shortest run."""
        return min(self.nnunet_s) / max(min(self.ctseg_s), 1e-6)


class Memory(Document):
    """Peak memory of the client while it blends and restores, with a network that answers at once.

    Attributes:
        classes: Heads of the logits.
        scan_shape: (z, y, x).
        patch_size: (z, y, x).
        peak_mb: Above what stood before the scan was there, MiB; the scan is in it.
        allowed_mb: 1.3 x classes x patch depth x plane x 4 B + bytes in flight + 3 x the scan.
    """

    classes: int
    scan_shape: tuple[int, int, int]
    patch_size: tuple[int, ...]
    peak_mb: float
    allowed_mb: float


class DicomReading(Document):
    """A CT series in DICOM, a file a slice, read by ctseg and by pydicom with two threads.

    Attributes:
        encoding: Of the voxels.
        shape: (z, y, x).
        files_mb: Of all files, MB.
        pydicom_s: Wall seconds of each run, from the names of the files to the volume in HU; none: it has no decoder.
        ctseg_s: The same.
        ctseg_headers_s: Of them, finding the series.
    """

    encoding: DicomEncoding
    shape: tuple[int, int, int]
    files_mb: float
    pydicom_s: tuple[float, ...]
    ctseg_s: tuple[float, ...]
    ctseg_headers_s: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        """Shortest run of ctseg against the shortest of pydicom."""
        return min(self.ctseg_s) / min(self.pydicom_s) if self.pydicom_s else None

    @property
    def pydicom_text(self) -> str:
        """The shortest run, or that there is none."""
        return f"{min(self.pydicom_s):.2f}" if self.pydicom_s else "no decoder"


class StartUp(Document):
    """What happens before the first case, in wall seconds.

    Attributes:
        client_import_s: Runs of a Python that imports the client.
        client_imports_torch: Whether torch was loaded by that.
        first_compile_s: The kernels compiled with an empty cache: once for an installation.
        load_kernels_s: The kernels read from the cache.
    """

    client_import_s: tuple[float, ...]
    client_imports_torch: bool
    first_compile_s: float
    load_kernels_s: float


class Budget(Document):
    """A promise and what came of it.

    Attributes:
        what: What was promised.
        budget: The promise.
        figure: What was measured.
        met: Whether it was kept.
        runs: How many runs the figure comes from, of each program.
    """

    what: str
    budget: str
    figure: str
    met: bool
    runs: int


class Problem(Document):
    """A step that was left out on purpose, or failed."""

    step: str
    message: str
    is_failure: bool


class BenchmarkResult(Document):
    """The whole of ``benchmark.json``."""

    schema_version: Literal[1] = 1
    mode: Mode
    started: str
    seconds: float = 0.0
    machine: Machine
    versions: dict[str, str]
    scans: tuple[Scan, ...]
    startup: StartUp | None = None
    end_to_end: tuple[EndToEnd, ...] = ()
    floor: tuple[Floor, ...] = ()
    traces: tuple[Trace, ...] = ()
    micro: tuple[Micro, ...] = ()
    memory: tuple[Memory, ...] = ()
    dicom: tuple[DicomReading, ...] = ()
    budgets: tuple[Budget, ...] = ()
    problems: tuple[Problem, ...] = ()


def runs_text(counts: Sequence[int]) -> str:
    """Return ``2`` where all counts are equal, else ``1-2``."""
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"


def scans_text(scans: Sequence[str]) -> str:
    """Return the name of a single large scan, else how many there are."""
    return scans[0] if len(scans) == 1 else f"{len(scans)} scans"
