"""Extended trainers on the tiny data set, and batches for them."""

import json
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctseg.train.extended_trainer import extended
from ctseg.train.options import TrainingOptions
from ctseg.train.placement import Placement
from ctseg.train.trainers.nnUNetTrainerSwinUNETR import nnUNetTrainerSwinUNETR
from tests.support.tiny_trainings import TinyNnunet

CPU = Placement(torch.device("cpu"))


def make_trainer(tiny: TinyNnunet, options: TrainingOptions, *, cls: Any = nnUNetTrainer, **configuration: Any) -> Any:
    """An initialized trainer on the CPU, with the same weights each time."""
    folder = tiny.root / "preprocessed" / tiny.dataset
    name = "nnUNetSwinUNETRPlans" if cls is nnUNetTrainerSwinUNETR else "nnUNetPlans"
    plans = {**json.loads((folder / f"{name}.json").read_text()), "continue_training": False}
    plans["configurations"]["3d_fullres"].update(configuration)
    torch.manual_seed(5)
    trainer = extended(cls, options, CPU)(
        plans, "3d_fullres", 0, json.loads((folder / "dataset.json").read_text()), CPU.device
    )
    trainer.initialize()
    return trainer


def make_batches(trainer: Any, steps: int, size: int) -> list[dict[str, Any]]:
    """Batches of noise in which the bright voxels are the label."""
    generator = torch.Generator().manual_seed(3)
    patch = trainer.configuration_manager.patch_size
    batches = []
    for _ in range(steps):
        data = torch.randn((size, 1, *patch), generator=generator)
        target = (data > 0.8).to(torch.int16)
        scales = trainer._get_deep_supervision_scales() or [None]
        targets = [
            target if s is None else target[(..., *(slice(None, None, round(1 / f)) for f in s))] for s in scales
        ]
        batches.append({"data": data, "target": targets if trainer.enable_deep_supervision else target})
    return batches
