"""Resampling, beside nnU-Net's own functions run on the same volumes."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling import default_resampling
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from ctseg.errors import InputError
from ctseg.model_spec import NoResampling, SplineResampling, TorchResampling
from ctseg.numerics.resample import ResamplingPlan, compute_new_shape, find_slice_axis, plan_resampling, resample

LENGTHS = [0.5, 0.7, 1.0, 1.25, 2.0, 3.0, 3.27, 5.0]
# one float32 rounding after each axis and one of the result, with what a spline makes of them
EPSILONS = 6 * np.finfo(np.float32).eps


def nnunet_resampled(
    volume: np.ndarray, new_shape: tuple, spacing: tuple, new_spacing: tuple, kind: SplineResampling | TorchResampling
) -> np.ndarray:
    function: Any = default_resampling.resample_data_or_seg_to_shape
    if isinstance(kind, TorchResampling):
        function = resample_torch_fornnunet
    result = function(
        volume[None], new_shape, spacing, new_spacing, is_seg=False, **kind.model_dump(exclude={"function"})
    )
    return np.asarray(result)[0]


def assert_equal_to_nnunet(
    volume: np.ndarray, new_shape: tuple, spacing: tuple, new_spacing: tuple, kind: SplineResampling | TorchResampling
) -> ResamplingPlan:
    plan = plan_resampling(kind, volume.shape, new_shape, spacing, new_spacing)
    result = resample(volume, plan)
    expected = nnunet_resampled(volume, new_shape, spacing, new_spacing, kind)
    assert result.shape == expected.shape == new_shape
    assert result.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=EPSILONS * np.abs(volume).max())
    return plan


Grid = tuple[np.ndarray, tuple[int, ...], tuple[float, ...], tuple[float, ...]]


def grid_of(
    shape: tuple[int, ...],
    new_shape: tuple[int, ...],
    spacing: tuple[float, ...],
    new_spacing: tuple[float, ...],
    *,
    seed: int = 0,
    scale: int = 1,
) -> Grid:
    volume = (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)
    return volume, new_shape, spacing, new_spacing


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """A volume, its new shape, and the spacings, which decide on separate slices independently of the shapes."""
    shape = tuple(draw(st.integers(1, 14)) for _ in range(3))
    new_shape = tuple(draw(st.one_of(st.just(n), st.just(2 * n), st.integers(1, 20))) for n in shape)
    spacing = tuple(draw(st.sampled_from(LENGTHS)) for _ in range(3))
    new_spacing = tuple(draw(st.sampled_from(LENGTHS)) for _ in range(3))
    seed, scale = draw(st.integers(0, 2**32)), draw(st.sampled_from([1, 1000]))
    volume, *rest = grid_of(shape, new_shape, spacing, new_spacing, seed=seed, scale=scale)
    if draw(st.booleans()):
        volume = np.asfortranarray(volume)
    return volume, *rest


SPLINES = [
    SplineResampling(order=order, order_z=order_z, force_separate_z=force)
    for order, order_z, force in product([0, 1, 3], [0, 1, 3], [None, True, False])
]


@settings(max_examples=60, deadline=None)
@given(grids(), st.sampled_from(SPLINES))
def test_spline_resampling_equals_nnunet(grid: Grid, kind: SplineResampling) -> None:
    assert_equal_to_nnunet(*grid, kind)


@pytest.mark.parametrize(
    "grid",
    [
        grid_of((5, 12, 14), (10, 9, 20), (5.0, 0.7, 0.7), (2.0, 0.7, 0.5)),
        grid_of((12, 6, 14), (9, 3, 20), (1.0, 0.7, 1.0), (0.5, 5.0, 0.5), scale=1000),
        grid_of((9, 11, 4), (13, 11, 1), (0.5, 0.7, 3.27), (0.7, 0.7, 3.27)),
        grid_of((6, 6, 1), (6, 12, 7), (5.0, 5.0, 0.7), (5.0, 5.0, 1.0)),
    ],
    ids=["coarse along z, slices doubled", "along y, halved", "along x, reduced to one", "no axis alone is coarse"],
)
def test_every_kind_of_spline_equals_nnunet(grid: Grid) -> None:
    for kind in SPLINES:
        assert_equal_to_nnunet(*grid, kind)


@settings(max_examples=100, deadline=None)
@given(
    grids(),
    st.sampled_from([None, True, False]),
    st.sampled_from(["linear", "nearest", "nearest-exact"]),
    st.sampled_from(["nearest", "nearest-exact"]),
)
def test_torch_resampling_equals_nnunet(grid: tuple, force: bool | None, mode: Any, across: Any) -> None:
    assert_equal_to_nnunet(*grid, TorchResampling(force_separate_z=force, mode=mode, aniso_axis_mode=across))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_torch_takes_the_same_voxel_for_all_sizes(mode: Any) -> None:
    kind = TorchResampling(force_separate_z=True, aniso_axis_mode=mode)
    for size, new_size in product([1, 2, 3, 7, 30, 61, 64, 100, 333, 512], [*range(1, 130), 200, 273, 511, 512, 700]):
        if size == new_size:
            continue
        table = plan_resampling(kind, (size, 1, 1), (new_size, 1, 1), (5, 1, 1), (5, 1, 1)).tables[0]
        ramp = torch.arange(size, dtype=torch.float32)[None, None]
        expected = torch.nn.functional.interpolate(ramp, new_size, mode=mode)[0, 0].numpy()
        assert table is not None
        np.testing.assert_array_equal(table.indices[:, 0], expected, err_msg=f"{size} -> {new_size}")


def test_torch_linear_coordinates_are_torchs_for_long_axes() -> None:
    kind = TorchResampling()
    for size, new_size in product([61, 333, 512, 700], [50, 273, 511, 512, 801]):
        volume = np.random.default_rng(size).normal(size=(size, 1, 1)).astype(np.float32)
        if size != new_size:
            assert_equal_to_nnunet(volume, (new_size, 1, 1), (1, 1, 1), (1, 1, 1), kind)


@pytest.mark.parametrize(("size", "new_size"), [(10, 20), (20, 10), (9, 27), (7, 14), (31, 62), (61, 122), (50, 25)])
def test_slices_at_exact_ties_are_those_that_scipy_takes(size: int, new_size: int) -> None:
    volume = np.arange(size, dtype=np.float32)[:, None, None] * np.ones((1, 6, 8), np.float32)
    for order_z in (0, 1):
        kind = SplineResampling(order=3, order_z=order_z)
        plan = assert_equal_to_nnunet(volume, (new_size, 9, 5), (5.0, 1.0, 1.0), (2.5, 0.8, 0.8), kind)
        assert plan.slice_axis == 0


@pytest.mark.parametrize("force", [None, True, False])
def test_choice_of_the_slice_axis_is_nnunets_for_all_spacings(force: bool | None) -> None:
    lengths = [0.3, 0.9, 1.0, 2.7, 3.0, 3.27]
    for old in product(lengths, repeat=3):
        for new in product([0.3, 1.0, 3.27], repeat=3):
            do_separate, axis = default_resampling.determine_do_sep_z_and_axis(force, old, new, 3)
            assert find_slice_axis(force, 3, old, new) == (axis if do_separate else None), (old, new)


def test_new_shape_is_nnunets_for_all_sizes_and_spacings() -> None:
    spacings = [0.625, 0.703125, 0.75, 0.9, 0.9765625, 1.0, 1.25, 1.5, 2.5, 3.0, 3.27, 5.0]
    for old, new in product(spacings, spacings):
        for size in range(7, 700, 3):
            expected = default_resampling.compute_new_shape([size] * 3, [old] * 3, [new] * 3)
            assert compute_new_shape((size,) * 3, (old,) * 3, (new,) * 3) == tuple(expected)


@pytest.mark.parametrize("target", [(3.27, 1.4, 1.4), (2.0, 2.0, 2.0), (1.5, 0.8, 0.8)])
def test_real_ct_equals_nnunet(demo_data: Path, target: tuple[float, float, float]) -> None:
    import SimpleITK

    image = SimpleITK.ReadImage(str(demo_data / "images/STS_042_0000.nii.gz"))
    volume = SimpleITK.GetArrayFromImage(image).astype(np.float32)
    spacing = image.GetSpacing()[::-1]
    new_shape = compute_new_shape(volume.shape, spacing, target)
    plan = assert_equal_to_nnunet(volume, new_shape, spacing, target, SplineResampling(order=3))
    assert (plan.slice_axis == 0) == (max(spacing) / min(spacing) > 3)


@settings(max_examples=50, deadline=None)
@given(grids(), st.floats(-1000, 3000, width=32))
def test_constant_stays_constant(grid: tuple, value: float) -> None:
    volume, new_shape, spacing, new_spacing = grid
    constant = np.full_like(volume, value)
    for kind in (SplineResampling(order=3), SplineResampling(order=1), TorchResampling()):
        result = resample(constant, plan_resampling(kind, volume.shape, new_shape, spacing, new_spacing))
        np.testing.assert_allclose(result, value, rtol=1e-6)


def test_cubic_slices_stay_within_the_range_of_their_own_slice() -> None:
    volume = np.zeros((3, 20, 20), np.float32)
    volume[0, :, 10:] = 1
    volume[1, 10:] = 100
    volume[2, 5:15, 5:15] = -50
    plan = plan_resampling(SplineResampling(order=3), (3, 20, 20), (3, 33, 33), (5, 1, 1), (5, 0.6, 0.6))
    result = resample(volume, plan)
    for z in range(3):
        assert result[z].min() == volume[z].min()
        assert result[z].max() == volume[z].max()


def test_volume_that_keeps_its_grid_is_not_copied() -> None:
    volume = np.zeros((3, 4, 5), np.float32)
    for kind in (SplineResampling(order=3), TorchResampling()):
        assert resample(volume, plan_resampling(kind, (3, 4, 5), (3, 4, 5), (1, 1, 1), (1, 1, 1))) is volume
    assert resample(volume, plan_resampling(NoResampling(), (3, 4, 5), (6, 4, 5), (1, 1, 1), (0.5, 1, 1))) is volume


def test_result_lies_in_the_array_that_was_given() -> None:
    volume = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    plan = plan_resampling(SplineResampling(order=3), (5, 6, 7), (4, 9, 7), (1, 1, 1), (1, 1, 1))
    out = np.full((4, 9, 7), np.nan, np.float32)
    assert resample(volume, plan, out=out) is out
    np.testing.assert_array_equal(out, resample(volume, plan))


def test_axis_left_without_a_voxel_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected at least one voxel along each axis .* found shape \(0, 5, 5\)"):
        compute_new_shape((1, 5, 5), (1.0, 1.0, 1.0), (3.0, 1.0, 1.0))
