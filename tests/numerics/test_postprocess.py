"""Post-processing, beside nnU-Net's own function."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from scipy import ndimage

from ctseg.nnunet.plans import spec_from_plans
from ctseg.numerics.postprocess import _components, apply_postprocessing, keep_largest_components
from tests.support.nnunet_plans import make_dataset, make_plans


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.02, 0.6), st.sets(st.integers(1, 5), min_size=1))
def test_random_label_maps_equal_nnunet(seed: int, density: float, values: set[int]) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 9, 3)
    labels = (rng.integers(1, 5, shape) * (rng.random(shape) < density)).astype(np.uint8)
    expected = remove_all_but_largest_component_from_segmentation(labels, sorted(values))
    kept = labels.copy()
    result = keep_largest_components(labels, [tuple(sorted(values))])
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(labels, kept)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(0.02, 0.9),
    st.lists(st.sets(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=6),
)
def test_steps_equal_nnunet_one_after_the_other_though_taken_together(
    seed: int, density: float, steps: list[set[int]]
) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 9, 3)
    labels = (rng.integers(1, 6, shape) * (rng.random(shape) < density)).astype(np.uint8)
    names = {"background": 0, **{f"label {value}": value for value in range(1, 6)}}
    spec = spec_from_plans(
        make_plans(),
        make_dataset(names),
        "3d_fullres",
        name="model",
        mirror_axes=None,
        postprocessing=[{"labels": sorted(values)} for values in steps],
    )
    expected = labels
    for values in steps:
        expected = remove_all_but_largest_component_from_segmentation(expected, sorted(values))
    kept = labels.copy()
    result = apply_postprocessing(labels, spec.postprocessing)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(labels, kept)


@settings(max_examples=200, deadline=None)
@example(seed=2393, density=0.5, fortran=False)  # 1 1 0 0 1 0 1, for which cc3d's table is too small
@given(st.integers(0, 2**32), st.floats(0.02, 0.95), st.booleans())
def test_components_of_both_libraries_are_the_same(seed: int, density: float, fortran: bool) -> None:
    """Up to their numbers, which no result depends on."""
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 14, 3)) < density
    mask = np.asfortranarray(mask) if fortran else mask
    ours, number = _components(mask)
    theirs, expected = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    assert number == expected
    assert len(np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1).T) == len(np.unique(theirs))


def test_voxels_that_touch_by_a_corner_are_one_component() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[4, 4, 4] = 1
    expected = labels.copy()
    expected[4, 4, 4] = 0
    np.testing.assert_array_equal(keep_largest_components(labels, [(1,)]), expected)


def test_components_of_the_same_size_all_stay() -> None:
    labels = np.zeros((1, 1, 7), np.uint16)
    labels[0, 0, [0, 1, 3, 5, 6]] = 300
    assert keep_largest_components(labels, [(300,)]).ravel().tolist() == [300, 300, 0, 0, 0, 300, 300]


def test_steps_run_in_their_order() -> None:
    labels = np.array([1, 1, 0, 2, 0, 1, 2, 2, 2], np.uint8).reshape(1, 1, 9)
    spec = spec_from_plans(
        make_plans(),
        make_dataset({"background": 0, "organ": 1, "tumour": 2}),
        "3d_fullres",
        name="model",
        mirror_axes=None,
        postprocessing=[{"labels": [1, 2]}, {"labels": [2]}],
    )
    assert apply_postprocessing(labels, spec.postprocessing).ravel().tolist() == [0, 0, 0, 0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("fill", [0, 1])
def test_empty_and_full_label_maps_stay(fill: int) -> None:
    labels = np.full((3, 4, 5), fill, np.uint8)
    np.testing.assert_array_equal(keep_largest_components(labels, [(1,)]), labels)


def test_a_few_voxels_in_a_row_are_separated() -> None:
    labels = np.array([[[1, 1, 0, 0, 1, 0, 1]]], np.uint8)
    assert keep_largest_components(labels, [(1,)]).ravel().tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert keep_largest_components(labels[:, :, 4:], [(1,)]).ravel().tolist() == [1, 0, 1]
