"""The trainer that nnU-Net's own commands find through ``nnUNet_extTrainer``.

The folder of this file is what that variable must hold; ``ctseg`` sets it for its own commands.
"""

import math
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch.optim.lr_scheduler import LRScheduler

from ctseg.train.architectures import SWIN_CLASS_NAME
from ctseg.train.swin_unetr import SwinUNETR


class WarmupCosineLR(LRScheduler):
    """Linear warm-up, then cosine decay; a function of the epoch alone, so resuming needs no state.

    Args:
        optimizer: Whose learning rate is set.
        initial_lr: Learning rate at the end of the warm-up.
        warmup_epochs: Epochs of linear growth from ``initial_lr / warmup_epochs``.
        num_epochs: Epoch at which the cosine reaches zero.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, initial_lr: float, warmup_epochs: int, num_epochs: int
    ) -> None:
        self.initial_lr = initial_lr
        self.warmup_epochs = warmup_epochs
        self.num_epochs = num_epochs
        super().__init__(optimizer)

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        if epoch < self.warmup_epochs:
            return self.initial_lr * (epoch + 1) / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / max(1, self.num_epochs - self.warmup_epochs)
        return self.initial_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate of ``epoch``; nnU-Net passes the epoch that begins."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class nnUNetTrainerSwinUNETR(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 (nnU-Net finds trainers by such names)
    """Swin UNETR inside nnU-Net: no deep supervision, AdamW with warm-up and cosine decay.

    Plans that describe the Swin UNETR (``ctseg plan`` writes them) configure it; on any other
    plans it takes its defaults and pads patches to a multiple of 32.
    """

    # nnU-Net records these arguments by their names
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-4
        self.weight_decay = 1e-5
        self.warmup_epochs = 10
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: Any,
        num_output_channels: int,
        *more: int | bool,
        enable_deep_supervision: bool = False,  # noqa: ARG004 (nnU-Net names it, by position or by keyword)
    ) -> torch.nn.Module:
        """Build the network, by nnU-Net's present signature or by the one before 2.8.

        The former one was ``(network_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
        num_input_channels, num_output_channels, enable_deep_supervision)``.

        Returns:
            The network, with one output whatever ``enable_deep_supervision`` says.
        """
        if isinstance(plans_manager, str):
            class_name, kwargs = plans_manager, configuration_manager
            channels, heads = num_output_channels, int(more[0])
            spatial_dims = 2 if "2d" in str(kwargs.get("conv_op", "")).lower() else 3
        else:
            class_name = configuration_manager.network_arch_class_name
            kwargs = configuration_manager.network_arch_init_kwargs
            channels, heads = int(num_input_channels), num_output_channels
            spatial_dims = len(configuration_manager.patch_size)
        if class_name == SWIN_CLASS_NAME:
            network: torch.nn.Module = get_network_from_plans(
                class_name, kwargs, [], channels, heads, deep_supervision=False
            )
            return network
        return SwinUNETR(channels, heads, spatial_dims=spatial_dims, use_checkpoint=True)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return AdamW and the schedule that nnU-Net steps once an epoch."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        warmup_epochs = max(1, min(self.warmup_epochs, self.num_epochs // 10))
        return optimizer, WarmupCosineLR(optimizer, self.initial_lr, warmup_epochs, self.num_epochs)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: the network has one output."""
