"""nnU-Net's planning for the Swin UNETR.

nnU-Net chooses spacing, normalisation and resampling as ever. What changes is the network and what
hangs on it: sides that 32 divides, and a batch, a width and checkpointing that fit the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from ctseg.errors import SetupError
from ctseg.train.architectures import swin_architecture
from ctseg.train.memory_estimate import MemoryEstimate, estimate_memory
from ctseg.train.names import STOCK_PLANS, SWIN_PLANS
from ctseg.train.swin_unetr import SIDE_MULTIPLE, padded_sides

DEFAULT_GPU_MEMORY_GB = 16.0
ESTIMATE_KEY = "ctseg_memory_estimate"
"""Key of the estimate in a configuration of the plans; nnU-Net ignores it."""

FEATURE_SIZES = (48, 36, 24, 12)
WANTED_PATCH_VOXELS = {2: 256**2, 3: 96**3}
"""A wider network is not bought with a patch smaller than this (the one that Swin UNETR was published with)."""
LARGEST_SIDE = {2: 1024, 3: 320}


@dataclass(frozen=True)
class SwinConfiguration:
    """What the planner decides."""

    patch_size: tuple[int, ...]
    batch_size: int
    feature_size: int
    use_checkpoint: bool
    estimate: MemoryEstimate


@dataclass(frozen=True)
class _Candidate:
    """A Swin UNETR that might be planned."""

    channels: int
    heads: int
    feature_size: int
    use_checkpoint: bool

    def estimate(self, patch: tuple[int, ...]) -> MemoryEstimate:
        return estimate_memory(
            patch, self.channels, self.heads, feature_size=self.feature_size, use_checkpoint=self.use_checkpoint
        )


def plan_swin(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    *,
    channels: int,
    heads: int,
    gpu_memory_gb: float,
    dataset_voxels: float,
) -> SwinConfiguration:
    """Fit patch, batch and width of the Swin UNETR to data and memory.

    The patch begins with the proportions of the spacing, no larger than the median case, each side
    rounded to a multiple of 32; the side that covers most of its axis shrinks until two patches fit,
    as in nnU-Net. The widest network wins whose patch is the one wanted, or holds at least
    :data:`WANTED_PATCH_VOXELS`; gradient checkpointing comes before a narrower network.

    Args:
        spacing_mm: Distance between voxels along each axis, after resampling.
        median_shape: Median number of voxels along each axis, after resampling.
        channels: Input channels.
        heads: Output channels.
        gpu_memory_gb: Memory of one GPU, in 10^9 bytes.
        dataset_voxels: Voxels of all training cases; a batch covers at most a twentieth.

    Raises:
        SetupError: Not even the smallest network fits.
    """
    dims, budget = len(spacing_mm), gpu_memory_gb * 1e9
    wanted = _first_patch(spacing_mm, median_shape)
    enough = min(WANTED_PATCH_VOXELS[dims], int(np.prod(wanted)))
    choice: tuple[_Candidate, tuple[int, ...]] | None = None
    for feature_size in FEATURE_SIZES:
        for use_checkpoint in (False, True):
            candidate = _Candidate(channels, heads, feature_size, use_checkpoint)
            patch = _largest_patch(candidate, wanted, median_shape, budget)
            if patch is None:
                continue
            choice = (candidate, patch)
            if np.prod(patch) >= enough:
                return _with_batch(*choice, budget, dataset_voxels)
    if choice is None:
        smallest = _Candidate(channels, heads, FEATURE_SIZES[-1], use_checkpoint=True)
        needed = smallest.estimate(padded_sides((SIDE_MULTIPLE,) * dims)).bytes_of(2)
        raise SetupError(
            f"{gpu_memory_gb:g} GB of GPU memory: even the smallest Swin UNETR needs about "
            f"{needed / 1e9:.1f} GB for a batch of 2: plan for a GPU with more memory",
            settings=("gpu_memory_gb",),
        )
    return _with_batch(*choice, budget, dataset_voxels)


def _first_patch(spacing_mm: Sequence[float], median_shape: Sequence[float]) -> tuple[int, ...]:
    dims = len(spacing_mm)
    proportions = 1 / np.asarray(spacing_mm, dtype=float)
    cube = proportions * ((256**3 if dims == 3 else 2048**2) / np.prod(proportions)) ** (1 / dims)
    sides = np.minimum(np.minimum(cube, np.asarray(median_shape[:dims], dtype=float)), LARGEST_SIDE[dims])
    return padded_sides([max(1, int(side / SIDE_MULTIPLE + 0.5)) * SIDE_MULTIPLE for side in sides])


def _largest_patch(
    candidate: _Candidate, wanted: tuple[int, ...], median_shape: Sequence[float], budget: float
) -> tuple[int, ...] | None:
    """Return the largest patch of which two fit the budget; None where not even the smallest does."""
    dims = len(wanted)
    # memory grows with the voxels: patches that are far too large need no exact count
    probe = candidate.estimate((2 * SIDE_MULTIPLE,) * dims)
    per_voxel = 0.7 * probe.per_patch_bytes / (2 * SIDE_MULTIPLE) ** dims
    patch: tuple[int, ...] | None = wanted
    while patch is not None and (
        2 * per_voxel * np.prod(patch) > budget or candidate.estimate(patch).largest_batch(budget) < 2
    ):
        patch = _smaller(patch, median_shape)
    return patch


def _smaller(patch: tuple[int, ...], median_shape: Sequence[float]) -> tuple[int, ...] | None:
    shrinkable = [axis for axis, side in enumerate(patch) if side > SIDE_MULTIPLE]
    if not shrinkable:
        return None
    axis = max(shrinkable, key=lambda axis: patch[axis] / median_shape[axis])
    smaller = tuple(side - SIDE_MULTIPLE if i == axis else side for i, side in enumerate(patch))
    return smaller if padded_sides(smaller) == smaller else None


def _with_batch(
    candidate: _Candidate, patch: tuple[int, ...], budget: float, dataset_voxels: float
) -> SwinConfiguration:
    estimate = candidate.estimate(patch)
    covered = round(dataset_voxels * 0.05 / float(np.prod(patch)))
    return SwinConfiguration(
        patch_size=patch,
        batch_size=max(2, min(estimate.largest_batch(budget), covered)),
        feature_size=candidate.feature_size,
        use_checkpoint=candidate.use_checkpoint,
        estimate=estimate,
    )


class nnUNetPlannerSwinUNETR(ExperimentPlanner):  # type: ignore[misc]  # noqa: N801 (nnU-Net's way of naming)
    """nnU-Net's planner with a Swin UNETR in place of its U-Net."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = DEFAULT_GPU_MEMORY_GB,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = SWIN_PLANS,
        overwrite_target_spacing: list[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return the folder of preprocessed cases: nnU-Net's own where the same spacing makes them the same."""
        plans = STOCK_PLANS if configuration_name in ("2d", "3d_fullres") else self.plans_identifier
        return f"{plans}_{configuration_name}"

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """Return a configuration of the plans, as nnU-Net's planner does."""
        channel_names = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        decided = plan_swin(
            [float(value) for value in spacing],
            [float(value) for value in median_shape],
            channels=len(channel_names),
            heads=len(self.dataset_json["labels"]),
            gpu_memory_gb=self.UNet_vram_target_GB,
            dataset_voxels=approximate_n_voxels_dataset,
        )
        data, data_kwargs, seg, seg_kwargs = self.determine_resampling()
        softmax, softmax_kwargs = self.determine_segmentation_softmax_export_fn()
        schemes, masks = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return {
            "data_identifier": data_identifier,
            "preprocessor_name": self.preprocessor_name,
            "batch_size": decided.batch_size,
            "patch_size": list(decided.patch_size),
            "median_image_size_in_voxels": median_shape,
            "spacing": spacing,
            "normalization_schemes": schemes,
            "use_mask_for_norm": masks,
            "resampling_fn_data": data.__name__,
            "resampling_fn_seg": seg.__name__,
            "resampling_fn_data_kwargs": data_kwargs,
            "resampling_fn_seg_kwargs": seg_kwargs,
            "resampling_fn_probabilities": softmax.__name__,
            "resampling_fn_probabilities_kwargs": softmax_kwargs,
            "architecture": swin_architecture(
                len(decided.patch_size), feature_size=decided.feature_size, use_checkpoint=decided.use_checkpoint
            ),
            ESTIMATE_KEY: {
                "gb": round(decided.estimate.bytes_of(decided.batch_size) / 1e9, 2),
                "budget_gb": float(self.UNet_vram_target_GB),
                "parameters": decided.estimate.parameters,
                "measured": False,
            },
        }
