"""What the planner thinks a training step takes, beside what one takes, in mixed precision and without.

Without torch.compile, for the time.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.models import TRAINERS
from benchmarks.plans import make_dataset, make_plans
from ctseg.train.architectures import swin_architecture
from ctseg.train.swin_planner import SwinConfiguration, plan_swin
from scripts.gpu_proof.bench import SPACING_MM, Bench
from scripts.gpu_proof.rows import Teller
from scripts.gpu_proof.training_steps import Job, Round, Rounds, rounds_file

BUDGETS_GB = (8.0, 16.0, 40.0)
REHEARSED_GB = (1.4, 1.7, 2.0)
_HEADS = 3
_STEPS = 3
_NNUNET_TARGET_GB = 8.0
"""For which nnU-Net's default planner makes patches of this size, with a batch of 2."""


def run(bench: Bench, tell: Teller) -> None:
    """Plan for three budgets, and take training steps as planned."""
    if bench.device == "gpu" and not bench.found.gpus:
        tell.not_found("training steps on a GPU", "torch finds no CUDA device")
        return
    for budget_gb in REHEARSED_GB if bench.rehearse else BUDGETS_GB:
        with tell.attempt(f"Swin UNETR planned for {budget_gb:g} GB"):
            _swin(bench, tell, budget_gb)
    network = bench.networks[0]
    with tell.attempt("nnU-Net's default U-Net"):
        for took in _steps(bench, network.name, network.plans, network.dataset_json, network.trainer):
            _tell(bench, tell, f"plain U-Net, patch {_patch(network.plans)}, batch 2", took, _NNUNET_TARGET_GB, None)


def _swin(bench: Bench, tell: Teller, budget_gb: float) -> None:
    planned = plan_swin(
        SPACING_MM, (200, 512, 512), channels=1, heads=_HEADS, gpu_memory_gb=budget_gb, dataset_voxels=1e10
    )
    plans = _plans(planned)
    dataset = make_dataset({"background": 0, **{f"label{i}": i for i in range(1, _HEADS)}})
    what = (
        f"Swin UNETR for {budget_gb:g} GB: patch {_patch(plans)}, batch {planned.batch_size}, feature size "
        f"{planned.feature_size}{', checkpointing' if planned.use_checkpoint else ''}"
    )
    estimate_gb = planned.estimate.bytes_of(planned.batch_size) / 1e9
    for took in _steps(bench, f"swin{budget_gb:g}", plans, dataset, TRAINERS["Swin UNETR"]):
        _tell(bench, tell, what, took, budget_gb, estimate_gb)


def _plans(planned: SwinConfiguration) -> dict[str, Any]:
    plans = make_plans(
        name="Dataset804_memory",
        patch_size=planned.patch_size,
        spacing=SPACING_MM,
        original_spacing=SPACING_MM,
        median_shape=(200, 512, 512),
        architecture=swin_architecture(3, feature_size=planned.feature_size, use_checkpoint=planned.use_checkpoint),
    )
    plans["configurations"]["3d_fullres"]["batch_size"] = planned.batch_size
    return plans


def _steps(bench: Bench, name: str, plans: dict[str, Any], dataset: dict[str, Any], trainer: str) -> tuple[Round, ...]:
    """Take steps in a process of their own."""
    path = Path(bench.scratch / f"steps_{name}.json")
    steps = 1 if bench.rehearse else _STEPS
    job = Job(plans=plans, dataset=dataset, trainer=trainer, device=bench.torch_device, amp=(True, False), steps=steps)
    path.write_text(job.model_dump_json(), encoding="utf-8")
    bench.run([sys.executable, "-m", "scripts.gpu_proof.training_steps", path])
    return Rounds.model_validate_json(rounds_file(path, 0).read_bytes()).rounds


def _tell(bench: Bench, tell: Teller, what: str, took: Round, budget_gb: float, estimate_gb: float | None) -> None:
    precision = "mixed precision" if took.amp else "FP32"
    figures = {"used_gb": took.used_gb, "allocated_gb": took.allocated_gb, "seconds_a_step": took.seconds_a_step}
    estimate = ""
    if estimate_gb is not None:
        figures["estimate_gb"] = estimate_gb
        estimate = f"estimated {estimate_gb:.1f} GB, "
    if bench.rehearse:
        found = f"{estimate}the process grew by {took.used_gb:.1f} GB, {took.seconds_a_step:.1f} s a step"
        tell.ok(f"{what}, {precision}", found, "on a CPU nothing is promised", **figures)
        return
    found = (
        f"{estimate}took {took.used_gb:.1f} GB, of it {took.allocated_gb:.1f} GB of tensors at most; "
        f"{took.seconds_a_step * 1000:.0f} ms a step"
    )
    # nnU-Net plans for mixed precision; without it more is no fault of its planner
    judged = took.amp or estimate_gb is not None
    if judged:
        tell.judge(f"{what}, {precision}", took.used_gb <= budget_gb, found, f"at most {budget_gb:g} GB", **figures)
    else:
        tell.ok(f"{what}, {precision}", found, "", **figures)


def _patch(plans: dict[str, Any]) -> str:
    return " x ".join(str(side) for side in plans["configurations"]["3d_fullres"]["patch_size"])
