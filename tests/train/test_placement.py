"""Where a training runs, and on how many of the machine's processors."""

import os
import sys

import pytest
import torch

from ctseg.errors import SetupError
from ctseg.train.placement import placed
from ctseg.train.worker_processes import default_workers, limit_worker_processes


def test_a_process_by_itself_is_rank_0_of_1() -> None:
    threads = torch.get_num_threads()
    try:
        with placed("cpu", distributed=False) as placement:
            assert (placement.device.type, placement.rank, placement.world_size) == ("cpu", 0, 1)
            assert not placement.distributed
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_with_what_would_help() -> None:
    with pytest.raises(SetupError, match="no GPU: torch finds no CUDA device: train on the CPU") as caught:
        placed("cuda", distributed=False).__enter__()
    assert caught.value.settings == ("device",)


def test_several_processes_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SetupError, match="torchrun --nproc_per_node=2 -m ctseg train") as caught:
        placed("cpu", distributed=True).__enter__()
    assert caught.value.settings == ("distributed",)


@pytest.mark.skipif(sys.platform != "linux", reason="sets the processors as a container's CPU set does")
def test_only_the_processors_of_this_process_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    usable, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert default_workers() == 1
        environment: dict[str, str] = {}
        limit_worker_processes(environment)
        assert environment == {"nnUNet_def_n_proc": "1"}
        with placed("cpu", distributed=False):
            assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, usable)
        torch.set_num_threads(threads)
