"""Where the processes of a training run."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import SetupError
from ctseg.train.worker_processes import end_with_the_launcher

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""A validation may keep a process waiting for as long as the others have cases left."""


@dataclass(frozen=True)
class Placement:
    """Where one process of a training runs.

    Attributes:
        device: The device of this process.
        rank: Its number among all processes, on all nodes.
        world_size: Number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1


@contextlib.contextmanager
def placed(device: str | None, *, distributed: bool) -> Iterator[Placement]:
    """Choose the device of this process, and join the others where ``torchrun`` started several.

    Args:
        device: ``cuda``, ``cpu`` or ``mps``; None takes CUDA where there is a GPU, else the CPU.
        distributed: Several processes are wanted; without it they are taken where ``torchrun`` started them.

    Raises:
        SetupError: The device is not there, or the processes were not started by ``torchrun``.
    """
    kind = _kind_of_device(device)
    world_size, local_rank = _started_processes(distributed=distributed)
    torch_device = _own_device(kind, local_rank)
    _set_threads(kind, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if world_size == 1:
        yield Placement(torch_device)
        return
    if kind == "mps":
        raise SetupError("several processes need CUDA or the CPU, not MPS")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_the_launcher()
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Placement(torch_device, rank=torch.distributed.get_rank(), world_size=world_size)
    finally:
        # a group whose members died cannot be left in good order
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def _kind_of_device(asked: str | None) -> str:
    kind = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            "no GPU: torch finds no CUDA device: train on the CPU, or look at `ctseg doctor`", settings=("device",)
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SetupError("torch finds no MPS device: train on the CPU", settings=("device",))
    return kind


def _started_processes(*, distributed: bool) -> tuple[int, int]:
    """Return the number of processes, and the number of this one on its node."""
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if distributed:
        raise SetupError(
            "a distributed training needs processes that torchrun starts: "
            "`torchrun --nproc_per_node=2 -m ctseg train …`",
            settings=("distributed",),
        )
    return 1, 0


def _own_device(kind: str, local_rank: int) -> torch.device:
    """Return the device of this process, and make it torch's where it is a GPU."""
    if kind != "cuda":
        return torch.device(kind)
    if local_rank >= torch.cuda.device_count():
        raise SetupError(
            f"process {local_rank} of this node has no GPU, torch finds {torch.cuda.device_count()}: "
            f"start torchrun with --nproc_per_node={torch.cuda.device_count()}"
        )
    device = torch.device(kind, local_rank)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    return device


def _set_threads(kind: str, processes: int) -> None:
    # as nnU-Net does: on a GPU more threads only disturb the workers that prepare batches
    wanted = 1 if kind == "cuda" else max(1, usable_cpus() // processes)
    torch.set_num_threads(min(wanted, int(os.environ.get("OMP_NUM_THREADS", wanted))))
