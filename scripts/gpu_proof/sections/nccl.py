"""Two processes train as one does: on two GPUs over NCCL; in a rehearsal on the CPU over gloo."""

import sys
from pathlib import Path

from scripts.gpu_proof.bench import SMALL, Bench
from scripts.gpu_proof.rows import Teller
from scripts.gpu_proof.training_steps import Job, Round, Rounds, rounds_file

_STEPS = 2
_LARGEST_ERROR = 1e-3
"""Relative, of losses and of the weights' norm: sums are made in another order."""


def run(bench: Bench, tell: Teller) -> None:
    """Take the same steps in one process and in two."""
    if bench.device == "gpu" and bench.found.gpus < 2:
        tell.not_found("two processes on two GPUs over NCCL", f"{bench.found.gpus or 'no'} GPU here")
        return
    network = SMALL[0]
    ran = {}
    for processes in (1, 2):
        path = bench.scratch / f"nccl_{processes}.json"
        job = Job(
            plans=network.plans,
            dataset=network.dataset_json,
            trainer=network.trainer,
            device=bench.torch_device,
            amp=(False,),
            steps=_STEPS,
            distributed=processes > 1,
        )
        path.write_text(job.model_dump_json(), encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        before = launcher if processes > 1 else []
        bench.run([sys.executable, *before, "-m", "scripts.gpu_proof.training_steps", path])
        ran[processes] = [_round_of(path, rank) for rank in range(processes)]
    alone, (first, second) = ran[1][0], ran[2]
    over = "gloo, on the CPU" if bench.rehearse else "NCCL"
    error = max(
        abs(first.parameters / alone.parameters - 1),
        *(abs((a + b) / 2 / one - 1) for a, b, one in zip(first.losses, second.losses, alone.losses, strict=True)),
    )
    tell.judge(
        f"two processes over {over}: the weights of both",
        first.parameters == second.parameters,
        f"norms {first.parameters:.9g} and {second.parameters:.9g}",
        "equal",
    )
    tell.judge(
        f"two processes over {over}: losses and weights beside one process",
        error < _LARGEST_ERROR,
        f"largest relative difference {error:.1e} after {_STEPS} steps",
        f"under {_LARGEST_ERROR:g}",
        relative_difference=error,
    )


def _round_of(path: Path, rank: int) -> Round:
    return Rounds.model_validate_json(rounds_file(path, rank).read_bytes()).rounds[0]
