"""ctseg's functions, array to array; run in a process that never loads nnU-Net."""

from pathlib import Path

import numpy as np

from benchmarks.experiments.function_jobs import Array, Job, JobResult, patch_logits, smooth_logits, timed
from benchmarks.models import SPACING_MM
from ctseg.arrays import Logits, Patches
from ctseg.compiled.loading import load_kernels
from ctseg.files.volume import read_volume
from ctseg.model_spec import ModelSpec
from ctseg.nnunet.plans import spec_from_plans
from ctseg.numerics import KERNEL_MODULES
from ctseg.numerics.blend import SlabBlender
from ctseg.numerics.prepare import PreparationRecord, prepare
from ctseg.numerics.restore import LabelRestorer
from ctseg.numerics.windows import cut_patches, plan_windows
from ctseg.predict.predictor import Identity
from ctseg.predict.segment import BATCHES_AHEAD
from ctseg.predict.segmenter import segment_volume

_SLAB_PLANES = 16


def run_job(job: Job) -> JobResult:
    """Run a function of ctseg."""
    for name in KERNEL_MODULES:
        load_kernels(name)
    network = job.network
    spec = spec_from_plans(
        network.plans, network.dataset_json, "3d_fullres", name=network.name, mirror_axes=(), mirroring="none",
        max_batch_size=1,
    )  # fmt: skip
    run = {"prepare": _prepare, "blend": _blend, "export": _export, "memory": _memory}
    return run[job.function](job, spec)


def _prepare(job: Job, spec: ModelSpec) -> JobResult:
    volume = read_volume([Path(job.scan)], spec.reader)
    prepare(volume.voxels[:, :8, :32, :32], volume.spacing_mm, spec)
    return timed(lambda: (0.0, prepare(volume.voxels, volume.spacing_mm, spec).voxels), job)


def _blend(job: Job, spec: ModelSpec) -> JobResult:
    voxels = np.zeros((1, *job.source_shape), np.float32)
    logits = patch_logits(job)[None]
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

    return timed(blend, job)


def _export(job: Job, spec: ModelSpec) -> JobResult:
    logits = smooth_logits(job).astype(np.float32)
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

    return timed(export, job)


class _InstantPredictor:
    """A network that answers every patch at once, with the same logits."""

    max_batch_size = 1
    max_in_flight = 2

    def __init__(self, spec: ModelSpec, logits: Logits) -> None:
        self.spec = spec
        self.identity = Identity(spec.name, 1, spec.digest, (), "in process")
        self._logits = logits

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:  # noqa: ARG002
        """Return the logits; the patches do not matter."""
        return self._logits[: len(patches)]


def _memory(job: Job, spec: ModelSpec) -> JobResult:
    logits = patch_logits(job)[None]
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

    result = timed(run, job)
    patches = BATCHES_AHEAD * _InstantPredictor.max_in_flight * 4 * int(np.prod(spec.patch_size))
    allowed = 1.3 * job.classes * spec.patch_size[0] * planes[0] * 4 + patches + 3 * planes[1]
    return result.model_copy(update={"allowed_mb": allowed / (1 << 20)})
