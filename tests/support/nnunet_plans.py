"""Plans and datasets as nnU-Net and its users write them; no torch needed."""

from typing import Any

CT_INTENSITY = {
    "mean": 33.8, "std": 34.0, "percentile_00_5": -84.0, "percentile_99_5": 144.0,
    "min": -1000.0, "max": 1500.0, "median": 40.0,
}  # fmt: skip


def unet_architecture(
    dims: int, *, kind: str = "PlainConvUNet", features: tuple[int, ...] = (4, 8, 16)
) -> dict[str, Any]:
    """A small U-Net described as nnU-Net's plans do."""
    n = len(features)
    module = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "unet"}[kind]
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.{module}.{kind}",
        "arch_kwargs": {
            "n_stages": n,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * n,
            "strides": [[1] * dims] + [[2] * dims] * (n - 1),
            blocks: [1] * n,
            "n_conv_per_stage_decoder": [1] * (n - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def swin_architecture(dims: int) -> dict[str, Any]:
    """The smallest Swin UNETR, described in the plans."""
    return {
        "network_class_name": "ctseg.train.swin_unetr.SwinUNETR",
        "arch_kwargs": {"spatial_dims": dims, "feature_size": 12},
        "_kw_requires_import": [],
    }


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
) -> dict[str, Any]:  # fmt: skip
    """Plans as nnU-Net writes them, with what a test wants to vary."""
    channels = len(normalization)
    return {
        "dataset_name": "Dataset999_Test",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "original_median_shape_after_transp": [40, 100, 100],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose_forward),
        "transpose_backward": [transpose_forward.index(i) for i in range(3)],
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch_size),
                "median_image_size_in_voxels": [40, 100, 100],
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
                "architecture": architecture or unet_architecture(len(patch_size)),
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): CT_INTENSITY for c in range(channels)},
    }


def make_dataset(
    labels: dict[str, Any] | None = None, *, channels: int = 1, regions_class_order: list[int] | None = None
) -> dict[str, Any]:
    """``dataset.json`` as nnU-Net's users write it."""
    dataset: dict[str, Any] = {
        "channel_names": {str(c): "CT" if c == 0 else f"channel{c}" for c in range(channels)},
        "labels": labels or {"background": 0, "tumor": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    if regions_class_order:
        dataset["regions_class_order"] = regions_class_order
    return dataset
