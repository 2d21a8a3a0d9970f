"""The Dice coefficient, beside nnU-Net's."""

import math

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn

from ctseg.numerics.dice import dice, dice_of_counts, dice_of_label


def test_dice_is_twice_the_common_voxels_over_both() -> None:
    one = np.array([1, 1, 1, 0, 0], bool)
    other = np.array([1, 1, 0, 1, 0], bool)
    assert dice(one, other) == pytest.approx(4 / 6)
    assert dice_of_counts(2, 3, 3) == pytest.approx(4 / 6)


def test_dice_of_two_empty_masks_is_nan_and_of_one_is_zero() -> None:
    empty, full = np.zeros(4, bool), np.ones(4, bool)
    assert math.isnan(dice(empty, empty))
    assert dice(empty, full) == 0


def test_dice_of_a_region_is_nnunets() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, (2, 7, 8, 9))
    tp, fp, fn, _ = compute_tp_fp_fn_tn(np.isin(one, (2, 3)), np.isin(other, (2, 3)))
    assert dice_of_label(one, other, (2, 3)) == pytest.approx(2 * tp / (2 * tp + fp + fn))
