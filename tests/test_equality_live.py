"""The promise: a checkpoint through export, build and a live Triton server gives nnU-Net's own labels.

The reference is nnU-Net's predictor with float32 accumulators and logits, on the same checkpoint and the
same file. ``share`` is the part of all voxels whose label differs; what is promised is 1e-4.
"""

import nibabel as nib
import numpy as np
import pytest

from ctseg.cli.main import main as ctseg
from ctseg.predict.report import Report
from ctseg.serving.process import ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.nnunet_plans import make_dataset, make_plans, swin_architecture
from tests.support.nnunet_reference import make_trained_folder, reference_predictor, reference_segmentation

pytestmark = pytest.mark.live

LARGEST_SHARE = 1e-4

MODELS = {
    # the scan's voxels are 3.35 times as long as wide: its z axis is resampled separately
    "unet": (make_plans(spacing=(3.27, 2.0, 2.0)), make_dataset({"background": 0, "a": 1, "b": 2})),
    "swin": (
        make_plans(patch_size=(32, 32, 32), spacing=(2.5, 2.0, 2.0), architecture=swin_architecture(3)),
        make_dataset({"background": 0, "a": 1, "b": 2}),
    ),
    "smaller_than_patch": (make_plans(patch_size=(24, 40, 32), spacing=(5.0, 3.0, 3.0)), make_dataset()),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory, ct_piece):
    """Trained folders, and one server with an entry for each."""
    root = tmp_path_factory.mktemp("served")
    for name, (plans, dataset) in MODELS.items():
        make_trained_folder(root / name, plans, dataset, mirror_axes=(0, 2))
        words = ["export", "-i", root / name, "-o", root / f"{name}_bundle", "--name", name, "--cases", ct_piece]
        assert ctseg([str(word) for word in words]) == 0
        words = ["build", root / f"{name}_bundle", "--repository", root / "repository", "--backend", "python"]
        assert ctseg([str(word) for word in words]) == 0
    with embedded_server(root / "repository", options=ServerOptions(is_private=False)) as server:
        yield root, server.url


@pytest.mark.parametrize(
    ("name", "mirroring"), [("unet", True), ("unet", False), ("swin", False), ("smaller_than_patch", False)]
)
def test_labels_through_a_live_server_equal_nnunets(served, ct_piece, tmp_path, name, mirroring):
    root, url = served
    words = ["predict", "-i", str(ct_piece), "-o", str(tmp_path), "-m", name, "--url", url]
    assert ctseg(words if mirroring else [*words, "--disable_tta"]) == 0

    reference = reference_predictor(root / name, mirroring=mirroring)
    expected = reference_segmentation(reference, [ct_piece])
    stock = reference_segmentation(reference_predictor(root / name, float32=False, mirroring=mirroring), [ct_piece])

    scan, found = nib.load(ct_piece), nib.load(tmp_path / "piece.nii.gz")
    labels = np.asarray(found.dataobj).transpose(2, 1, 0)
    assert found.shape == scan.shape
    assert np.array_equal(found.affine, scan.affine)
    assert found.get_data_dtype() == np.uint8
    assert len(np.unique(expected)) > 1, "a reference of one label proves nothing"
    share = float((labels != expected).mean())
    print(f"{name}: {share:.2e} of the voxels differ from float32 nnU-Net, {(labels != stock).mean():.2e} from stock")
    assert share <= LARGEST_SHARE

    case = Report.model_validate_json((tmp_path / "report.json").read_bytes()).cases[0]
    if name == "unet":
        assert case.windows >= 8, "two windows on every axis were meant"
    if name == "smaller_than_patch":
        assert case.windows == 1
