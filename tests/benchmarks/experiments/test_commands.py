"""Labels of both programs are compared voxel by voxel."""

import nibabel as nib
import numpy as np
import pytest

from benchmarks.experiments.commands import agreement_of


def write_labels(folder, case, labels):
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"{case}.nii.gz")


def test_agreement_counts_voxels_of_all_scans_and_the_worst_label(tmp_path):
    theirs = np.zeros((20, 30, 40), np.uint8)
    theirs[:10] = 1  # 12,000 voxels
    theirs[19, :2] = 2  # 80 voxels: too few to say anything
    ours = theirs.copy()
    ours[9] = 0  # 1,200 fewer
    ours[19, :2] = 0
    same = np.ones((4, 20, 20), np.uint8)
    for case, one, other in (("a", theirs, ours), ("b", same, same)):
        write_labels(tmp_path / "theirs", case, one)
        write_labels(tmp_path / "ours", case, other)
    agreement = agreement_of(tmp_path / "theirs", tmp_path / "ours", ["a", "b"], classes=3)
    assert agreement.equal_share == pytest.approx(1 - (1200 + 80) / (24000 + 1600))
    assert agreement.lowest_dice == pytest.approx(2 * 10800 / (12000 + 10800))


def test_without_a_label_there_is_no_dice(tmp_path):
    write_labels(tmp_path, "a", np.zeros((4, 5, 6), np.uint8))
    agreement = agreement_of(tmp_path, tmp_path, ["a"], classes=2)
    assert (agreement.equal_share, agreement.lowest_dice) == (1.0, None)
