"""From a file to labels, beside nnU-Net's own predictor on the same checkpoint.

The network runs in torch on both sides, so what is compared is everything around it: reading,
preparing, windows, blending, mirroring, restoring, post-processing. Labels may differ only where two
heads tie within float32 rounding; the bound below is a tenth of what is promised (99.99 %).
"""

import gc
import weakref

import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from ctseg.errors import InferenceFailedError, InputError
from ctseg.files.volume import read_volume, volume_from_array
from ctseg.model_spec import KeepLargest
from ctseg.predict.segmenter import WindowSegmenter, segment_volume
from tests.support.nnunet_plans import make_dataset, make_plans, swin_architecture, unet_architecture
from tests.support.nnunet_reference import make_trained_folder, reference_predictor, reference_segmentation
from tests.support.threshold import ThresholdPredictor
from tests.support.torch_predictor import TorchPredictor

LARGEST_SHARE_OF_DIFFERENT_VOXELS = 1e-5

FIVE = {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
TORCH_RESAMPLING = ("resample_torch_fornnunet", {"is_seg": False, "force_separate_z": False})

MODELS = {
    "3d_fullres": (make_plans(), make_dataset(FIVE)),
    "3d_lowres": (make_plans(configuration="3d_lowres", spacing=(6.0, 3.0, 3.0)), make_dataset(FIVE)),
    "2d": (make_plans(configuration="2d", patch_size=(48, 64), spacing=(2.0, 1.5)), make_dataset(FIVE)),
    "regions": (make_plans(), make_dataset(REGIONS, regions_class_order=[1, 2])),
    "ignore label": (make_plans(), make_dataset({"background": 0, "a": 1, "ignore": 2})),
    "two channels": (
        make_plans(normalization=("CTNormalization", "ZScoreNormalization"), use_mask_for_norm=(False, True)),
        make_dataset(channels=2),
    ),
    "patch larger than the scan": (make_plans(patch_size=(64, 96, 32), spacing=(5.0, 3.0, 3.0)), make_dataset()),
    "transposed": (make_plans(transpose_forward=(2, 0, 1), spacing=(2.0, 3.0, 2.0)), make_dataset(FIVE)),
    "torch resampling": (
        make_plans(resampling_data=TORCH_RESAMPLING, resampling_logits=TORCH_RESAMPLING), make_dataset(FIVE),
    ),
    "residual encoder": (make_plans(architecture=unet_architecture(3, kind="ResidualEncoderUNet")), make_dataset(FIVE)),
    "Swin UNETR": (
        make_plans(patch_size=(32, 32, 32), spacing=(5.0, 3.0, 3.0), architecture=swin_architecture(3)),
        make_dataset(),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "mirroring"), [*((kind, False) for kind in MODELS), ("3d_fullres", True), ("2d", True)]
)
def test_labels_equal_nnunets(kind, mirroring, ct_piece, tmp_path):
    plans, dataset = MODELS[kind]
    dims = len(next(iter(plans["configurations"].values()))["patch_size"])
    folder = make_trained_folder(tmp_path / "m", plans, dataset, mirror_axes=tuple(range(dims)))
    reference = reference_predictor(folder, mirroring=mirroring)
    files = [ct_piece] * len(dataset["channel_names"])
    expected = reference_segmentation(reference, files)

    predictor = TorchPredictor(reference)
    volume = read_volume(files, predictor.spec.reader)
    labels = segment_volume(volume, predictor, mirroring=mirroring)

    assert labels.shape == expected.shape
    assert len(np.unique(expected)) > 1, "a reference of one label proves nothing"
    assert (labels != expected).mean() <= LARGEST_SHARE_OF_DIFFERENT_VOXELS


def test_postprocessing_is_that_of_the_spec(ct_piece, tmp_path):
    folder = make_trained_folder(tmp_path / "m", make_plans(), make_dataset(FIVE), mirror_axes=None)
    reference = reference_predictor(folder)
    files = [ct_piece]
    expected = reference_segmentation(reference, files)
    for labels_or_region in (2, (1, 3, 4)):
        expected = remove_all_but_largest_component_from_segmentation(expected, labels_or_region)

    steps = (KeepLargest(labels=(2,)), KeepLargest(labels=(1, 3, 4)))
    predictor = TorchPredictor(reference, postprocessing=steps)
    labels = segment_volume(read_volume(files, predictor.spec.reader), predictor)
    assert (labels != expected).mean() <= 1e-3  # one voxel on a tie can join two components


def test_labels_do_not_depend_on_the_batch_size(ct_piece, tmp_path):
    folder = make_trained_folder(tmp_path / "m", make_plans(), make_dataset(FIVE), mirror_axes=None)
    reference = reference_predictor(folder)
    volume = read_volume([ct_piece], "SimpleITKIO")
    one = segment_volume(volume, TorchPredictor(reference, max_batch_size=1))
    many = segment_volume(volume, TorchPredictor(reference, max_batch_size=5))
    assert (one != many).mean() <= LARGEST_SHARE_OF_DIFFERENT_VOXELS


def test_a_scan_of_more_than_a_million_windows_is_refused_with_their_number():
    predictor = ThresholdPredictor()  # patches of 8 x 16 x 16, voxels of 3 x 2 x 1 mm
    volume = volume_from_array(np.zeros((16, 32, 32), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    with pytest.raises(InputError, match=r"1,030,301 windows over 16 x 32 x 32 voxels") as caught:
        segment_volume(volume, predictor, tile_step_size=0.01)
    assert caught.value.settings == ("tile_step_size",)
    assert predictor.calls == 0


class FailingPredictor(ThresholdPredictor):
    def predict(self, patches):
        raise InferenceFailedError(f"out of luck with {len(patches)}")


def test_a_scan_that_failed_is_forgotten_at_once():
    segmenter = WindowSegmenter(FailingPredictor())
    volume = volume_from_array(np.ones((16, 32, 32), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    known = weakref.ref(volume)
    gc.collect()
    gc.disable()  # which looks for cycles too seldom for scans of a gigabyte
    try:
        with pytest.raises(InferenceFailedError, match="out of luck") as caught:
            segmenter.segment(volume)
        del volume, caught
        segmenter.close()
        assert known() is None
    finally:
        gc.enable()
