"""Networks as nnU-Net's plans describe them: plain data, no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

SWIN_CLASS_NAME = "ctseg.train.swin_unetr.SwinUNETR"
"""What plans name as the class of the Swin UNETR; nnU-Net imports it by this name."""


def swin_architecture(dims: int, *, feature_size: int = 12, **more: Any) -> dict[str, Any]:
    """Return the ``architecture`` of plans for a Swin UNETR.

    Args:
        dims: 2 or 3.
        feature_size: Width of the network; 12 is the narrowest.
        more: Further arguments of :class:`ctseg.train.swin_unetr.SwinUNETR`.
    """
    return {
        "network_class_name": SWIN_CLASS_NAME,
        "arch_kwargs": {"spatial_dims": dims, "feature_size": feature_size, **more},
        "_kw_requires_import": [],
    }


def unet_architecture(
    dims: int,
    *,
    features: Sequence[int],
    blocks: int = 1,
    residual: bool = False,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the ``architecture`` of plans for a U-Net whose stages each halve every axis.

    Args:
        dims: 2 or 3.
        features: Channels of each stage.
        blocks: Convolutions (or residual blocks) in each stage, on the way down and up.
        residual: The residual encoder U-Net in place of the plain one.
        more: Arguments of the network that differ.
    """
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * stages,
            "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
            "n_blocks_per_stage" if residual else "n_conv_per_stage": [blocks] * stages,
            "n_conv_per_stage_decoder": [blocks] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
            **(more or {}),
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
