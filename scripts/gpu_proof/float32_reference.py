"""nnU-Net's own predictor with float32 accumulators and logits, over a folder: what labels are compared with.

Stock nnU-Net runs under autocast on a GPU, sums windows in float16 and keeps logits in float16, which changes labels
near ties.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian


class Float32Predictor(nnUNetPredictor):  # type: ignore[misc]
    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self,
        data: torch.Tensor,
        slicers: Any,
        do_on_device: bool = True,  # noqa: ARG002 (nnU-Net's signature)
    ) -> torch.Tensor:
        total = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]))
        weight = torch.zeros(data.shape[1:])
        patch = tuple(self.configuration_manager.patch_size)
        gaussian = compute_gaussian(
            patch, sigma_scale=1.0 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
        )
        with torch.autocast(self.device.type, enabled=False):
            for slicer in slicers:
                window = data[slicer][None].to(self.device)
                total[slicer] += self._internal_maybe_mirror_and_predict(window)[0].float().cpu() * gaussian
                weight[slicer[1:]] += gaussian
        return total / weight


def segment(trained: str, files: Sequence[str], output: str, device: str) -> None:
    """Segment scans, one after the other, in full float32 (no TF32).

    Args:
        trained: The trained model's folder, with fold 0.
        files: ``<case>_0000.nii.gz``.
        output: Folder for ``<case>.nii.gz``.
        device: ``cuda`` or ``cpu``.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    predictor = Float32Predictor(
        perform_everything_on_device=False, device=torch.device(device), allow_tqdm=False, use_mirroring=True
    )
    predictor.initialize_from_trained_model_folder(trained, use_folds=(0,))
    reader = predictor.plans_manager.image_reader_writer_class()
    Path(output).mkdir(parents=True, exist_ok=True)
    for file in map(Path, files):
        images, properties = reader.read_images([str(file)])
        labels = predictor.predict_single_npy_array(images, properties, None, None, False)
        target = Path(output) / file.name.replace("_0000.nii.gz", ".nii.gz")
        reader.write_seg(np.asarray(labels), str(target), properties)
