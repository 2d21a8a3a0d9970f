"""One process of a distributed training: takes prepared batches, and saves the parameters after every step."""

import json
import os
from pathlib import Path

import torch

from ctseg.train.extended_trainer import extended, unwrapped
from ctseg.train.launch import find_trainer
from ctseg.train.options import TrainingOptions
from ctseg.train.placement import Placement, placed


def make_steps(folder: str, words: tuple[str, ...]) -> None:
    """Make the steps that ``batches.pt`` in a folder holds, alone or as one of the processes of the environment.

    Args:
        folder: Of ``batches.pt``, and of what is saved.
        words: Number of accumulated batches; then ``batch_dice`` or ``swin``.
    """
    with placed("cpu", distributed=False) as placement:
        _steps(
            Path(folder), placement, swin="swin" in words, batch_dice="batch_dice" in words, accumulated=int(words[0])
        )


def _steps(folder: Path, placement: Placement, *, swin: bool, batch_dice: bool, accumulated: int) -> None:
    name = "nnUNetTrainerSwinUNETR" if swin else "nnUNetTrainer"
    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / "Dataset301_Tiny"  # noqa: SIM112
    plans = json.loads((preprocessed / ("nnUNetSwinUNETRPlans.json" if swin else "nnUNetPlans.json")).read_text())
    plans["continue_training"] = False
    plans["configurations"]["3d_fullres"]["batch_dice"] = batch_dice
    batches = torch.load(folder / "batches.pt", weights_only=True)
    torch.manual_seed(1)
    options = TrainingOptions(
        batch_size=len(batches[0]["data"]) // accumulated, gradient_accumulation_steps=accumulated
    )
    trainer = extended(find_trainer(name), options, placement)(
        plans, "3d_fullres", 0, json.loads((preprocessed / "dataset.json").read_text()), placement.device
    )
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    shares = [part for batch in batches for part in _shares(batch, accumulated, placement)]
    trainer.dataloader_train = iter(shares)
    record = []
    for _ in batches:
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        flat = torch.cat([p.detach().flatten() for p in unwrapped(trainer.network).parameters()])
        record.append({"loss": torch.tensor(float(loss)), "parameters": flat.clone()})
    torch.save(record, folder / f"rank{placement.rank}of{placement.world_size}.pt")


def _shares(batch: dict, steps: int, placement: Placement) -> list[dict]:
    """The part of a batch that this process sees, as small batches."""
    size = len(batch["data"]) // steps // placement.world_size
    parts = []
    for step in range(steps):
        begin = (step * placement.world_size + placement.rank) * size
        target = batch["target"]
        cut = [t[begin : begin + size] for t in target] if isinstance(target, list) else target[begin : begin + size]
        parts.append({"data": batch["data"][begin : begin + size], "target": cut})
    return parts
