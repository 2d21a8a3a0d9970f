"""How much memory the cases in flight may take together."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from ctseg.files.volume import Volume
from ctseg.model_spec import ModelSpec

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int:
    """Return the memory that this machine or container has to give, in bytes; 8 GiB where it cannot be told."""
    limits = [8 << 30]
    try:
        lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        limits = [int(lines["MemAvailable"].split()[0]) << 10]
        limits.append(int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError, KeyError):
        pass  # no such file, or the word "max": no limit is set there
    return min(limits)


def estimated_bytes(volume: Volume, spec: ModelSpec) -> int:
    """Estimate the peak memory of segmenting a case.

    The scan, its float32 form before and after resampling, the slabs of logits in the blender and
    the restorer, and the label map.

    Args:
        volume: The scan.
        spec: The network's contract.

    Returns:
        Bytes.
    """
    spacing_mm = [volume.spacing_mm[axis] for axis in spec.transpose_forward]
    sides = [volume.voxels.shape[1 + axis] for axis in spec.transpose_forward]
    network_spacing_mm = spec.spacing_of_network((spacing_mm[0], spacing_mm[1], spacing_mm[2]))
    network_sides = [
        max(round(side * old / new), 1) for side, old, new in zip(sides, spacing_mm, network_spacing_mm, strict=True)
    ]
    depth = 1 if spec.is_2d else min(spec.patch_size[0], network_sides[0])
    plane = network_sides[1] * network_sides[2]
    if getattr(spec.resampling_logits, "order", 1) > 1:
        depth = network_sides[0]
    scan = volume.voxels.nbytes + 4 * volume.voxels.size
    prepared = 2 * 4 * len(spec.channels) * prod(network_sides)
    slabs = 2 * 4 * spec.num_heads * depth * plane
    return int(scan + prepared + slabs + np.dtype(np.uint16).itemsize * prod(sides))


class MemoryBudget:
    """Lets cases pass while the sum of their estimates fits; one case alone always passes.

    Args:
        total_bytes: What the cases in flight may take together.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used = 0
        self._condition = threading.Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes fit, and hold them meanwhile."""
        with self._condition:
            self._condition.wait_for(lambda: self._used == 0 or self._used + size <= self._total)
            self._used += size
        try:
            yield
        finally:
            with self._condition:
                self._used -= size
                self._condition.notify_all()
