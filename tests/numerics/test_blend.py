"""Blending, beside nnU-Net's own sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from ctseg.errors import InferenceFailedError
from ctseg.numerics.blend import SlabBlender, gaussian
from ctseg.numerics.windows import WindowPlan, plan_windows
from tests.support.nnunet_windows import geometries, nnunet_windows


def nnunet_blended(logits: np.ndarray, voxels: np.ndarray, patch_size: tuple[int, ...], step: float) -> np.ndarray:
    """The sums and the division of nnU-Net's sliding window, with float32 accumulators."""
    padded, slicers, unpad = nnunet_windows(voxels, patch_size, step)
    weights = compute_gaussian(patch_size, 1 / 8, 10, torch.float32, torch.device("cpu"))
    total = torch.zeros((logits.shape[1], *padded.shape[1:]))
    count = torch.zeros(padded.shape[1:])
    for slicer, window in zip(slicers, torch.from_numpy(logits), strict=True):
        total[slicer] += window * weights
        count[slicer[1:]] += weights
    return (total / count)[unpad].numpy()


def blended(plan: WindowPlan, logits: np.ndarray, batch: int) -> tuple[np.ndarray, list[int]]:
    blender = SlabBlender(plan, logits.shape[1])
    slabs = [
        slab.copy() for first in range(0, len(logits), batch) for slab in blender.add(logits[first : first + batch])
    ]
    return np.concatenate(slabs, axis=1), [slab.shape[1] for slab in slabs]


@pytest.mark.parametrize(
    "patch", [(8, 8, 8), (1, 5, 7), (28, 96, 96), (20, 31, 17), (64, 64, 64), (2, 3, 4), (32, 40), (7, 192)]
)
def test_gaussian_has_the_bits_of_nnunet(patch: tuple[int, ...]) -> None:
    expected = compute_gaussian(patch, 1 / 8, 10, torch.float32, torch.device("cpu")).numpy()
    np.testing.assert_array_equal(gaussian(patch), expected)


@settings(max_examples=100, deadline=None)
@given(geometries(), st.integers(1, 5), st.integers(0, 2**32))
def test_blended_logits_have_the_bits_of_nnunet_for_any_batches(geometry: tuple, batch: int, seed: int) -> None:
    image, patch, step = geometry
    plan = plan_windows(image, patch, step)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(plan), 3, *patch)).astype(np.float32)
    result, depths = blended(plan, logits, batch)
    expected = nnunet_blended(logits, np.zeros((1, *image), np.float32), patch, step)
    np.testing.assert_array_equal(result, expected)
    assert max(depths) <= plan.patch_size_3d[0]


@settings(max_examples=50, deadline=None)
@given(geometries())
def test_volume_of_ones_blends_to_exactly_ones(geometry: tuple) -> None:
    image, patch, step = geometry
    plan = plan_windows(image, patch, step)
    result, _ = blended(plan, np.ones((len(plan), 1, *patch), np.float32), 1)
    assert result.shape == (1, *image)
    assert (result == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logit_that_is_not_finite_is_an_error_of_the_model(value: float) -> None:
    plan = plan_windows((8, 8, 8), (4, 8, 8))
    logits = np.zeros((len(plan), 2, 4, 8, 8), np.float32)
    logits[1, 1, 2, 3, 4] = value
    with pytest.raises(InferenceFailedError, match="tumour_ct: expected finite logits"):
        list(SlabBlender(plan, 2, model="tumour_ct").add(logits))


def test_a_slab_leaves_before_the_next_row_of_windows_is_added() -> None:
    plan = plan_windows((12, 4, 4), (4, 4, 4))
    blender = SlabBlender(plan, 1)
    depths = [[slab.shape[1] for slab in blender.add(np.ones((1, 1, 4, 4, 4), np.float32))] for _ in range(len(plan))]
    assert depths == [[], [2], [2], [2], [2, 4]]


def test_read_only_logits_are_taken() -> None:
    plan = plan_windows((4, 4, 4), (4, 4, 4))
    logits = np.ones((1, 1, 4, 4, 4), np.float32)
    logits.flags.writeable = False
    result, _ = blended(plan, logits, 1)
    assert (result == 1).all()


def test_more_windows_than_planned_are_refused() -> None:
    plan = plan_windows((4, 4, 4), (4, 4, 4))
    blender = SlabBlender(plan, 1)
    list(blender.add(np.ones((1, 1, 4, 4, 4), np.float32)))
    with pytest.raises(ValueError, match="expected 1 windows, found 2"):
        blender.add(np.ones((1, 1, 4, 4, 4), np.float32))


def test_slabs_left_in_the_iterator_are_refused() -> None:
    plan = plan_windows((12, 4, 4), (4, 4, 4))
    blender = SlabBlender(plan, 1)
    next(blender.add(np.ones((2, 1, 4, 4, 4), np.float32)))
    with pytest.raises(ValueError, match="found some left"):
        blender.add(np.ones((1, 1, 4, 4, 4), np.float32))
