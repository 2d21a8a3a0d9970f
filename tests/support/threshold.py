"""A network whose answer is known, and scans whose label map is known."""

import threading
from pathlib import Path

import nibabel as nib
import numpy as np

from ctseg.nnunet.plans import spec_from_plans
from ctseg.predict.predictor import Identity
from tests.support.nnunet_plans import make_dataset, make_plans

PLAIN = ("resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None})


class ThresholdPredictor:
    """A network whose answer is known: what is brighter than nothing is label 1."""

    max_batch_size = 2
    max_in_flight = 2

    def __init__(self, **extra) -> None:
        plans = make_plans(
            patch_size=(8, 16, 16), spacing=(3.0, 2.0, 1.0), normalization=("NoNormalization",), resampling_data=PLAIN
        )
        self.spec = spec_from_plans(plans, make_dataset(), "3d_fullres", name="threshold", mirror_axes=(), **extra)
        self.identity = Identity(self.spec.name, 7, self.spec.digest, ("gpu1:8001", "gpu2:8001"), "grpc")
        self.calls = 0
        self.fails_with: Exception | None = None
        self.waits_for: threading.Event | None = None

    def predict(self, patches):
        self.calls += 1
        if self.waits_for is not None:
            self.waits_for.wait(20)
        if self.fails_with is not None:
            raise self.fails_with
        return np.concatenate([np.zeros_like(patches), patches], axis=1)


def write_scan(path: Path, *, seed: int = 0, shape=(20, 18, 12)) -> np.ndarray:
    """Write a scan at the network's spacing whose label map is known: where it is above zero."""
    voxels = np.random.default_rng(seed).integers(-500, 500, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return (voxels > 0).astype(np.uint8)
