"""One process of a distributed training: takes prepared batches, and saves the parameters after every step.

    torchrun --nproc_per_node=2 tests/train/distributed_worker.py FOLDER [batch_dice] [swin]

The folder holds ``batches.pt``; without torchrun the same steps are made by one process.
"""

import json
import os
import sys
from pathlib import Path

import torch

from ctseg.train.extended_trainer import extended, unwrapped
from ctseg.train.launch import find_trainer
from ctseg.train.options import TrainingOptions
from ctseg.train.placement import Placement, placed


def main() -> None:
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    with placed("cpu", distributed=False) as placement:
        run(folder, placement, swin="swin" in words, batch_dice="batch_dice" in words, steps=int(words[0]))


def run(folder: Path, placement: Placement, *, swin: bool, batch_dice: bool, steps: int) -> None:
    name = "nnUNetTrainerSwinUNETR" if swin else "nnUNetTrainer"
    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / "Dataset301_Tiny"  # noqa: SIM112
    plans = json.loads((preprocessed / ("nnUNetSwinUNETRPlans.json" if swin else "nnUNetPlans.json")).read_text())
    plans["continue_training"] = False
    plans["configurations"]["3d_fullres"]["batch_dice"] = batch_dice
    batches = torch.load(folder / "batches.pt", weights_only=True)
    torch.manual_seed(1)
    options = TrainingOptions(batch_size=len(batches[0]["data"]) // steps, gradient_accumulation_steps=steps)
    trainer = extended(find_trainer(name), options, placement)(
        plans, "3d_fullres", 0, json.loads((preprocessed / "dataset.json").read_text()), placement.device
    )
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    shares = [part for batch in batches for part in _shares(batch, steps, placement)]
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


if __name__ == "__main__":
    main()
