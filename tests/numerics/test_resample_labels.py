"""Label maps on another grid, beside nnU-Net's own functions run on the same labels: every voxel is the same."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from scipy.ndimage import gaussian_filter

from ctseg.model_spec import NoResampling, SplineSegResampling, TorchSegResampling
from ctseg.numerics.resample import compute_new_shape
from ctseg.numerics.resample_labels import resample_labels

LENGTHS = [0.5, 0.7, 1.0, 1.25, 2.0, 3.0, 3.27, 5.0]


def blobs(shape: tuple[int, ...], count: int, *, smooth: float, seed: int) -> np.ndarray:
    """Labels from 0 on in blobs, and -1 as outside of the non-zero region."""
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=shape), smooth) for _ in range(count)]
    labels = np.argmax(fields, axis=0).astype(np.int16)
    labels[gaussian_filter(rng.normal(size=shape), smooth) > 0.1] = -1
    return labels


def nnunets(labels: np.ndarray, kind: Any, *geometry: Any) -> np.ndarray:
    arguments = kind.model_dump(exclude={"function", "ties"})
    function: Any = resample_data_or_seg_to_shape
    if isinstance(kind, TorchSegResampling):
        function = resample_torch_fornnunet
    return np.asarray(function(labels[None].astype(np.float32), *geometry, is_seg=True, **arguments))[0]


Geometry = tuple[tuple[int, int, int], tuple[int, int, int], tuple[float, ...], tuple[float, ...]]


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    shape = tuple(draw(st.integers(2, 18)) for _ in range(3))
    spacing = tuple(draw(st.sampled_from(LENGTHS)) for _ in range(3))
    new_spacing = tuple(draw(st.sampled_from(LENGTHS)) for _ in range(3))
    if draw(st.booleans()):  # whole ratios are where exact ties are
        new_spacing = tuple(length * draw(st.sampled_from([0.25, 0.5, 1, 2])) for length in spacing)
    new_shape = tuple(max(1, round(a / b * n)) for a, b, n in zip(spacing, new_spacing, shape, strict=True))
    return shape, new_shape, spacing, new_spacing  # type: ignore[return-value]


@settings(max_examples=200, deadline=None)
@given(
    geometries(),
    st.sampled_from([1, 2, 3, 40]),
    st.sampled_from([0, 1.5]),
    st.sampled_from([0, 1]),
    st.sampled_from([None, True, False]),
    st.integers(0, 2**32),
)
def test_labels_equal_nnunets_voxel_by_voxel(
    geometry: Geometry, count: int, smooth: float, order: Any, force: bool | None, seed: int
) -> None:
    shape, new_shape, spacing, new_spacing = geometry
    labels = blobs(shape, count, smooth=smooth, seed=seed)
    kept = labels.copy()
    kind = SplineSegResampling(order=order, force_separate_z=force)
    expected = nnunets(labels, kind, new_shape, spacing, new_spacing)
    found = resample_labels(np.asfortranarray(labels), kind, new_shape, spacing, new_spacing)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(labels, kept)


@settings(max_examples=200, deadline=None)
@given(
    geometries(),
    st.sampled_from([1, 2, 3, 40]),
    st.sampled_from([0, 1.5]),
    st.sampled_from([None, True, False]),
    st.sampled_from(["linear", "nearest", "nearest-exact"]),
    st.sampled_from(["nearest", "nearest-exact"]),
    st.integers(0, 2**32),
)
def test_labels_by_torch_equal_nnunets_but_for_shares_that_tie(
    geometry: Geometry, count: int, smooth: float, force: bool | None, mode: Any, across: Any, seed: int
) -> None:
    shape, new_shape, spacing, new_spacing = geometry
    labels = blobs(shape, count, smooth=smooth, seed=seed)
    kind = TorchSegResampling(force_separate_z=force, mode=mode, aniso_axis_mode=across)
    expected = nnunets(labels, kind, new_shape, spacing, new_spacing)
    found = resample_labels(labels, kind, new_shape, spacing, new_spacing)  # type: ignore[arg-type]
    # noise has no foreground to speak of: the share that the promise is about is counted on organs, below
    assert np.count_nonzero(found != expected) <= 1e-3 * found.size


@pytest.mark.parametrize(
    "spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 1.5), (5.0, 1.3, 1.3), (3.0, 0.7, 0.7), (1.0, 1.1, 4.0)]
)
@pytest.mark.parametrize("kind", [SplineSegResampling(), TorchSegResampling()])
def test_thirty_organs_equal_nnunets(spacing: tuple[float, float, float], kind: Any) -> None:
    labels = blobs((60, 70, 80), 30, smooth=4, seed=1)
    here = (3.0, 3.0, 3.0)
    new_shape = compute_new_shape(labels.shape, here, spacing)
    expected = nnunets(labels, kind, new_shape, here, spacing)
    found = resample_labels(labels, kind, new_shape, here, spacing)
    differing = np.count_nonzero(found != expected)
    assert differing <= (1e-5 * np.count_nonzero(expected > 0) if isinstance(kind, TorchSegResampling) else 0)


def test_a_grid_that_stays_is_left_alone() -> None:
    labels = blobs((4, 5, 6), 3, smooth=1, seed=0)
    for kind, new_shape in ((SplineSegResampling(), (4, 5, 6)), (NoResampling(), (8, 5, 6))):
        assert resample_labels(labels, kind, new_shape, (1, 1, 1), (0.5, 1, 1)) is labels
