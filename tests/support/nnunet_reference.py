"""nnU-Net itself, run beside ctseg: trained folders made for tests, and its predictor in float32."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctseg.train.trainers import nnUNetTrainerSwinUNETR as trainer_module
from tests.support.nnunet_plans import make_dataset, make_plans, swin_architecture, unet_architecture

__all__ = [
    "Float32Predictor",
    "make_dataset",
    "make_plans",
    "make_trained_folder",
    "reference_predictor",
    "reference_segmentation",
    "swin_architecture",
    "unet_architecture",
]

# where nnU-Net's own code finds the Swin UNETR trainer
os.environ.setdefault("nnUNet_extTrainer", str(Path(trainer_module.__file__).parent))


def make_trained_folder(
    folder: Path,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    *,
    folds: tuple[int | str, ...] = (0,),
    mirror_axes: tuple[int, ...] | None = (0, 1, 2),
    seed: int = 0,
    configuration: str | None = None,
) -> Path:
    """Write a results folder with a random network in each fold, as nnU-Net's trainer leaves it."""
    configuration = configuration or next(iter(plans["configurations"]))
    manager = PlansManager(plans)
    configuration_manager = manager.get_configuration(configuration)
    swin = "SwinUNETR" in configuration_manager.network_arch_class_name
    trainer = "nnUNetTrainerSwinUNETR" if swin else "nnUNetTrainer"
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    channels = determine_num_input_channels(manager, configuration_manager, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for i, fold in enumerate(folds):
        torch.manual_seed(seed + i)
        if swin:
            network = trainer_module.nnUNetTrainerSwinUNETR.build_network_architecture(
                manager, configuration_manager, channels, heads, False
            )
        else:
            from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

            network = nnUNetTrainer.build_network_architecture(manager, configuration_manager, channels, heads, False)
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "optimizer_state": {},
                "grad_scaler_state": None,
                "logging": {},
                "_best_ema": 0.5,
                "current_epoch": 1,
                "init_args": {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset},
                "trainer_name": trainer,
                "inference_allowed_mirroring_axes": mirror_axes,
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder


class Float32Predictor(nnUNetPredictor):
    """nnU-Net's predictor with float32 accumulators and logits; everything else is nnU-Net's.

    Stock nnU-Net sums windows and keeps logits in float16, which changes labels near ties.
    """

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: Any, do_on_device: bool = True
    ) -> torch.Tensor:
        heads = self.label_manager.num_segmentation_heads
        total = torch.zeros((heads, *data.shape[1:]), dtype=torch.float32)
        weight = torch.zeros(data.shape[1:], dtype=torch.float32)
        patch = tuple(self.configuration_manager.patch_size)
        gaussian: Any = 1
        if self.use_gaussian:
            gaussian = compute_gaussian(
                patch, sigma_scale=1.0 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
            )
        for slicer in slicers:
            logits = self._internal_maybe_mirror_and_predict(data[slicer][None])[0]
            total[slicer] += logits * gaussian
            weight[slicer[1:]] += gaussian
        return total / weight


def reference_predictor(
    folder: Path,
    *,
    float32: bool = True,
    mirroring: bool = True,
    tile_step_size: float = 0.5,
    folds: tuple[int | str, ...] | None = (0,),
) -> nnUNetPredictor:
    """nnU-Net's predictor for a trained folder, on the CPU."""
    kind = Float32Predictor if float32 else nnUNetPredictor
    predictor = kind(
        tile_step_size=tile_step_size,
        use_mirroring=mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=folds)
    if not predictor.allowed_mirroring_axes:
        predictor.allowed_mirroring_axes = None
    return predictor


def reference_segmentation(
    predictor: nnUNetPredictor, files: list[Path], *, previous: np.ndarray | None = None
) -> np.ndarray:
    """Labels (z, y, x as the reader yields them) of one case, by nnU-Net's own path.

    Args:
        predictor: nnU-Net's.
        files: The channels.
        previous: (z, y, x): labels of the previous stage of a cascade.
    """
    return _reference(predictor, files, previous, probabilities=False)  # type: ignore[no-any-return]


def reference_probabilities(
    predictor: nnUNetPredictor, files: list[Path], *, previous: np.ndarray | None = None
) -> np.ndarray:
    """Probabilities (heads, z, y, x) of one case, as ``--save_probabilities`` writes them."""
    return _reference(predictor, files, previous, probabilities=True)[1]  # type: ignore[no-any-return]


def _reference(
    predictor: nnUNetPredictor, files: list[Path], previous: np.ndarray | None, *, probabilities: bool
) -> Any:
    reader = predictor.plans_manager.image_reader_writer_class()
    images, properties = reader.read_images([str(file) for file in files])
    labels = None if previous is None else previous[None].astype(np.float32)
    return predictor.predict_single_npy_array(images, properties, labels, None, probabilities)
