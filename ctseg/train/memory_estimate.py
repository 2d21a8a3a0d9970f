"""GPU memory of a training step of the Swin UNETR, counted on torch's meta device."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ctseg.train.swin_unetr import SwinUNETR

RUNTIME_BYTES = 1_000_000_000
"""CUDA's context and the workspaces of its libraries, roughly."""


@dataclass(frozen=True)
class MemoryEstimate:
    """GPU memory that a training step takes, counted rather than measured.

    Attributes:
        fixed_bytes: Weights, gradients, optimizer, and what CUDA takes for itself.
        per_patch_bytes: What each patch of the batch adds.
        parameters: Number of weights.
    """

    fixed_bytes: int
    per_patch_bytes: int
    parameters: int

    def bytes_of(self, batch_size: int) -> int:
        """Return the memory of a step with a batch of this size."""
        return self.fixed_bytes + batch_size * self.per_patch_bytes

    def largest_batch(self, budget_bytes: float) -> int:
        """Return how many patches fit; 0 where not even one does."""
        return max(0, int((budget_bytes - self.fixed_bytes) // self.per_patch_bytes))


@cache
def _network(channels: int, heads: int, dims: int, feature_size: int, use_checkpoint: bool) -> SwinUNETR:
    state = torch.random.get_rng_state()
    network: SwinUNETR = SwinUNETR(
        channels, heads, spatial_dims=dims, feature_size=feature_size, use_checkpoint=use_checkpoint
    ).to("meta")
    torch.random.set_rng_state(state)
    return network


@cache
def estimate_memory(
    patch_size: tuple[int, ...], channels: int, heads: int, *, feature_size: int, use_checkpoint: bool
) -> MemoryEstimate:
    """Count what a training step of the Swin UNETR keeps in memory.

    The network runs once on torch's meta device, which computes shapes and no numbers, and the bytes
    that autograd keeps for the backward pass are added up, each storage once, in float32. Mixed
    precision takes less. The largest of them counts three times more: its gradient, and a copy of each
    while a layer works.

    Args:
        patch_size: Voxels along each axis.
        channels: Input channels.
        heads: Output channels.
        feature_size: Width of the network.
        use_checkpoint: Gradient checkpointing.
    """
    network = _network(channels, heads, len(patch_size), feature_size, use_checkpoint)
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # holding it keeps its identity from being given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.empty((1, channels, *patch_size), device="meta"))
    sizes = [storage.nbytes() for storage in kept.values()]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # the loss holds the logits, their softmax, the one-hot labels and a gradient
    loss_bytes = 4 * logits.numel() * 4
    return MemoryEstimate(
        fixed_bytes=parameters * 4 * 4 + RUNTIME_BYTES,
        per_patch_bytes=sum(sizes) + 3 * max(sizes) + loss_bytes,
        parameters=parameters,
    )
