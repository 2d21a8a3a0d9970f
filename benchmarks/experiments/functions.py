"""Single functions, array to array: a worker for each program, driven line by line so that they alternate.

The module runs as ``python -m benchmarks.experiments.functions PROGRAM``; it reads a job of JSON a line and
answers with a result of JSON a line. Each program has its own process, so that neither loads the
other's libraries.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from benchmarks.models import SPACING_MM, Network
from benchmarks.results import Program
from ctseg.errors import SetupError
from ctseg.model_spec import ModelSpec
from ctseg.predict.predictor import Identity

Array = npt.NDArray[Any]
Shape3 = tuple[int, int, int]
_SLAB_PLANES = 16


class Job(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: str
    kind: str = "U-Net"
    classes: int = 2
    patch_size: Shape3
    scan: str = ""
    source_shape: Shape3 = (0, 0, 0)
    target_shape: Shape3 = (0, 0, 0)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    runs: int = 1
    sample: str

    @property
    def network(self) -> Network:
        """Described as nnU-Net's plans do."""
        return Network(self.kind, self.classes, self.patch_size, 999)


class JobResult(BaseModel):
    """What came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: tuple[float, ...]
    extra_mb: float
    allowed_mb: float = 0.0


class Worker:
    """A process that runs the functions of one program; use it as a context.

    Args:
        program: Whose functions.
        environment: Added to this process's own.

    Raises:
        SetupError: The process does not start.
    """

    def __init__(self, program: Program, environment: Mapping[str, str]) -> None:
        self._program = program
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the worker ends
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.experiments.functions", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )

    def run(self, job: Job) -> JobResult:
        """Run a job.

        Raises:
            SetupError: It failed; the end of the process's output stands in the message.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        line = ""
        try:
            if stdin is not None and stdout is not None:
                stdin.write(job.model_dump_json() + "\n")
                stdin.flush()
                line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace")[-2000:].strip()
            raise SetupError(f"{job.function} of {self._program} failed; the end of its output:\n{text}")
        return JobResult.model_validate_json(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        self._errors.close()


# --- in the worker


def main() -> int:
    """Do the jobs that stand on standard input until it ends."""
    program = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        job = Job.model_validate_json(line)
        result = (_run_ctseg if program == "ctseg" else _run_nnunet)(job)
        print(result.model_dump_json(), file=answers, flush=True)
    return 0


def _timed(call: Callable[[], tuple[float, Array]], job: Job, allowed_mb: float = 0.0) -> JobResult:
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


def _patch_logits(job: Job) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((job.classes, *job.patch_size), dtype=np.float32)


def _logits(job: Job) -> npt.NDArray[np.float16]:
    """Return smooth logits in the form that stock nnU-Net hands to its export."""
    generator = np.random.default_rng(1)
    logits = np.empty((job.classes, *job.source_shape), np.float16)
    for head in range(job.classes):
        coarse = generator.standard_normal([-(-size // 6) for size in job.source_shape], dtype=np.float32)
        for axis, size in enumerate(job.source_shape):
            coarse = np.repeat(coarse, 6, axis=axis).take(range(size), axis=axis)
        logits[head] = coarse + 0.05 * generator.standard_normal(job.source_shape, dtype=np.float32)
    return logits


def _run_ctseg(job: Job) -> JobResult:
    from ctseg.compiled.loading import load_kernels
    from ctseg.nnunet.plans import spec_from_plans
    from ctseg.numerics import KERNEL_MODULES

    for name in KERNEL_MODULES:
        load_kernels(name)
    network = job.network
    spec = spec_from_plans(
        network.plans, network.dataset_json, "3d_fullres", name=network.name, mirror_axes=(), mirroring="none",
        max_batch_size=1,
    )  # fmt: skip
    call = {"prepare": _ctseg_prepare, "blend": _ctseg_blend, "export": _ctseg_export, "memory": _ctseg_memory}
    return call[job.function](job, spec)


def _ctseg_prepare(job: Job, spec: ModelSpec) -> JobResult:
    from ctseg.files.volume import read_volume
    from ctseg.numerics.prepare import prepare

    volume = read_volume([Path(job.scan)], spec.reader)
    prepare(volume.voxels[:, :8, :32, :32], volume.spacing_mm, spec)
    return _timed(lambda: (0.0, prepare(volume.voxels, volume.spacing_mm, spec).voxels), job)


def _ctseg_blend(job: Job, spec: ModelSpec) -> JobResult:
    from ctseg.numerics.blend import SlabBlender
    from ctseg.numerics.windows import cut_patches, plan_windows

    voxels = np.zeros((1, *job.source_shape), np.float32)
    logits = _patch_logits(job)[None]
    plan = plan_windows(job.source_shape, spec.patch_size)

    def blend() -> tuple[float, Array]:
        blender = SlabBlender(plan, spec.num_heads)
        middle, planes, kept = job.source_shape[0] // 2, 0, np.empty(0)
        for window in range(len(plan)):
            cut_patches(voxels, plan, window, 1)
            for slab in blender.add(logits):
                if planes <= middle < planes + slab.shape[1]:
                    kept = np.array(slab[:, middle - planes])
                planes += slab.shape[1]
        return 0.0, kept

    return _timed(blend, job)


def _ctseg_export(job: Job, spec: ModelSpec) -> JobResult:
    from ctseg.numerics.prepare import PreparationRecord
    from ctseg.numerics.restore import LabelRestorer

    logits = _logits(job).astype(np.float32)
    depth, rows, columns = job.target_shape
    record = PreparationRecord(
        shape=job.target_shape,
        transpose_forward=(0, 1, 2),
        crop=((0, depth), (0, rows), (0, columns)),
        spacing_mm=job.spacing_mm,
        network_spacing_mm=SPACING_MM,
        network_shape=job.source_shape,
    )

    def export() -> tuple[float, Array]:
        restorer = LabelRestorer(spec, record)
        for first in range(0, job.source_shape[0], _SLAB_PLANES):
            restorer.add(logits[:, first : first + _SLAB_PLANES])
        return 0.0, restorer.finish()

    return _timed(export, job)


class _InstantPredictor:
    """A network that answers every patch at once, with the same logits."""

    max_batch_size = 1
    max_in_flight = 2

    def __init__(self, spec: ModelSpec, logits: npt.NDArray[np.float32]) -> None:
        self.spec = spec
        self.identity = Identity(spec.name, 1, spec.digest, (), "in process")
        self._logits = logits

    def predict(self, patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the logits; the patches do not matter."""
        return self._logits[: len(patches)]


def _ctseg_memory(job: Job, spec: ModelSpec) -> JobResult:
    from ctseg.files.volume import read_volume
    from ctseg.predict.segment import BATCHES_AHEAD
    from ctseg.predict.segmenter import segment_volume

    logits = _patch_logits(job)[None]
    planes: list[int] = []

    def run() -> tuple[float, Array]:
        volume = read_volume([Path(job.scan)], spec.reader)
        sides = [
            max(round(size * old / new), patch)
            for size, old, new, patch in zip(
                volume.voxels.shape[1:], volume.spacing_mm, SPACING_MM, spec.patch_size, strict=True
            )
        ]
        planes[:] = [sides[1] * sides[2], 4 * volume.voxels.size]
        return 0.0, segment_volume(volume, _InstantPredictor(spec, logits), mirroring=False)

    result = _timed(run, job)
    patches = BATCHES_AHEAD * _InstantPredictor.max_in_flight * 4 * int(np.prod(spec.patch_size))
    allowed = 1.3 * job.classes * spec.patch_size[0] * planes[0] * 4 + patches + 3 * planes[1]
    return result.model_copy(update={"allowed_mb": allowed / (1 << 20)})


def _run_nnunet(job: Job) -> JobResult:
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    manager = PlansManager(job.network.plans)
    call = {"prepare": _nnunet_prepare, "blend": _nnunet_blend, "export": _nnunet_export}
    return call[job.function](job, manager, manager.get_configuration("3d_fullres"))


def _nnunet_prepare(job: Job, manager: Any, configuration: Any) -> JobResult:
    reader = manager.image_reader_writer_class()
    voxels, properties = reader.read_images([job.scan])
    preprocessor = configuration.preprocessor_class(verbose=False)
    dataset = job.network.dataset_json

    def prepare(array: Array) -> tuple[float, Array]:
        data, *_ = preprocessor.run_case_npy(array, None, dict(properties), manager, configuration, dataset)
        return 0.0, data

    prepare(voxels[:, :8, :32, :32])
    return _timed(lambda: prepare(voxels), job)


def _nnunet_blend(job: Job, manager: Any, configuration: Any) -> JobResult:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    logits = torch.from_numpy(_patch_logits(job)[None])
    answering_s = [0.0]

    class InstantPredictor(nnUNetPredictor):  # type: ignore[misc]  # nnU-Net has no types
        def _internal_maybe_mirror_and_predict(self, x: Any) -> Any:  # noqa: ARG002 - nnU-Net's signature
            started = time.perf_counter()
            answer = logits.clone()  # nnU-Net multiplies in place
            answering_s[0] += time.perf_counter() - started
            return answer

    predictor = InstantPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False
    )
    predictor.configuration_manager = configuration
    predictor.label_manager = manager.get_label_manager(job.network.dataset_json)
    data = torch.zeros((1, *job.source_shape))

    def blend() -> tuple[float, Array]:
        answering_s[0] = 0.0
        slicers = predictor._internal_get_sliding_window_slicers(data.shape[1:])
        with torch.inference_mode():
            blended = predictor._internal_predict_sliding_window_return_logits(data, slicers, False)
        return answering_s[0], cast(Array, blended[:, job.source_shape[0] // 2].float().numpy())

    return _timed(blend, job)


def _nnunet_export(job: Job, manager: Any, configuration: Any) -> JobResult:
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    logits = torch.from_numpy(_logits(job))
    properties = {
        "spacing": list(job.spacing_mm),
        "shape_before_cropping": job.target_shape,
        "shape_after_cropping_and_before_resampling": job.target_shape,
        "bbox_used_for_cropping": [[0, size] for size in job.target_shape],
    }
    labels = manager.get_label_manager(job.network.dataset_json)
    threads = torch.get_num_threads()

    def export() -> tuple[float, Array]:
        segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, manager, configuration, labels, properties, False, threads
        )
        return 0.0, np.asarray(segmentation)

    return _timed(export, job)


def sample_of(path: Path) -> Array:
    """Return what a job left in its sample file."""
    return cast(Array, np.load(path))


if __name__ == "__main__":
    sys.exit(main())
