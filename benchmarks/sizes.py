"""How much is measured: rows of whole commands, models of the floor, repeats, limits."""

from dataclasses import dataclass, replace

from benchmarks.models import Network
from benchmarks.results import Mode

NNUNET_EXPORT_S_PER_CLASS_VOXEL = 8e-8
"""On two cores; decides only how large a volume nnU-Net's export is asked to take."""
NNUNET_EXPORT_BYTES_PER_CLASS_VOXEL = 10


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
        more_scans: Make scans from those given, see :func:`benchmarks.scans.collect_scans`.
        startup_repeats: Runs of each command on the scan of one window.
        sleeps_ms: Milliseconds a window, with how often the small scans are repeated in the folder.
        real_copies: How often they are repeated for the real networks.
        ways: See :class:`benchmarks.experiments.replay.ReplayJob`.
        probe_windows: See :class:`benchmarks.experiments.replay.ReplayJob`.
        floor_repeats: Replays and folders of each model.
        micro_classes: Heads of the logits that are blended and exported.
        micro_runs: Runs of each function, if nnU-Net's is quick.
        largest_export_s: nnU-Net's export is given a volume that takes it about so long.
        largest_export_bytes: And at most so much memory.
        trace_sleep_ms: Milliseconds a window of the sleeping model whose folder is drawn; None draws nothing.
        is_check: Only whether the benchmark runs matters: nothing is warmed up, and the kernels are not compiled anew.
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
    is_check: bool
    minutes: float | None
    timeout_s: float | None


_UNET_PATCH = (48, 128, 128)
_TINY = Network("U-Net", 3, (16, 32, 32), 901)
_UNET2 = Network("U-Net", 2, _UNET_PATCH, 901)
_SWIN2 = Network("Swin UNETR", 2, (64, 64, 64), 902)
_UNET25 = Network("U-Net", 25, _UNET_PATCH, 903)
_UNET118 = Network("U-Net", 118, _UNET_PATCH, 904)
_ALL = 1000

_STANDARD = Sizes(
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
    is_check=False,
    minutes=None,
    timeout_s=1200.0,
)

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
        is_check=True,
        minutes=None,
        timeout_s=300.0,
    ),
    "quick": replace(
        _STANDARD,
        rows=(Row(_UNET2, 3, ("chest",), 2), Row(_SWIN2, 2, (), 2), Row(_UNET25, 0, ("chest",), 2)),
        more_scans=False,
        real_copies=1,
        floor_repeats=1,
        minutes=12.0,
        timeout_s=240.0,
    ),
    "standard": _STANDARD,
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
        is_check=False,
        minutes=None,
        timeout_s=None,
    ),
}
