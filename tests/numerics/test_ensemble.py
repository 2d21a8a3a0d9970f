"""Labels from the mean of probabilities, beside nnU-Net's own ensembling of what its own export gives."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctseg.model_spec import ModelSpec
from ctseg.numerics.ensemble import PlaneMean, have_common_planes, mean_of_whole
from ctseg.numerics.prepare import PreparationRecord, prepare
from ctseg.numerics.restore import LabelRestorer, probabilities_outside_crop
from tests.numerics.test_restore import LABELS, REGIONS, nnunet_restored, spec_of, spline
from tests.support.nnunet_plans import make_dataset, make_plans

LENGTHS = [0.5, 0.7, 1.0, 1.3, 2.0, 4.5]


def dataset_of(*, regions: bool) -> dict[str, Any]:
    return make_dataset(REGIONS, regions_class_order=[1, 2, 3]) if regions else make_dataset(LABELS)


def nnunets_mean(probabilities: list[np.ndarray], plans: dict[str, Any], dataset: dict[str, Any]) -> tuple[Any, Any]:
    """nnU-Net's ``average_probabilities`` without its files, and its decision."""
    total = probabilities[0].astype(np.float32)
    for other in probabilities[1:]:
        total += other
    total /= len(probabilities)
    manager = PlansManager(plans).get_label_manager(dataset)
    return total, np.asarray(manager.convert_probabilities_to_segmentation(total))


def by_planes(
    members: list[tuple[ModelSpec, PreparationRecord]], logits: list[np.ndarray], depths: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    spec, record = members[0]
    found = np.empty((spec.num_heads, *record.shape), np.float32)
    found[:] = probabilities_outside_crop(spec)[:, None, None, None]
    seen = np.zeros(record.shape, int)

    def receive(where: tuple[slice, slice, slice], values: np.ndarray) -> None:
        found[(slice(None), *where)] = values
        seen[where] += 1

    mean = PlaneMean(members, on_probabilities=receive)
    at = [0] * len(members)
    slabs: dict[int, np.ndarray] = {}
    while (index := mean.next_member()) is not None:
        if index in slabs:
            slabs[index][:] = np.nan  # it is read no more
        depth = depths[(at[index] + index) % len(depths)]
        slabs[index] = logits[index][:, at[index] : at[index] + depth].copy()
        at[index] += depth
        mean.add(index, slabs[index])
    assert seen.max() == 1
    return mean.finish(), found


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.integers(1, 3), st.integers(0, 2**32))
def test_the_mean_equals_nnunets(data: st.DataObject, regions: bool, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    voxels = rng.uniform(1, 100, (1, *(data.draw(st.integers(4, 14)) for _ in range(3)))).astype(np.float32)
    voxels[:, : data.draw(st.integers(0, 2))] = 0
    spacing = tuple(data.draw(st.sampled_from(LENGTHS)) for _ in range(3))
    forward = data.draw(st.sampled_from([(0, 1, 2), (2, 0, 1), (1, 0, 2)]))
    dataset = dataset_of(regions=regions)
    members, logits, all_plans = [], [], []
    for _ in range(count):
        plans = make_plans(
            spacing=tuple(spacing[axis] * data.draw(st.sampled_from([0.5, 0.8, 1, 1.7])) for axis in forward),
            resampling_data=spline(3),
            resampling_logits=spline(1),
            transpose_forward=forward,
        )
        spec = spec_of(plans, dataset)
        record = prepare(voxels, spacing, spec).record  # type: ignore[arg-type]
        members.append((spec, record))
        logits.append((8 * rng.normal(size=(spec.num_heads, *record.network_shape))).astype(np.float32))
        all_plans.append(plans)
    assert have_common_planes(members)
    theirs = [
        nnunet_restored(each, record, plans, dataset, probabilities=True)[1]
        for each, (_, record), plans in zip(logits, members, all_plans, strict=True)
    ]
    expected, labels = nnunets_mean(theirs, all_plans[0], dataset)
    depths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    found_labels, found = by_planes(members, logits, depths)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    two_best = np.sort(expected, axis=0)[-2:] if not regions else np.stack([np.full_like(expected, 0.5), expected])
    is_close = np.abs(two_best[1] - two_best[0]) < 1e-5
    is_tie = is_close.any(axis=0) if regions else is_close
    np.testing.assert_array_equal(found_labels[~is_tie], labels[~is_tie])

    total = np.zeros_like(found)  # the way for members without common planes
    for each, (spec, record) in zip(logits, members, strict=True):
        total += probabilities_outside_crop(spec)[:, None, None, None]
        inside = total.copy()

        def receive(where: Any, values: np.ndarray, inside: np.ndarray = inside, spec: ModelSpec = spec) -> None:
            inside[(slice(None), *where)] += values - probabilities_outside_crop(spec)[:, None, None, None]

        restorer = LabelRestorer(spec, record, on_probabilities=receive)
        restorer.add(each)
        restorer.finish()
        total = inside
    whole_labels = mean_of_whole(total, count, members[0][0])
    np.testing.assert_allclose(total, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(whole_labels[~is_tie], labels[~is_tie])


def test_cubic_logits_and_other_transposes_have_no_common_planes() -> None:
    dataset, voxels = make_dataset(LABELS), np.ones((1, 8, 9, 10), np.float32)

    def member(**changes: Any) -> tuple[ModelSpec, PreparationRecord]:
        plans = make_plans(spacing=(2, 2, 2), **{"resampling_logits": spline(1), **changes})
        spec = spec_of(plans, dataset)
        return spec, prepare(voxels, (1.0, 1.0, 1.0), spec).record

    assert have_common_planes([member(), member()])
    assert not have_common_planes([member(), member(resampling_logits=spline(3))])
    assert not have_common_planes([member(), member(transpose_forward=(1, 0, 2))])


def test_a_slab_that_does_not_fit_and_planes_that_are_missing_are_refused() -> None:
    spec = spec_of(make_plans(spacing=(2, 2, 2)), make_dataset(LABELS))
    record = prepare(np.ones((1, 8, 9, 10), np.float32), (1.0, 1.0, 1.0), spec).record
    mean = PlaneMean([(spec, record), (spec, record)])
    with pytest.raises(ValueError, match="expected float32 slabs of 4 heads and 4 planes"):
        mean.add(0, np.zeros((3, 4, 4, 5), np.float32))
    mean.add(0, np.zeros((4, 4, 4, 5), np.float32))
    assert mean.next_member() == 1
    with pytest.raises(ValueError, match="expected 8 planes, found 0"):
        mean.finish()


@pytest.mark.parametrize("regions", [False, True])
def test_labels_are_the_same_by_bands_of_rows_and_by_whole_planes(*, regions: bool) -> None:
    dataset, rng = dataset_of(regions=regions), np.random.default_rng(0)
    voxels = np.ones((1, 3, 150, 9), np.float32)
    members, logits = [], []
    for spacing in ((1.0, 1.0, 1.0), (1.5, 0.7, 2.0)):
        spec = spec_of(make_plans(spacing=spacing, resampling_logits=spline(1)), dataset)
        record = prepare(voxels, (1.0, 1.0, 1.0), spec).record
        members.append((spec, record))
        logits.append(rng.normal(size=(spec.num_heads, *record.network_shape)).astype(np.float32))
    expected, _ = by_planes(members, logits, [1])
    mean = PlaneMean(members)
    for index, each in enumerate(logits):
        assert mean.next_member() == index
        mean.add(index, each)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(mean.finish(), expected)
