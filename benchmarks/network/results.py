"""``network.json``: what was measured over which link, run by run."""

from statistics import median
from typing import Literal

from benchmarks.results import Machine
from ctseg.documents import Document

JSON_NAME = "network.json"
PAGE_NAME = "network.md"

Way = Literal["windows", "whole scans"]
"""What travels: windows that the client cuts, or whole scans."""
LinkKind = Literal["none", "namespaces", "relay"]
"""Of a link: the client is on the server's machine, in another network namespace, or behind a relay that waits."""


class Link(Document):
    """What lies between a client and its server.

    Attributes:
        kind: What it is made of.
        gbit_s: What it is held to; 0 without one.
        carries_gbit_s: What one TCP connection got through it, to the client; 0 without one.
    """

    kind: LinkKind
    gbit_s: float = 0.0
    carries_gbit_s: float = 0.0

    @property
    def name(self) -> str:
        """For a table."""
        return "the server's machine" if self.kind == "none" else f"{self.gbit_s:g} Gbit/s"


class FolderRun(Document):
    """One run of ``ctseg predict`` over a folder.

    Attributes:
        folder_s: From the first case taken up to the last written.
        client_cpu_s: Of the command, start-up included.
        server_cpu_s: Of tritonserver and the processes of its models.
        up_mb: Sent to the server, headers included, in 10^6 bytes; of tensors alone where no link counts them.
        down_mb: Received, likewise.
        transport: As the report has it.
        windows: Of all scans.
    """

    folder_s: float
    client_cpu_s: float
    server_cpu_s: float
    up_mb: float
    down_mb: float
    transport: str
    windows: int


class NetworkRow(Document):
    """A folder of one network, one way over one link.

    Attributes:
        classes: Of the network, with the background.
        way: What travels.
        link: Over what.
        in_flight: Windows at once, where fewer than the client would send; None: as it likes.
        scans: How many.
        megavoxels: Of all of them.
        runs: In their order.
        labels_equal: Whether the label maps are those of the server's own machine, voxel by voxel.
    """

    classes: int
    way: Way
    link: Link
    in_flight: int | None = None
    scans: int
    megavoxels: float
    runs: tuple[FolderRun, ...]
    labels_equal: bool

    @property
    def folder_s(self) -> float:
        """Median."""
        return median(run.folder_s for run in self.runs)

    @property
    def server_cpu_s_per_megavoxel(self) -> float:
        """Median."""
        return median(run.server_cpu_s for run in self.runs) / self.megavoxels


class ClientsRow(Document):
    """Several clients at once, each with one whole scan after the other.

    Attributes:
        classes: Of the network.
        link: Over what.
        clients: How many.
        scans_each: How many each of them sent.
        seconds: From the first scan sent to the last answered.
        longest_wait_s: Of a scan, from when it was sent to when its labels were there.
        median_wait_s: Likewise.
        least_share: Scans that the least served client had back when the first one had all, as a part of those.
        server_cpu_s: Of tritonserver and the processes of its models.
        megavoxels: Of all scans.
    """

    classes: int
    link: Link
    clients: int
    scans_each: int
    seconds: float
    longest_wait_s: float
    median_wait_s: float
    least_share: float
    server_cpu_s: float
    megavoxels: float

    @property
    def scans_per_minute(self) -> float:
        """Of all clients together."""
        return 60 * self.clients * self.scans_each / self.seconds


class NetworkResult(Document):
    """The whole of ``network.json``.

    Attributes:
        is_check: Only whether the benchmark runs matters.
        sleep_ms: Of a window.
        patch_size: Of all networks.
        scan: Of what the folders are made: its name and voxels (z, y, x).
        problems: Steps that failed, or were left out, and why.
    """

    schema_version: Literal[1] = 1
    is_check: bool
    started: str
    seconds: float = 0.0
    machine: Machine
    versions: dict[str, str]
    sleep_ms: float
    patch_size: tuple[int, int, int]
    scan: str
    rows: tuple[NetworkRow, ...] = ()
    clients: tuple[ClientsRow, ...] = ()
    problems: tuple[str, ...] = ()
