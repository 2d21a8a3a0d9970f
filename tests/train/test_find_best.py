"""An ensemble that wins: nnU-Net's own determination sees it, and best.json names it with its post-processing."""

import json
import pickle
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import ndimage

from ctseg.nnunet.best_configuration import BestConfiguration
from tests.support.tiny_trainings import TinyNnunet

UNET, SWIN = "nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainerSwinUNETR__nnUNetSwinUNETRPlans__3d_fullres"
FOLDS = {0: "tiny1", 1: "tiny2"}
ISLAND = np.s_[0:3, 0:3, 0:3]


def write_validation(tiny: TinyNnunet, model: str, fold: int, case: str, tumor: np.ndarray) -> np.ndarray:
    """Write what a validation with ``--npz`` leaves, for one case, and return its labels."""
    preprocessed, folder = tiny.root / "preprocessed" / tiny.dataset, tiny.results / model
    validation = folder / f"fold_{fold}" / "validation"
    validation.mkdir(parents=True)
    shutil.copy(preprocessed / f"{model.split('__')[1]}.json", folder / "plans.json")
    shutil.copy(preprocessed / "dataset.json", folder / "dataset.json")
    _, properties = SimpleITKIO().read_seg(str(preprocessed / "gt_segmentations" / f"{case}.nii.gz"))
    np.savez_compressed(validation / f"{case}.npz", probabilities=np.stack([1 - tumor, tumor]))
    (validation / f"{case}.pkl").write_bytes(pickle.dumps(properties))
    labels = (tumor > 0.5).astype(np.uint8)
    SimpleITKIO().write_seg(labels, str(validation / f"{case}.nii.gz"), properties)
    (validation / "summary.json").write_text(json.dumps({"metric_per_case": []}))
    return labels


def dice(labels: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (labels & truth).sum() / (labels.sum() + truth.sum()))


@pytest.mark.full
def test_an_ensemble_that_wins_is_the_best_with_its_own_postprocessing(tiny: TinyNnunet) -> None:
    before, after = [], []
    for fold, case in FOLDS.items():
        file = tiny.root / "preprocessed" / tiny.dataset / "gt_segmentations" / f"{case}.nii.gz"
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert not truth[ISLAND].any()
        z = np.indices(truth.shape)[0]
        lower, upper = (z <= np.quantile(z[truth == 1], share) for share in (0.6, 0.4))
        # each is sure of a part and doubts the other, so that only the mean of both finds the whole tumour
        better = np.select([(truth == 1) & lower, truth == 1], [0.9, 0.4], 0.05).astype(np.float32)
        better[ISLAND] = 0.6
        worse = np.select([(truth == 1) & ~upper, truth == 1], [0.9, 0.3], 0.05).astype(np.float32)
        labels = write_validation(tiny, SWIN, fold, case, better)
        write_validation(tiny, UNET, fold, case, worse)
        parts, count = ndimage.label(labels)
        assert count == 2
        before.append(dice(labels, truth))
        after.append(dice((parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1).astype(np.uint8), truth))

    said = tiny.run("ctseg", "find-best", "301", "-f", "0", "1", "-np", "1").stdout

    best = BestConfiguration.read(tiny.results / "best.json")
    assert [member.folder_name for member in best.members] == [SWIN, UNET]
    assert best.is_ensemble
    assert best.dice == 1.0
    assert best.folds == (0, 1)
    assert best.members[0].dice == pytest.approx(np.mean(before))
    assert best.members[1].dice is not None
    assert best.members[1].dice < np.mean(before)
    # the ensemble has no island to remove, its better member has
    assert best.postprocessing == ()
    assert best.dice_postprocessed == 1.0 > np.mean(after)
    [file] = (tiny.results / "ensembles").glob("ensemble___*___0_1/postprocessing.json")
    own = json.loads(file.read_text())
    assert own["postprocessing_fns"] == []
    assert f"best ensemble: {SWIN} and {UNET}: Dice 1.0000, 1.0000 with post-processing: none" in said
