"""What is asked of the functions of both programs, and how a call is measured."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from benchmarks.models import Network
from benchmarks.results import FunctionName
from ctseg.arrays import Logits, Shape3, Spacing
from ctseg.documents import Document
from ctseg.errors import SetupError

Array = npt.NDArray[Any]


class Job(Document):
    """What a worker shall do.

    Attributes:
        function: ``prepare``, ``blend``, ``export``, or ``memory`` (ctseg only).
        kind: Of the network.
        classes: Heads.
        patch_size: Of the network.
        scan: File to prepare; empty where none is needed.
        source_shape: Of the logits; (0, 0, 0) where they are not given.
        target_shape: Of the scan as read.
        spacing_mm: Of the scan as read.
        runs: How often.
        sample: ``.npy`` file to write what came out, or a part of it.
    """

    function: FunctionName | Literal["memory"]
    kind: str = "U-Net"
    classes: int = 2
    patch_size: Shape3
    scan: str = ""
    source_shape: Shape3 = (0, 0, 0)
    target_shape: Shape3 = (0, 0, 0)
    spacing_mm: Spacing = (1.0, 1.0, 1.0)
    runs: int = 1
    sample: str

    @property
    def network(self) -> Network:
        """Described as nnU-Net's plans do."""
        return Network(self.kind, self.classes, self.patch_size, 999)


class JobResult(Document):
    """What came of it."""

    seconds: tuple[float, ...]
    extra_mb: float
    allowed_mb: float = 0.0


def timed(call: Callable[[], tuple[float, Array]], job: Job, allowed_mb: float = 0.0) -> JobResult:
    """Run a call that returns the seconds to leave out and what came of it, and measure time and peak memory."""
    seconds, peaks, out = [], [], np.empty(0)
    for _ in range(job.runs):
        before = _reset_peak()
        started = time.perf_counter()
        apart_s, out = call()
        seconds.append(time.perf_counter() - started - apart_s)
        peaks.append(_status_bytes("VmHWM") - before)
    np.save(job.sample, out)
    return JobResult(seconds=tuple(seconds), extra_mb=max(peaks) / (1 << 20), allowed_mb=allowed_mb)


def _reset_peak() -> int:
    """Let the kernel forget the peak of this process; return the bytes that it holds now.

    What was freed goes back to the kernel first: a call that found it there would seem to need less.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if malloc_trim is not None:
        malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise SetupError(f"/proc/self/status has no {key}: the benchmark needs Linux")


def patch_logits(job: Job) -> Logits:
    """Return the answer to one patch: (classes, *patch_size), the same whenever it is asked for."""
    return np.random.default_rng(0).standard_normal((job.classes, *job.patch_size), dtype=np.float32)


def smooth_logits(job: Job) -> npt.NDArray[np.float16]:
    """Return smooth logits in the form that stock nnU-Net hands to its export."""
    generator = np.random.default_rng(1)
    logits = np.empty((job.classes, *job.source_shape), np.float16)
    for head in range(job.classes):
        coarse = generator.standard_normal([-(-size // 6) for size in job.source_shape], dtype=np.float32)
        for axis, size in enumerate(job.source_shape):
            coarse = np.repeat(coarse, 6, axis=axis).take(range(size), axis=axis)
        logits[head] = coarse + 0.05 * generator.standard_normal(job.source_shape, dtype=np.float32)
    return logits


def sample_of(path: Path) -> Array:
    """Return what a job left in its sample file."""
    return cast(Array, np.load(path))
