"""Two processes make the steps that one makes with the same global batch, on real CT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctseg.errors import SetupError
from ctseg.train.checkpoints import training_state
from ctseg.train.extended_trainer import seed_everything
from ctseg.train.launch import train
from ctseg.train.options import Training, TrainingOptions
from ctseg.train.paths import NnunetPaths
from ctseg.train.placement import Placement
from ctseg.train.trainers.nnUNetTrainerSwinUNETR import nnUNetTrainerSwinUNETR
from tests.support.distributed_steps import make_steps
from tests.support.tiny_trainings import TinyNnunet, free_port, torchrun
from tests.support.trainers import make_trainer
from tests.support.warm_processes import WarmProcess

STEPS = 2


def real_batches(tiny: TinyNnunet, cls: Any, size: int) -> list[dict[str, Any]]:
    """Batches of the preprocessed cases, without augmentation (the validation's transforms)."""
    trainer = make_trainer(tiny, TrainingOptions(batch_size=size), cls=cls)
    seed_everything(7)
    _, loader = trainer.get_dataloaders()
    return [{key: next(loader)[key] for key in ("data", "target")} for _ in range(STEPS)]


def steps_of(tiny: TinyNnunet, folder: Path, processes: int, *words: str) -> list[list[dict[str, torch.Tensor]]]:
    """Make the steps in processes with the environment that torchrun gives them."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    ranks = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        said = folder / f"said{rank}of{processes}"
        said.mkdir()
        ranks.append(WarmProcess(make_steps, (str(folder), words), {**tiny.environment, **rendezvous, **own}, said))
    for rank in ranks:
        assert rank.wait() == 0, rank.stderr
    return [torch.load(folder / f"rank{rank}of{processes}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (nnUNetTrainer, ("1",)),
        (nnUNetTrainer, ("1", "batch_dice")),
        (nnUNetTrainer, ("2",)),
        pytest.param(nnUNetTrainerSwinUNETR, ("1", "swin"), marks=pytest.mark.full),
    ],
    ids=["unet", "batch_dice", "accumulated", "swin"],
)
def test_two_processes_equal_one_with_the_same_global_batch(
    tiny: TinyNnunet, tmp_path: Path, cls: Any, words: tuple[str, ...]
) -> None:
    torch.save(real_batches(tiny, cls, size=4), tmp_path / "batches.pt")
    ((*alone,),) = steps_of(tiny, tmp_path, 1, *words)
    first, second = steps_of(tiny, tmp_path, 2, *words)
    for step in range(STEPS):
        assert torch.equal(first[step]["parameters"], second[step]["parameters"]), f"the ranks differ after {step}"
        difference = first[step]["parameters"] - alone[step]["parameters"]
        # what is left is the order of summation in float32
        assert difference.norm() <= 1e-5 * alone[step]["parameters"].norm(), f"step {step}"
        mean_loss = (first[step]["loss"] + second[step]["loss"]) / 2
        assert mean_loss == pytest.approx(float(alone[step]["loss"]), rel=1e-4)
    moved = alone[1]["parameters"] - alone[0]["parameters"]
    assert difference.norm() <= 1e-2 * moved.norm()


def test_a_batch_that_the_processes_cannot_share_is_refused_with_advice(tiny: TinyNnunet) -> None:
    training = Training(
        tiny.dataset, "3d_fullres", (0,), "nnUNetTrainer", "nnUNetPlans", TrainingOptions(batch_size=3)
    )  # fmt: skip
    paths = NnunetPaths(tiny.root / "raw", tiny.root / "preprocessed", tiny.root / "results")
    with pytest.raises(SetupError) as caught:
        train(training, paths, Placement(torch.device("cpu"), rank=0, world_size=2))
    assert (
        "a batch of 3 cannot be shared evenly by 2 processes: give a batch size that is a multiple of 2; where memory "
        "is short, accumulate: a batch size of 2 with 2 gradient accumulation steps" in str(caught.value)
    )
    assert caught.value.settings == ("batch_size", "gradient_accumulation_steps")
    assert not any(tiny.results.rglob("checkpoint*"))


@pytest.mark.full
def test_a_failing_process_ends_all_with_its_error(tiny: TinyNnunet) -> None:
    done = tiny.run(
        *torchrun(2, "-m", "ctseg", "train", "301", "3d_fullres", "0", "-tr", "nnUNetTrainerInterrupted"),
        "-device", "cpu", "--epochs", "50", "--iterations_per_epoch", "2", "--distributed=ddp",
        check=False, CTSEG_TEST_FAIL_RANK="1",
        nnUNet_extTrainer=str(Path(__file__).parent / "interrupted_trainer"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "RuntimeError: this rank fell over" in done.stderr
    assert "epoch 1/50" in done.stdout
    assert "epoch 2/50" not in done.stdout
    # what the first epoch learnt is kept
    assert (
        training_state(tiny.results / "nnUNetTrainerInterrupted__nnUNetPlans__3d_fullres" / "fold_0").epochs_done == 1
    )
