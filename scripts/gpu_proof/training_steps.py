"""Training steps on random patches, measured; ``torchrun`` may start several processes of it.

``python -m scripts.gpu_proof.training_steps JOB.json`` writes what each process found beside the job.
"""

import gc
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctseg.documents import Document
from ctseg.train.extended_trainer import extended, unwrapped
from ctseg.train.launch import find_trainer
from ctseg.train.options import TrainingOptions
from ctseg.train.placement import Placement, placed


class Job(Document):
    """What to run.

    Attributes:
        plans: ``plans.json``; its batch is what all processes take together.
        dataset: ``dataset.json``.
        trainer: Name of the trainer.
        device: ``cuda`` or ``cpu``.
        amp: Mixed precision, one round of steps for each.
        steps: In each round.
        distributed: Several processes were started.
    """

    plans: dict[str, Any]
    dataset: dict[str, Any]
    trainer: str
    device: str
    amp: tuple[bool, ...]
    steps: int
    distributed: bool = False


class Round(Document):
    """What one round took.

    Attributes:
        amp: Mixed precision.
        losses: Of each step.
        parameters: Norm of all weights after the last step, as float64.
        seconds_a_step: Of the fastest.
        allocated_gb: Peak of what torch's tensors took on the GPU; 0 on a CPU.
        used_gb: All that the GPU lent, CUDA's context included; on a CPU the growth of the peak resident memory.
    """

    amp: bool
    losses: tuple[float, ...]
    parameters: float
    seconds_a_step: float
    allocated_gb: float
    used_gb: float


class Rounds(Document):
    """All rounds of one process."""

    rounds: tuple[Round, ...]


def rounds_file(job: Path, rank: int) -> Path:
    """Return where a process writes what it found."""
    return job.with_suffix(f".rank{rank}.json")


def main() -> None:
    """Run the job."""
    path = Path(sys.argv[1])
    job = Job.model_validate_json(path.read_bytes())
    with placed(job.device, distributed=job.distributed) as placement:
        rounds = tuple(_round(job, placement, amp=amp) for amp in job.amp)
        rounds_file(path, placement.rank).write_text(Rounds(rounds=rounds).model_dump_json(), encoding="utf-8")


def _round(job: Job, placement: Placement, *, amp: bool) -> Round:
    on_cuda = placement.device.type == "cuda"
    gc.collect()
    before_gb = 0.0
    if not on_cuda:
        before_gb = _resident_gb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(1)
    plans = {**job.plans, "continue_training": False}
    trainer = extended(find_trainer(job.trainer), TrainingOptions(amp=amp), placement)(
        plans, "3d_fullres", 0, job.dataset, placement.device
    )
    _pretend_cases(Path(trainer.preprocessed_dataset_folder))
    trainer.initialize()
    trainer.network.train()
    batch = _batch(trainer, job, placement)
    losses, seconds = [], []
    for _ in range(job.steps):
        began = time.perf_counter()
        losses.append(float(trainer.train_step(batch)["loss"]))  # as numpy: the GPU has done it
        seconds.append(time.perf_counter() - began)
    weights = [parameter.detach().double().flatten() for parameter in unwrapped(trainer.network).parameters()]
    norm = float(torch.linalg.vector_norm(torch.cat([weight.cpu() for weight in weights])))
    if on_cuda:
        free, total = torch.cuda.mem_get_info()
        allocated_gb, used_gb = torch.cuda.max_memory_allocated() / 1e9, (total - free) / 1e9
    else:
        allocated_gb, used_gb = 0.0, _resident_gb("VmHWM") - before_gb
    return Round(
        amp=amp,
        losses=tuple(losses),
        parameters=norm,
        seconds_a_step=min(seconds),
        allocated_gb=allocated_gb,
        used_gb=used_gb,
    )


def _pretend_cases(folder: Path) -> None:
    """Let nnU-Net find how its cases are stored, which it asks before it builds anything; none is read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "none.b2nd").touch()


def _batch(trainer: Any, job: Job, placement: Placement) -> dict[str, Any]:
    """Return this process's share of a random batch, with targets for each output of the network."""
    configuration = job.plans["configurations"]["3d_fullres"]
    size, patch = configuration["batch_size"], configuration["patch_size"]
    rng = np.random.default_rng(0)
    data = rng.standard_normal((size, 1, *patch)).astype(np.float32)
    labels = rng.integers(0, len(job.dataset["labels"]), (size, 1, *patch)).astype(np.float32)
    scales = trainer._get_deep_supervision_scales() if trainer.enable_deep_supervision else None
    share = size // placement.world_size
    mine = slice(placement.rank * share, (placement.rank + 1) * share)
    targets = []
    for scale in scales or [[1.0] * len(patch)]:
        every = tuple(slice(None, None, round(1 / factor)) for factor in scale)
        index = (mine, slice(None), *every)
        targets.append(torch.from_numpy(np.ascontiguousarray(labels[index])))
    return {"data": torch.from_numpy(data[mine]), "target": targets if scales else targets[0]}


def _resident_gb(key: str) -> float:
    """Return the resident memory of this process (``VmRSS``) or its peak (``VmHWM``), as Linux says it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    main()
