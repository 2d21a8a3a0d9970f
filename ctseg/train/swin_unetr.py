"""Swin UNETR with nnU-Net's calling convention, for patches of any size.

``plans.json`` names :class:`SwinUNETR` as its ``network_class_name``, so nnU-Net's own
``get_network_from_plans`` builds it, in training and in inference.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from monai.networks import nets

SIDE_MULTIPLE = 32
"""A side has to be divisible by this: patch embedding halves it, and each of four stages again."""


def padded_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest sides, none below ``sides``, that Swin UNETR can work with.

    32 divides each, and one is at least 64: a single voxel in the deepest stage has no mean and
    variance for the instance normalisation there.
    """
    padded = [-(-int(side) // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in sides]
    if max(padded) == SIDE_MULTIPLE:
        padded[-1] = 2 * SIDE_MULTIPLE
    return tuple(padded)


class SwinUNETR(nets.SwinUNETR):  # type: ignore[misc,name-defined]  # MONAI publishes no types
    """MONAI's Swin UNETR, built from nnU-Net's arguments; parameter names are MONAI's.

    Patches of other sides than :func:`padded_sides` are padded with zeros at their end, and the
    logits are cropped back, so that plans made for another network can be trained as they are.

    Args:
        input_channels: Number of image channels.
        num_classes: Number of segmentation heads (labels, or regions).
        spatial_dims: 2 or 3.
        feature_size: Channels of the first stage; divisible by 12.
        depths: Transformer blocks per stage.
        num_heads: Attention heads per stage.
        window_size: Side of the attention window in tokens.
        use_checkpoint: Trade time for memory by gradient checkpointing.
        deep_supervision: What nnU-Net asks every network for; this one has none.

    Raises:
        ValueError: ``deep_supervision`` is asked for.

    Source:
        Hatamizadeh et al., "Swin UNETR", 2022; MONAI 1.6 ``monai.networks.nets.SwinUNETR``.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 3,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        use_checkpoint: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        if deep_supervision:
            raise ValueError("Swin UNETR has one output: it cannot be trained with deep supervision")
        super().__init__(
            in_channels=input_channels,
            out_channels=num_classes,
            spatial_dims=spatial_dims,
            feature_size=feature_size,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            use_checkpoint=use_checkpoint,
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return logits for patches.

        Args:
            patches: (batch, input_channels, *patch_size).

        Returns:
            (batch, num_classes, *patch_size).
        """
        sides = patches.shape[2:]
        # int() keeps the sides constant in an exported graph: only the batch is dynamic there
        padding = [padded - int(side) for padded, side in zip(padded_sides(sides), sides, strict=True)]
        if not any(padding):
            return super().forward(patches)  # type: ignore[no-any-return]
        # F.pad lists the last axis first, each as (before, after)
        flat = [amount for side in reversed(padding) for amount in (0, side)]
        logits: torch.Tensor = super().forward(F.pad(patches, flat))
        for axis, side in enumerate(sides, start=2):
            logits = logits.narrow(axis, 0, int(side))
        return logits
