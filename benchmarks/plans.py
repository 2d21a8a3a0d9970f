"""Whole ``plans.json`` and ``dataset.json`` as nnU-Net and its users write them, for models to measure or to test.

Plain data, no torch. They lie here, outside the wheel, because the product never makes plans of nothing; the
networks in them are :mod:`ctseg.train.architectures`, which the planner writes, too.
"""

from typing import Any

from ctseg.train.architectures import unet_architecture

CT_INTENSITY = {
    "mean": 33.8, "std": 34.0, "percentile_00_5": -84.0, "percentile_99_5": 144.0,
    "min": -1000.0, "max": 1500.0, "median": 40.0,
}  # fmt: skip


def make_plans(
    *,
    patch_size: tuple[int, ...] = (16, 32, 32),
    spacing: tuple[float, ...] = (3.0, 2.0, 2.0),
    configuration: str = "3d_fullres",
    architecture: dict[str, Any] | None = None,
    normalization: tuple[str, ...] = ("CTNormalization",),
    use_mask_for_norm: tuple[bool, ...] | None = None,
    resampling_data: tuple[str, dict[str, Any]] = (
        "resample_data_or_seg_to_shape", {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    ),
    resampling_logits: tuple[str, dict[str, Any]] = (
        "resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    ),
    transpose_forward: tuple[int, int, int] = (0, 1, 2),
    reader: str = "SimpleITKIO",
    median_shape: tuple[int, int, int] = (40, 100, 100),
    original_spacing: tuple[float, float, float] = (3.0, 1.0, 1.0),
    name: str = "Dataset999_Test",
) -> dict[str, Any]:  # fmt: skip
    """Return plans as nnU-Net writes them; each parameter is one field of theirs, which somebody varies."""
    channels = len(normalization)
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(original_spacing),
        "original_median_shape_after_transp": list(median_shape),
        "image_reader_writer": reader,
        "transpose_forward": list(transpose_forward),
        "transpose_backward": [transpose_forward.index(i) for i in range(3)],
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch_size),
                "median_image_size_in_voxels": list(median_shape),
                "spacing": list(spacing),
                "normalization_schemes": list(normalization),
                "use_mask_for_norm": list(use_mask_for_norm or [False] * channels),
                "resampling_fn_data": resampling_data[0],
                "resampling_fn_seg": resampling_data[0],
                "resampling_fn_data_kwargs": resampling_data[1],
                "resampling_fn_seg_kwargs": {**resampling_data[1], "is_seg": True, "order": 1}
                if resampling_data[0] == "resample_data_or_seg_to_shape"
                else resampling_data[1],
                "resampling_fn_probabilities": resampling_logits[0],
                "resampling_fn_probabilities_kwargs": resampling_logits[1],
                "architecture": architecture or unet_architecture(len(patch_size), features=(4, 8, 16)),
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): dict(CT_INTENSITY) for c in range(channels)},
    }


def make_dataset(
    labels: dict[str, Any] | None = None, *, channels: int = 1, regions_class_order: list[int] | None = None
) -> dict[str, Any]:
    """Return ``dataset.json`` as nnU-Net's users write it."""
    dataset: dict[str, Any] = {
        "channel_names": {str(c): "CT" if c == 0 else f"channel{c}" for c in range(channels)},
        "labels": labels or {"background": 0, "tumor": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    if regions_class_order:
        dataset["regions_class_order"] = regions_class_order
    return dataset
