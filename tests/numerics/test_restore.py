"""Logits to labels, beside nnU-Net's own export run on the same logits."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.nnunet.plans import spec_from_plans
from ctseg.numerics.prepare import PreparationRecord, prepare
from ctseg.numerics.restore import LabelRestorer, probabilities_outside_crop
from tests.support.nnunet_plans import make_dataset, make_plans

SPLINE = "resample_data_or_seg_to_shape"
TORCH = "resample_torch_fornnunet"
LABELS = {"background": 0, "kidney": 1, "liver": 2, "tumour": 3}
REGIONS = {"background": 0, "organ": [1, 2, 3], "tumour and cyst": [2, 3], "tumour": 3}


def spec_of(plans: dict[str, Any], dataset: dict[str, Any]) -> ModelSpec:
    configuration = next(iter(plans["configurations"]))
    return spec_from_plans(plans, dataset, configuration, name="model", mirror_axes=None, mirroring="none")


def spline(order: int = 1, order_z: int = 0, force: bool | None = None) -> tuple[str, dict[str, Any]]:
    return SPLINE, {"is_seg": False, "order": order, "order_z": order_z, "force_separate_z": force}


def nnunet_restored(
    logits: np.ndarray,
    record: PreparationRecord,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    *,
    probabilities: bool,
) -> Any:
    manager = PlansManager(plans)
    spacing = [0.0, 0.0, 0.0]
    for axis, value in zip(record.transpose_forward, record.spacing_mm, strict=True):
        spacing[axis] = value
    properties = {
        "spacing": spacing,
        "shape_before_cropping": record.transposed_shape,
        "shape_after_cropping_and_before_resampling": record.cropped_shape,
        "bbox_used_for_cropping": [list(bounds) for bounds in record.crop],
    }
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits.copy()),
        manager,
        manager.get_configuration(next(iter(plans["configurations"]))),
        manager.get_label_manager(dataset),
        properties,
        return_probabilities=probabilities,
        num_threads_torch=2,
    )


def restored(
    logits: np.ndarray, record: PreparationRecord, spec: ModelSpec, depths: list[int], *, probabilities: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    parts = None
    if probabilities:
        parts = np.empty((spec.num_heads, *record.shape), np.float32)
        parts[:] = probabilities_outside_crop(spec)[:, None, None, None]
        seen = np.zeros(record.shape, int)

        def receive(where: tuple[slice, slice, slice], values: np.ndarray) -> None:
            parts[(slice(None), *where)] = values
            seen[where] += 1

        restorer = LabelRestorer(spec, record, on_probabilities=receive)
    else:
        restorer = LabelRestorer(spec, record)
    first = 0
    for depth in depths:
        slab = logits[:, first : first + depth].copy()
        restorer.add(slab)
        slab[:] = np.nan  # the restorer must not need it any more
        first += depth
    labels = restorer.finish()
    if probabilities:
        assert seen.max() == 1
        assert seen.sum() == np.prod(record.cropped_shape)
    return labels, parts


def depths_of(rng: np.random.Generator, total: int) -> list[int]:
    depths: list[int] = []
    while sum(depths) < total:
        depths.append(min(int(rng.integers(1, 5)), total - sum(depths)))
    return depths


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], PreparationRecord, int]:
    """Random plans and geometry; data and logits are resampled by functions of the same kind."""
    lengths = st.sampled_from([0.8, 1.0, 1.25, 2.0, 3.27, 5.0])
    spacing = (draw(lengths), draw(lengths), draw(lengths))
    two_dimensional = draw(st.booleans())
    target = tuple(draw(lengths) for _ in range(2 if two_dimensional else 3))
    force = draw(st.sampled_from([None, None, True, False]))
    kind = draw(st.sampled_from(["spline", "spline", "cubic", "torch", "none"]))
    data = spline(3)
    if kind in ("spline", "cubic"):
        order = 3 if kind == "cubic" else draw(st.sampled_from([0, 1, 1]))
        logits = spline(order, draw(st.sampled_from([0, 1, 3] if kind == "cubic" else [0, 1])), force)
    elif kind == "torch":
        logits = (TORCH, {"is_seg": False, "force_separate_z": force})
    else:
        data = logits = ("no_resampling_hack", {})
    regions = draw(st.booleans())
    dataset = make_dataset(REGIONS if regions else LABELS, regions_class_order=[1, 2, 3] if regions else None)
    plans = make_plans(
        patch_size=(8, 8) if two_dimensional else (8, 8, 8),
        spacing=target,
        configuration="2d" if two_dimensional else "3d_fullres",
        resampling_data=data,
        resampling_logits=logits,
        transpose_forward=draw(st.sampled_from([(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])),
    )
    shape = tuple(draw(st.integers(6, 14)) for _ in range(3))
    voxels = np.zeros((1, *shape), np.int16)
    voxels[:, draw(st.integers(0, 1)) :, 1:, : shape[2] - draw(st.integers(0, 2))] = 50
    record = prepare(voxels, spacing, spec_of(plans, dataset)).record
    return plans, dataset, record, draw(st.integers(0, 2**32))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_random_cases_equal_nnunet_for_any_slabs(case: tuple) -> None:
    plans, dataset, record, seed = case
    spec = spec_of(plans, dataset)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(spec.num_heads, *record.network_shape)).astype(np.float32)
    labels, probabilities = restored(logits, record, spec, depths_of(rng, record.network_shape[0]), probabilities=True)
    at_once, _ = restored(logits, record, spec, [record.network_shape[0]])
    np.testing.assert_array_equal(labels, at_once)
    expected = nnunet_restored(logits, record, plans, dataset, probabilities=False)
    assert labels.dtype == expected.dtype == np.uint8
    assert labels.shape == expected.shape == record.shape
    _, expected_probabilities = nnunet_restored(logits, record, plans, dataset, probabilities=True)
    np.testing.assert_allclose(probabilities, expected_probabilities, rtol=0, atol=2e-6)
    different = labels != expected
    if different.any():  # only where float32 rounding decides between two heads, or at a region's edge
        ranked = np.sort(expected_probabilities, axis=0)
        gap = np.abs(expected_probabilities - 0.5).min(axis=0) if spec.has_regions else ranked[-1] - ranked[-2]
        assert gap[different].max() < 2e-6


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize("target", [(3.27, 1.9, 1.9), (2.0, 1.5, 1.5)], ids=["separate slices", "trilinear"])
def test_larger_logits_differ_from_nnunet_in_hardly_a_voxel(target: tuple[float, ...], regions: bool) -> None:
    dataset = make_dataset(REGIONS if regions else LABELS, regions_class_order=[1, 2, 3] if regions else None)
    plans = make_plans(spacing=target)
    spec = spec_of(plans, dataset)
    record = prepare(np.ones((1, 50, 90, 100), np.int16), (3.27, 0.977, 0.977), spec).record
    logits = np.random.default_rng(0).normal(size=(spec.num_heads, *record.network_shape)).astype(np.float32)
    labels, _ = restored(logits, record, spec, [3] * (record.network_shape[0] // 3) + [record.network_shape[0] % 3])
    expected = nnunet_restored(logits, record, plans, dataset, probabilities=False)
    assert np.count_nonzero(labels != expected) <= 1e-5 * labels.size


def test_equal_logits_give_the_lowest_label() -> None:
    plans, dataset = make_plans(spacing=(2.0, 1.5, 1.5)), make_dataset(LABELS)
    spec = spec_of(plans, dataset)
    record = prepare(np.ones((1, 10, 20, 20), np.int16), (3.0, 1.0, 1.0), spec).record
    logits = np.zeros((4, *record.network_shape), np.float32)
    logits[1:3] = np.random.default_rng(0).uniform(1, 2, record.network_shape)
    labels, _ = restored(logits, record, spec, [record.network_shape[0]])
    assert (labels == 1).all()


def test_sigmoid_of_one_half_is_outside_of_a_region_as_in_nnunet() -> None:
    dataset = make_dataset(REGIONS, regions_class_order=[1, 2, 3])
    plans = make_plans(spacing=(1.0, 1.0, 1.0))
    spec = spec_of(plans, dataset)
    record = prepare(np.ones((1, 8, 8, 64), np.int16), (1.0, 1.0, 1.0), spec).record
    steps = np.linspace(0, 4 * 2.0**-24, 64, dtype=np.float32)
    logits = np.broadcast_to(np.stack([-np.ones_like(steps), steps, -steps])[:, None, None], (3, 8, 8, 64)).copy()
    labels, _ = restored(logits, record, spec, [8])
    assert 0 < np.count_nonzero(labels) < labels.size
    np.testing.assert_array_equal(labels, nnunet_restored(logits, record, plans, dataset, probabilities=False))


def test_constant_logits_stay_constant_after_resampling() -> None:
    plans, dataset = make_plans(spacing=(2.1, 1.7, 1.3)), make_dataset(LABELS)
    spec = spec_of(plans, dataset)
    record = prepare(np.ones((1, 13, 20, 31), np.int16), (3.0, 1.0, 1.0), spec).record
    logits = np.empty((4, *record.network_shape), np.float32)
    # neighbours in float32: any rounding on the way would make them equal
    logits[:] = np.array([0.1, 0.1, np.nextafter(np.float32(0.1), np.float32(1)), -3])[:, None, None, None]
    labels, _ = restored(logits, record, spec, [record.network_shape[0]])
    assert (labels == 2).all()


@pytest.mark.parametrize(("count", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_label_map_has_the_smallest_type_that_fits(count: int, dtype: type) -> None:
    plans = make_plans(spacing=(1.0, 1.0, 1.0))
    spec = spec_of(plans, make_dataset({"background": 0, **{f"label {i}": i for i in range(1, count)}}))
    record = prepare(np.ones((1, 2, 3, 4), np.int16), (1.0, 1.0, 1.0), spec).record
    logits = np.zeros((count, 2, 3, 4), np.float32)
    logits[-1] = 1
    labels, _ = restored(logits, record, spec, [1, 1])
    assert labels.dtype == dtype
    assert (labels == count - 1).all()


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("demo_data", "images/STS_025_0000.nii.gz"),
        pytest.param("shared_data", "totalseg/ts_abdomen_3mm_ct.nii.gz", marks=pytest.mark.data),
    ],
)
def test_real_geometry_survives_the_whole_way(folder: str, file: str, request: pytest.FixtureRequest) -> None:
    """Labels that are sharp steps in the prepared volume of a real, turned scan come back to the right voxels."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    voxels, properties = SimpleITKIO().read_images([str(request.getfixturevalue(folder) / file)])
    plans = make_plans(spacing=(4.0, 2.0, 5.0), transpose_forward=(2, 0, 1))
    dataset = make_dataset(LABELS)
    spec = spec_of(plans, dataset)
    prepared = prepare(voxels, tuple(properties["spacing"]), spec)
    logits = np.stack([np.zeros_like(prepared.voxels[0]), *(prepared.voxels[0] * k - k * k for k in (1, 2, 3))])
    depths = depths_of(np.random.default_rng(0), prepared.record.network_shape[0])
    labels, _ = restored(logits, prepared.record, spec, depths)
    expected = nnunet_restored(logits, prepared.record, plans, dataset, probabilities=False)
    assert set(np.unique(labels)) >= {0, 1, 2}
    assert np.count_nonzero(labels != expected) <= 1e-5 * labels.size


def test_cubic_logits_say_that_they_take_the_whole_volume(caplog: pytest.LogCaptureFixture) -> None:
    plans = make_plans(spacing=(1.0, 1.0, 1.0), resampling_logits=spline(3, force=False))
    spec = spec_of(plans, make_dataset())
    record = prepare(np.ones((1, 8, 8, 8), np.int16), (1.5, 1.5, 1.5), spec).record
    with caplog.at_level("INFO", logger="ctseg"):
        LabelRestorer(spec, record)
    assert "cubic logits cannot be restored slab by slab" in caplog.text


def test_images_resampled_but_logits_not_is_refused() -> None:
    plans = make_plans(spacing=(1.0, 1.0, 1.0), resampling_logits=("no_resampling_hack", {}))
    spec = spec_of(plans, make_dataset())
    record = prepare(np.ones((1, 8, 8, 8), np.int16), (2.0, 1.0, 1.0), spec).record
    with pytest.raises(SpecError, match="must be resampled alike"):
        LabelRestorer(spec, record)


def test_missing_and_surplus_planes_are_refused() -> None:
    spec = spec_of(make_plans(spacing=(1.0, 1.0, 1.0)), make_dataset())
    record = prepare(np.ones((1, 8, 8, 8), np.int16), (1.0, 1.0, 1.0), spec).record
    restorer = LabelRestorer(spec, record)
    restorer.add(np.zeros((2, 5, 8, 8), np.float32))
    with pytest.raises(ValueError, match="expected 8 planes, found 5"):
        restorer.finish()
    with pytest.raises(ValueError, match="after 5 planes"):
        restorer.add(np.zeros((2, 4, 8, 8), np.float32))
