"""Preparing a case, beside nnU-Net's own preprocessor run on the same voxels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctseg.errors import InputError
from ctseg.model_spec import ModelSpec
from ctseg.nnunet.plans import spec_from_plans
from ctseg.numerics.prepare import find_nonzero_box, prepare
from tests.support.nnunet_plans import make_dataset, make_plans

SCHEMES = (
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
SPLINE = "resample_data_or_seg_to_shape"


def spec_of(plans: dict[str, Any], channels: int = 1) -> ModelSpec:
    configuration = next(iter(plans["configurations"]))
    return spec_from_plans(
        plans, make_dataset(channels=channels), configuration, name="model", mirror_axes=None, mirroring="none"
    )


def nnunet_prepared(
    voxels: np.ndarray, spacing: tuple[float, float, float], plans: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    manager = PlansManager(plans)
    configuration = manager.get_configuration(next(iter(plans["configurations"])))
    data, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        voxels, None, {"spacing": list(spacing)}, manager, configuration, make_dataset(channels=len(voxels))
    )
    return data, properties


def assert_equal_to_nnunet(voxels: np.ndarray, spacing: tuple[float, float, float], plans: dict[str, Any]) -> None:
    expected, properties = nnunet_prepared(voxels, spacing, plans)
    kept = voxels.copy()
    prepared = prepare(voxels, spacing, spec_of(plans, len(voxels)))
    record = prepared.record
    assert record.shape == voxels.shape[1:]
    assert record.transposed_shape == tuple(properties["shape_before_cropping"])
    assert [list(bounds) for bounds in record.crop] == properties["bbox_used_for_cropping"]
    assert record.cropped_shape == tuple(properties["shape_after_cropping_and_before_resampling"])
    assert prepared.voxels.shape == expected.shape
    assert prepared.voxels.dtype == np.float32
    assert prepared.voxels.flags.c_contiguous
    # a few float32 roundings of the largest value: one after each axis and one of the result
    tolerance = 6 * np.finfo(np.float32).eps * max(float(np.abs(expected).max()), 1e-30)
    np.testing.assert_allclose(prepared.voxels, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(voxels, kept)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, tuple[float, float, float], dict[str, Any]]:
    """Random voxels, spacing and plans: every normalisation, orientation, anisotropy and resampler."""
    channels = draw(st.integers(1, 3))
    schemes = tuple(draw(st.sampled_from(SCHEMES)) for _ in range(channels))
    shape = tuple(draw(st.integers(2, 14)) for _ in range(3))
    dtype = draw(st.sampled_from([np.int16, np.uint8, np.float32, np.float64, np.int32]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low = 0 if "RGBTo01Normalization" in schemes or dtype == np.uint8 else -1000
    voxels = rng.uniform(low, 255, (channels, *shape)).astype(dtype)
    for axis in range(3):  # air of zeros around the body, so that there is something to crop
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        planes = np.moveaxis(voxels, axis + 1, 0)
        planes[:before] = 0
        planes[len(planes) - after :] = 0
    if draw(st.booleans()):
        voxels = np.asfortranarray(voxels)
    lengths = st.sampled_from([0.5, 0.7, 1.0, 1.25, 2.0, 3.27, 5.0])
    spacing = (draw(lengths), draw(lengths), draw(lengths))
    two_dimensional = draw(st.booleans())
    target = tuple(draw(lengths) for _ in range(2 if two_dimensional else 3))
    force = draw(st.sampled_from([None, None, True, False]))
    function = draw(st.sampled_from([SPLINE, SPLINE, SPLINE, "resample_torch_fornnunet", "no_resampling_hack"]))
    if function == SPLINE:
        arguments = {
            "is_seg": False,
            "order": draw(st.sampled_from([0, 1, 3, 3])),
            "order_z": draw(st.sampled_from([0, 1, 3])),
            "force_separate_z": force,
        }
    elif function == "resample_torch_fornnunet":
        arguments = {"is_seg": False, "force_separate_z": force}
    else:
        arguments = {}
    plans = make_plans(
        patch_size=(8, 8) if two_dimensional else (8, 8, 8),
        spacing=target,
        configuration="2d" if two_dimensional else "3d_fullres",
        normalization=schemes,
        use_mask_for_norm=tuple(draw(st.booleans()) for _ in range(channels)),
        resampling_data=(function, arguments),
        transpose_forward=draw(st.sampled_from([(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])),
    )
    return voxels, spacing, plans


@settings(max_examples=120, deadline=None)
@given(cases())
@pytest.mark.filterwarnings(
    "ignore:Mean of empty slice", "ignore:invalid value encountered", "ignore:Degrees of freedom"
)
def test_random_cases_equal_nnunet(case: tuple[np.ndarray, tuple[float, float, float], dict[str, Any]]) -> None:
    voxels, spacing, plans = case
    stumbles = None
    try:
        nnunet_prepared(voxels, spacing, plans)
    except (ValueError, RuntimeError, RuntimeWarning) as error:  # warnings are errors here
        stumbles = str(error)
    if stumbles is None:
        assert_equal_to_nnunet(voxels, spacing, plans)
        return
    # nnU-Net goes on with no voxel along an axis, until one of its libraries stumbles; here that is a named error
    assert re.search("divide by zero|zero-size array|can't extend empty axis|sizes should be greater than 0", stumbles)
    with pytest.raises(InputError, match="at least one voxel"):
        prepare(voxels, spacing, spec_of(plans, len(voxels)))


CASCADE = "3d_cascade_fullres"


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**32), st.booleans())
@pytest.mark.filterwarnings(
    "ignore:Mean of empty slice", "ignore:invalid value encountered", "ignore:Degrees of freedom"
)
def test_the_second_stage_of_a_cascade_sees_what_nnunets_sees(
    case: tuple[np.ndarray, tuple[float, float, float], dict[str, Any]], seed: int, has_regions: bool
) -> None:
    voxels, spacing, plans = case
    configuration = next(iter(plans["configurations"]))
    assume(configuration == "3d_fullres" and min(voxels.shape[1:]) > 1)
    seg = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    if plans["configurations"][configuration]["resampling_fn_data"] == "no_resampling_hack":
        seg = {}
    elif plans["configurations"][configuration]["resampling_fn_data"] != SPLINE:
        seg = {"is_seg": True, "force_separate_z": None}
    plans["configurations"][configuration]["resampling_fn_seg_kwargs"] = seg
    plans["configurations"]["3d_lowres"] = plans["configurations"][configuration]
    plans["configurations"][CASCADE] = {"inherits_from": configuration, "previous_stage": "3d_lowres"}
    dataset = make_dataset({"background": 0, "a": 1, "b": 2, "c": 3}, channels=len(voxels))
    if has_regions:
        regions = {"background": 0, "whole": [1, 2, 3], "core": [2]}
        dataset = make_dataset(regions, channels=len(voxels), regions_class_order=[1, 2])
    previous = np.random.default_rng(seed).integers(0, 4, voxels.shape[1:]).astype(np.uint8)
    try:
        expected = nnunets_second_stage(voxels, previous, spacing, plans, dataset)
    except (ValueError, RuntimeError, RuntimeWarning):  # no voxel is left along an axis
        reject()

    def spec(name: str, **first: ModelSpec) -> ModelSpec:
        return spec_from_plans(plans, dataset, name, name=name, mirror_axes=None, mirroring="none", **first)

    second = spec(CASCADE, first_stage=spec("3d_lowres"))
    prepared = prepare(voxels, spacing, second, previous=previous)
    tolerance = 6 * np.finfo(np.float32).eps * max(float(np.abs(expected).max()), 1e-30)
    np.testing.assert_allclose(prepared.voxels, expected[: len(voxels)], rtol=0, atol=tolerance)
    assert second.previous_stage is not None
    assert prepared.previous is not None
    one_hot = np.stack([prepared.previous == value for value in second.previous_stage.labels])
    np.testing.assert_array_equal(one_hot, expected[len(voxels) :])


def nnunets_second_stage(
    voxels: np.ndarray,
    previous: np.ndarray,
    spacing: tuple[float, float, float],
    plans: dict[str, Any],
    dataset: dict[str, Any],
) -> np.ndarray:
    """What nnU-Net's predictor gives its network: images, and a channel for each foreground label."""
    manager = PlansManager(plans)
    data, seg, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        voxels,
        previous[None].astype(np.float32),
        {"spacing": list(spacing)},
        manager,
        manager.get_configuration(CASCADE),
        dataset,
    )
    foreground = manager.get_label_manager(dataset).foreground_labels
    return np.vstack((data, convert_labelmap_to_one_hot(seg[0], foreground, data.dtype)))


def test_labels_of_a_previous_stage_that_cannot_be_are_refused() -> None:
    plans, dataset = make_plans(), make_dataset()
    plans["configurations"]["3d_lowres"] = plans["configurations"]["3d_fullres"]
    plans["configurations"][CASCADE] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    first = spec_from_plans(plans, dataset, "3d_lowres", name="first", mirror_axes=None)
    second = spec_from_plans(plans, dataset, CASCADE, name="second", mirror_axes=None, first_stage=first)
    voxels, spacing = np.ones((1, 6, 7, 8), np.int16), (1.0, 1.0, 1.0)
    labels = np.zeros((6, 7, 8), np.uint8)
    with pytest.raises(InputError, match=r"labels of first on the scan's grid, \(6, 7, 8\), found \(6, 7, 9\)"):
        prepare(voxels, spacing, second, previous=np.zeros((6, 7, 9), np.uint8))
    labels[0] = 9
    with pytest.raises(InputError, match=r"expected labels \[1\] of first, found \[9\] too"):
        prepare(voxels, spacing, second, previous=labels)
    with pytest.raises(InputError, match="second is the second stage of a cascade and needs the labels of first"):
        prepare(voxels, spacing, second)
    with pytest.raises(ValueError, match="first: expected no labels of a previous stage"):
        prepare(voxels, spacing, first, previous=labels)


def sarcoma(demo_data: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    voxels, properties = SimpleITKIO().read_images([str(demo_data / "images/STS_042_0000.nii.gz")])
    return voxels, tuple(properties["spacing"])


@pytest.mark.parametrize("spacing", [(3.27, 1.5, 1.5), (2.0, 2.0, 2.0)], ids=["separate slices", "isotropic"])
@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization"])
def test_real_ct_equals_nnunet(demo_data: Path, spacing: tuple[float, ...], scheme: str) -> None:
    voxels, voxel_spacing = sarcoma(demo_data)
    assert_equal_to_nnunet(voxels, voxel_spacing, make_plans(spacing=spacing, normalization=(scheme,)))


def test_integer_voxels_give_what_float_voxels_give() -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1500, (1, 10, 20, 20)).astype(np.int16)
    spec = spec_of(make_plans(spacing=(3.0, 1.3, 1.3)))
    integer = prepare(voxels, (3.0, 1.0, 1.0), spec)
    floating = prepare(voxels.astype(np.float32), (3.0, 1.0, 1.0), spec)
    np.testing.assert_array_equal(integer.voxels, floating.voxels)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("margin", [0, 2], ids=["whole", "cropped"])
def test_z_scores_have_the_bits_of_nnunet_however_they_lie_in_memory(axes: tuple[int, int, int], margin: int) -> None:
    plans = make_plans(spacing=(1.0, 1.0, 1.0), normalization=("ZScoreNormalization",))
    random = np.random.default_rng(3)
    for turn in ((1, 1, 1), (1, -1, -1), (-1, 1, -1)):
        voxels = random.integers(1, 4000, (1, 40, 44, 48)).astype(np.int16)
        voxels[:, :margin] = voxels[:, :, 44 - margin :] = voxels[..., :margin] = 0
        turned = voxels[:, :: turn[0], :: turn[1], :: turn[2]].transpose(0, *(axis + 1 for axis in axes))
        as_float = voxels.astype(np.float32)[:, :: turn[0], :: turn[1], :: turn[2]]
        as_float = as_float.transpose(0, *(axis + 1 for axis in axes))
        expected, _ = nnunet_prepared(as_float, (1.0, 1.0, 1.0), plans)
        for read in (turned, as_float):
            np.testing.assert_array_equal(prepare(read, (1.0, 1.0, 1.0), spec_of(plans)).voxels, expected)


def test_unresampled_ct_voxel_has_the_bits_of_nnunet() -> None:
    voxels = np.random.default_rng(1).uniform(-1000, 1500, (1, 6, 20, 20)).astype(np.float32)
    plans = make_plans(spacing=(2.0, 1.0, 1.0))
    expected, _ = nnunet_prepared(voxels, (2.0, 1.0, 1.0), plans)
    np.testing.assert_array_equal(prepare(voxels, (2.0, 1.0, 1.0), spec_of(plans)).voxels, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_volume_of_zeros_is_not_cropped_as_in_nnunet(scheme: str) -> None:
    assert_equal_to_nnunet(
        np.zeros((1, 5, 6, 7), np.int16), (1.0, 1.0, 1.0), make_plans(spacing=(1.0, 1.0, 1.0), normalization=(scheme,))
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_constant_volume_stays_constant(scheme: str) -> None:
    voxels = np.full((1, 5, 6, 7), 7, np.float32)
    plans = make_plans(spacing=(0.7, 0.7, 0.7), normalization=(scheme,))
    assert_equal_to_nnunet(voxels, (1.0, 1.0, 1.0), plans)
    assert np.ptp(prepare(voxels, (1.0, 1.0, 1.0), spec_of(plans)).voxels) == 0


def test_single_slice_equals_nnunet() -> None:
    voxels = np.random.default_rng(2).uniform(-1000, 1500, (1, 1, 20, 30)).astype(np.float32)
    assert_equal_to_nnunet(voxels, (5.0, 1.0, 1.0), make_plans(spacing=(2.5, 1.5, 1.5)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.001, 0.2))
def test_box_is_nnunets_box(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    voxels = (rng.random((2, *rng.integers(1, 8, 3))) < density).astype(np.int16)
    _, _, box = crop_to_nonzero(voxels.astype(np.float32))
    assert [list(bounds) for bounds in find_nonzero_box(voxels)] == box


@pytest.mark.parametrize("value", [-1, 256])
def test_intensity_that_is_no_colour_is_refused(value: int) -> None:
    voxels = np.full((1, 4, 5, 6), value, np.int16)
    with pytest.raises(InputError, match="expected intensities from 0 to 255 for RGBTo01Normalization"):
        prepare(voxels, (1.0, 1.0, 1.0), spec_of(make_plans(normalization=("RGBTo01Normalization",))))


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((2, 4, 5, 6), (1.0, 1.0, 1.0), r"expected 1 channels \(CT\), found 2"),
        ((1, 0, 5, 6), (1.0, 1.0, 1.0), "no voxels"),
        ((1, 4, 5, 6), (1.0, 0.0, 1.0), "expected a positive spacing"),
        ((1, 4, 5, 6), (1.0, float("nan"), 1.0), "expected a positive spacing"),
        ((1, 4, 5, 6), (0.1, 1.0, 1.0), "expected at least one voxel along each axis"),
    ],
)
def test_scan_that_does_not_fit_is_refused(
    shape: tuple[int, ...], spacing: tuple[float, float, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(np.ones(shape, np.float32), spacing, spec_of(make_plans()))
