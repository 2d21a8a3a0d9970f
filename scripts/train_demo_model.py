"""Train the demo's networks, as `model_repository/README.md` describes; resumable.

    python scripts/train_demo_model.py sarcoma --epochs 60
    python scripts/train_demo_model.py composition --epochs 100

Needs nnU-Net's three folders in the environment, and the model's dataset planned and preprocessed under
the name `nnUNetPlans_demo`. The plans are nnU-Net's own at a coarser in-plane spacing; here they get a
smaller patch and a smaller network, so that CPU cores can train them within an hour or two.
"""

import argparse
import json
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

from ctseg.train.architectures import swin_architecture, unet_architecture

PLANS = "nnUNetPlans_demo"
DATASETS = {"sarcoma": "Dataset101_Sarcoma", "composition": "Dataset102_Composition"}
PATCH_SIZES = {"sarcoma": [32, 64, 64], "composition": [24, 80, 80]}


def write_plans(model: str, network: str, patch_size: list[int]) -> str:
    """Write the small variant of the demo's plans beside them; return its name."""
    folder = Path(str(nnUNet_preprocessed)) / DATASETS[model]
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=patch_size, batch_size=2)
    configuration["architecture"] = (
        unet_architecture(3, features=(16, 32, 64, 128), blocks=2) if network == "unet" else swin_architecture(3)
    )
    plans["plans_name"] = f"{PLANS}_{network}"
    plans["configurations"] = {"3d_fullres": configuration}
    (folder / f"{PLANS}_{network}.json").write_text(json.dumps(plans, indent=4))
    return plans["plans_name"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=list(DATASETS))
    parser.add_argument("--network", choices=["unet", "swin"], default="unet")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--patch_size", type=int, nargs=3, help="default: that of the model that is committed")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--pretrained", help="checkpoint whose weights to begin with")
    args = parser.parse_args()
    trainer_name = {"unet": "nnUNetTrainer", "swin": "nnUNetTrainerSwinUNETR"}[args.network]
    plans_name = write_plans(args.model, args.network, args.patch_size or PATCH_SIZES[args.model])
    fold = "all" if args.fold == "all" else int(args.fold)
    device = torch.device("cpu")
    trainer = get_trainer_from_args(
        DATASETS[args.model], "3d_fullres", fold, trainer_name, plans_name, args.resume, device
    )
    trainer.num_epochs = args.epochs
    trainer.num_iterations_per_epoch = args.iterations
    trainer.num_val_iterations_per_epoch = 4
    trainer.save_every = 1
    if args.lr is not None:
        trainer.initial_lr = args.lr
    maybe_load_checkpoint(trainer, args.resume, False, args.pretrained)
    train_step = trainer.train_step

    def train_step_bfloat16(batch: dict) -> dict:
        # halves the time of the U-Net on CPUs with AVX512-BF16; nnU-Net itself has mixed precision on CUDA only
        with torch.autocast("cpu", torch.bfloat16):
            return train_step(batch)

    trainer.train_step = train_step_bfloat16
    trainer.run_training()
    trainer.perform_actual_validation()


if __name__ == "__main__":
    main()
