"""Plans and datasets as nnU-Net and its users write them, with networks small enough for tests; no torch needed."""

from typing import Any

from benchmarks.plans import CT_INTENSITY, make_dataset, make_plans
from ctseg.train import architectures
from ctseg.train.architectures import swin_architecture

__all__ = ["CT_INTENSITY", "make_dataset", "make_plans", "swin_architecture", "unet_architecture"]


def unet_architecture(
    dims: int, *, kind: str = "PlainConvUNet", features: tuple[int, ...] = (4, 8, 16)
) -> dict[str, Any]:
    """A small U-Net described as nnU-Net's plans do."""
    return architectures.unet_architecture(dims, features=features, residual=kind == "ResidualEncoderUNet")
