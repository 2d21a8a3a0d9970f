"""Weights of a Swin UNETR in the layouts in which others publish them."""

import torch

from ctseg.train.swin_unetr import SwinUNETR


def published_encoder(network: SwinUNETR) -> dict[str, torch.Tensor]:
    """The layout of MONAI's self-supervised Swin encoder."""
    weights = {}
    for name, tensor in network.swinViT.state_dict().items():
        name = name.replace(".mlp.linear1.", ".mlp.fc1.").replace(".mlp.linear2.", ".mlp.fc2.")
        weights[f"module.{name}"] = torch.rand_like(tensor) if tensor.is_floating_point() else tensor
    weights["module.rotation_head.weight"] = torch.zeros(4, 4)
    return weights
