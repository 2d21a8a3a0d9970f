"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FolderSize:
    """A network, and how often its folder is run.

    Attributes:
        classes: With the background.
        scans: In the folder.
        runs: Of each way that is quick.
        windows_runs: Of windows over a link.
        in_flight: Windows at once over a link, where the memory of one machine for both sides allows no more.
    """

    classes: int
    scans: int
    runs: int
    windows_runs: int
    in_flight: int | None = None


@dataclass(frozen=True)
class NetworkSizes:
    """How much is measured.

    Attributes:
        folders: By network.
        patch_size: Of all networks, (z, y, x).
        sleep_ms: Milliseconds a window.
        links_gbit_s: What links are held to.
        clients: How many at once, and how many scans each of them sends.
        clients_classes: Of the network that they use.
        clients_gbit_s: Of their link.
        probe_bytes: Sent to see what a link carries.
        is_check: Only whether the benchmark runs matters.
    """

    folders: tuple[FolderSize, ...]
    patch_size: tuple[int, int, int]
    sleep_ms: float
    links_gbit_s: tuple[float, ...]
    clients: tuple[tuple[int, int], ...]
    clients_classes: int
    clients_gbit_s: float
    probe_bytes: int
    is_check: bool


WHOLE = NetworkSizes(
    folders=(FolderSize(2, 4, 2, 1), FolderSize(25, 4, 2, 1), FolderSize(118, 2, 1, 1, in_flight=1)),
    patch_size=(128, 128, 128),
    sleep_ms=60.0,
    links_gbit_s=(10.0, 1.0),
    clients=((1, 6), (4, 4), (16, 2)),
    clients_classes=25,
    clients_gbit_s=10.0,
    probe_bytes=500_000_000,
    is_check=False,
)
TINY = NetworkSizes(
    folders=(FolderSize(3, 2, 1, 1),),
    patch_size=(16, 32, 32),
    sleep_ms=2.0,
    links_gbit_s=(1.0,),
    clients=((2, 2),),
    clients_classes=3,
    clients_gbit_s=1.0,
    probe_bytes=1_000_000,
    is_check=True,
)
