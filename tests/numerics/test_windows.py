"""Windows, patches and blending, beside nnU-Net's own functions."""

from itertools import product

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from ctseg.errors import InferenceFailedError
from ctseg.numerics.windows import SlabBlender, WindowPlan, cut_patches, gaussian, plan_windows, window_starts


def nnunet_windows(voxels: np.ndarray, patch_size: tuple[int, ...], step: float) -> tuple[torch.Tensor, list, tuple]:
    """nnU-Net's padded volume, its windows, and how it takes the padding off."""
    padded, slicer = pad_nd_image(torch.from_numpy(voxels), patch_size, "constant", {"value": 0}, True, None)
    size = padded.shape[1:]
    slicers: list[tuple] = []
    if len(patch_size) == 2:
        steps = compute_steps_for_sliding_window(size[1:], patch_size, step)
        for z, y, x in product(range(size[0]), *steps):
            slicers.append((slice(None), z, slice(y, y + patch_size[0]), slice(x, x + patch_size[1])))
    else:
        steps = compute_steps_for_sliding_window(size, patch_size, step)
        for start in product(*steps):
            slicers.append((slice(None), *(slice(s, s + p) for s, p in zip(start, patch_size, strict=True))))
    return padded, slicers, (slice(None), *slicer[1:])


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


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, int, int], tuple[int, ...], float]:
    image = tuple(draw(st.integers(1, 14)) for _ in range(3))
    patch = tuple(draw(st.integers(1, 9)) for _ in range(draw(st.sampled_from([2, 3]))))
    return image, patch, draw(st.sampled_from([0.25, 0.5, 0.6, 0.75, 1.0]))


@pytest.mark.parametrize("step", [0.1, 0.25, 1 / 3, 0.5, 0.7, 0.75, 0.9, 1.0])
def test_window_starts_are_nnunets_for_all_sizes(step: float) -> None:
    every = 1 if step in (0.5, 0.75, 1.0) else 4  # nnU-Net's function is slow where there are many windows
    for patch in (1, 2, 3, 5, 8, 16, 28, 31, 32, 56, 64, 96, 128, 192):
        for size in range(patch, 520 if patch > 3 else 100, every):
            expected = compute_steps_for_sliding_window((size,), (patch,), step)
            assert window_starts((size,), (patch,), step) == tuple(map(tuple, expected)), (size, patch)


@pytest.mark.parametrize(
    "patch", [(8, 8, 8), (1, 5, 7), (28, 96, 96), (20, 31, 17), (64, 64, 64), (2, 3, 4), (32, 40), (7, 192)]
)
def test_gaussian_has_the_bits_of_nnunet(patch: tuple[int, ...]) -> None:
    expected = compute_gaussian(patch, 1 / 8, 10, torch.float32, torch.device("cpu")).numpy()
    np.testing.assert_array_equal(gaussian(patch), expected)


@settings(max_examples=100, deadline=None)
@given(geometries(), st.integers(1, 5))
def test_patches_are_nnunets(geometry: tuple, batch: int) -> None:
    image, patch, step = geometry
    voxels = np.random.default_rng(0).normal(size=(2, *image)).astype(np.float32)
    plan = plan_windows(image, patch, step)
    padded, slicers, _ = nnunet_windows(voxels, patch, step)
    assert len(plan) == len(slicers)
    for first in range(0, len(plan), batch):
        count = min(batch, len(plan) - first)
        buffer = np.full((count, 2, *patch), np.nan, np.float32)
        assert cut_patches(voxels, plan, first, count, out=buffer) is buffer
        expected = np.stack([padded[slicer].numpy() for slicer in slicers[first : first + count]])
        np.testing.assert_array_equal(buffer, expected)
        np.testing.assert_array_equal(cut_patches(voxels, plan, first, count), expected)


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


@settings(max_examples=50, deadline=None)
@given(geometries())
def test_windows_cover_every_voxel_and_stay_inside(geometry: tuple) -> None:
    image, patch, step = geometry
    plan = plan_windows(image, patch, step)
    seen = np.zeros(plan.padded_size, int)
    for index in range(len(plan)):
        start = plan.start(index)
        assert all(s >= 0 and s + p <= n for s, p, n in zip(start, plan.patch_size_3d, plan.padded_size, strict=True))
        seen[tuple(slice(s, s + p) for s, p in zip(start, plan.patch_size_3d, strict=True))] += 1
    assert seen.min() >= 1


def test_float16_logits_give_what_their_float32_values_give() -> None:
    plan = plan_windows((9, 11, 10), (4, 6, 5))
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(len(plan), 2, 4, 6, 5)) * 10.0 ** rng.integers(-8, 4, (len(plan), 2, 4, 6, 5))).astype(
        np.float16
    )
    logits[0, 0, 0, 0, :2] = [0.0, -0.0]
    assert (np.abs(logits[logits != 0]) < 6e-5).any()  # subnormal numbers are among them
    half, _ = blended(plan, logits, 2)
    full, _ = blended(plan, logits.astype(np.float32), 2)
    np.testing.assert_array_equal(half, full)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logit_that_is_not_finite_is_an_error_of_the_model(dtype: type, value: float) -> None:
    plan = plan_windows((8, 8, 8), (4, 8, 8))
    logits = np.zeros((len(plan), 2, 4, 8, 8), dtype)
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
