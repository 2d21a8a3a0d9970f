"""Windows and patches, beside nnU-Net's own functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

from ctseg.numerics.windows import cut_patches, plan_windows, window_starts
from tests.support.nnunet_windows import geometries, nnunet_windows


@pytest.mark.parametrize("step", [0.1, 0.25, 1 / 3, 0.5, 0.7, 0.75, 0.9, 1.0])
def test_window_starts_are_nnunets_for_all_sizes(step: float) -> None:
    every = 1 if step in (0.5, 0.75, 1.0) else 4  # nnU-Net's function is slow where there are many windows
    for patch in (1, 2, 3, 5, 8, 16, 28, 31, 32, 56, 64, 96, 128, 192):
        for size in range(patch, 520 if patch > 3 else 100, every):
            expected = compute_steps_for_sliding_window((size,), (patch,), step)
            assert window_starts((size,), (patch,), step) == tuple(map(tuple, expected)), (size, patch)


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


@settings(max_examples=50, deadline=None)
@given(geometries())
def test_labels_of_a_previous_stage_become_channels(geometry: tuple) -> None:
    image, patch, step = geometry
    rng = np.random.default_rng(0)
    voxels, labels = rng.normal(size=(2, *image)).astype(np.float32), rng.integers(-1, 5, image, dtype=np.int16)
    plan = plan_windows(image, patch, step)
    stacked = np.concatenate([voxels, [labels == value for value in (1, 3, 4)]]).astype(np.float32)
    found = cut_patches(voxels, plan, 0, len(plan), previous=labels, values=(1, 3, 4))
    np.testing.assert_array_equal(found, cut_patches(stacked, plan, 0, len(plan)))


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
