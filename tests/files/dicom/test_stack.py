"""The rules by which slices make one volume, on headers alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctseg.files.dicom.frames import Frame
from ctseg.files.dicom.stack import Stack, StackError, stack_of
from tests.support.dicom_series import AXIAL

ROWS = 512
STEP_MM = 2.5


def frames(
    count: int = 8,
    *,
    step_mm: Sequence[float] = (0.0, 0.0, STEP_MM),
    orientation: Sequence[float] = AXIAL,
    spacing_mm: tuple[float, float] = (0.8, 0.8),
    thickness_mm: float | None = STEP_MM,
) -> list[Frame]:
    origin = np.array([-204.8, -190.0, -731.25])
    return [
        Frame(
            0,
            tuple((origin + number * np.array(step_mm)).tolist()),
            tuple(orientation),
            spacing_mm,
            thickness_mm,
            "SliceThickness",
            1.0,
            -1024.0,
            "HU",
        )
        for number in range(count)
    ]


def moved(frame: Frame, by_mm: Sequence[float]) -> Frame:
    assert frame.position_lps_mm is not None
    return replace(frame, position_lps_mm=tuple((np.array(frame.position_lps_mm) + by_mm).tolist()))


def refused(slices: Sequence[Frame], match: str) -> None:
    with pytest.raises(StackError, match=match):
        stack_of(slices, ROWS)


def along_column(degrees: float) -> tuple[float, float, float]:
    return (0.0, STEP_MM * float(np.tan(np.deg2rad(degrees))), STEP_MM)


@given(st.permutations(range(9)))
@settings(deadline=None, max_examples=30)
def test_slices_are_ordered_along_their_normal_in_whatever_order_they_come(order: list[int]) -> None:
    slices = frames(9)
    stack = stack_of([slices[index] for index in order], ROWS)
    assert [order[index] for index in stack.order] == list(range(9))
    assert stack.step_mm == pytest.approx((0, 0, STEP_MM), abs=1e-12)


@pytest.mark.parametrize(("degrees", "count"), [(0.05, 46), (0.3, 8)])
def test_small_shear_is_told_and_the_step_stays_what_the_headers_say(degrees: float, count: int) -> None:
    stack = stack_of(frames(count, step_mm=along_column(degrees)), ROWS)
    assert stack.step_mm == pytest.approx(along_column(degrees))
    displaced_mm = (count - 1) * STEP_MM * np.tan(np.deg2rad(degrees))
    assert displaced_mm < 0.1
    assert stack.warnings == (
        f"sheared by {degrees:g} degrees, {displaced_mm:.2g} mm from the first slice to the last: made orthogonal",
    )


@pytest.mark.parametrize(("degrees", "count", "mm"), [(0.05, 48, "0.103"), (0.3, 9, "0.105"), (0.6, 8, "0.183")])
def test_shear_is_judged_by_how_far_it_displaces_the_last_slice(degrees: float, count: int, mm: str) -> None:
    slices = frames(count, step_mm=along_column(degrees))
    refused(slices, rf"sheared by {degrees:g} degrees.* {mm} mm beside .*, where 0.1 mm are allowed: have the series")


def test_large_voxels_allow_five_hundredths_of_themselves() -> None:
    coarse = (3.0, 4.0)
    assert stack_of(frames(10, step_mm=along_column(0.3), spacing_mm=coarse), ROWS).warnings
    refused(frames(14, step_mm=along_column(0.3), spacing_mm=coarse), "0.17 mm beside .* 0.15 mm are allowed")


@pytest.mark.parametrize("off_mm", [(0.0, 0.0, 0.06), (0.06, 0.0, 0.0)], ids=["along the normal", "beside it"])
def test_slice_may_lie_off_its_place_by_a_fiftieth_of_a_step_and_no_more(off_mm: tuple[float, ...]) -> None:
    thick = frames(8, step_mm=(0, 0, 5.0), thickness_mm=5.0)
    thick[3] = moved(thick[3], off_mm)
    assert stack_of(thick, ROWS).order == tuple(range(8))
    thin = frames(8)
    thin[3] = moved(thin[3], off_mm)
    refused(
        thin, "slice 4 of 8, at .* mm along the normal, lies 0.06 mm beside its place .* 0.05 mm are allowed|apart, but"
    )


def test_step_is_the_mean_one_and_not_the_first() -> None:
    slices = [moved(frame, (0, 0, 0.04 * (number == 1))) for number, frame in enumerate(frames(11))]
    assert stack_of(slices, ROWS).step_mm.tolist() == pytest.approx([0, 0, STEP_MM])


@pytest.mark.parametrize(
    ("lost", "match"),
    [
        ((4,), r"2.5 mm apart, but 5 mm from -723.75 to -718.75 mm .*: 1 slice is missing: copy the whole"),
        ((2, 5, 6), r"but 5 mm from .*, 7.5 mm from .*: 3 slices are missing"),
        ((1,), "1 slice is missing"),
    ],
)
def test_missing_slices_are_counted_with_their_places(lost: tuple[int, ...], match: str) -> None:
    refused([frame for number, frame in enumerate(frames(12)) if number not in lost], match)


@pytest.mark.parametrize("count", [4, 5, 20, 21])
@pytest.mark.parametrize("step_mm", [0.02, 0.1])
def test_a_missing_slice_is_seen_however_thin_slices_are(step_mm: float, count: int) -> None:
    slices = frames(count, step_mm=(0, 0, step_mm))
    for lost in range(1, count - 1):
        refused([frame for number, frame in enumerate(slices) if number != lost], "1 slice is missing|equal steps")


def test_steps_that_vary_are_not_called_missing_slices() -> None:
    slices = [moved(frame, (0, 0, 0.4 * max(0, number - 8))) for number, frame in enumerate(frames(12))]
    refused(slices, "2.5 mm apart, but 2.9 mm from .*: export it with equal steps, or each part as a series of its own")


def test_slices_of_the_same_place_are_several_volumes_told_apart_by_a_tag() -> None:
    twice = [replace(frame, told_apart=(("AcquisitionNumber", str(n)),)) for n in range(2) for frame in frames(4)]
    refused(twice, "8 slices lie at 4 places.*which differ in AcquisitionNumber: give each a series of its own")
    nearly = [moved(frame, (0, 0, 5e-4 * n)) for n in range(2) for frame in frames(4)]
    refused(nearly, "8 slices lie at 4 places, so it holds several volumes, reconstructions or points in time: give")


def tagged(values: str, keyword: str) -> list[Frame]:
    slices = frames(len(values))
    return [replace(frame, told_apart=((keyword, value),)) for frame, value in zip(slices, values, strict=True)]


@pytest.mark.parametrize(
    "keyword",
    [
        "AcquisitionNumber", "AcquisitionTime", "FrameAcquisitionNumber", "TemporalPositionIdentifier",
        "ConvolutionKernel", "ImageType",
    ],
)  # fmt: skip
@pytest.mark.parametrize("values", ["abababab", "aaababbb", "aabbaabb", "abcabcabc"])
def test_volumes_whose_slices_lie_between_each_other_are_refused(keyword: str, values: str) -> None:
    refused(tagged(values, keyword)[::-1], f"slices alternate in {keyword}, so it holds several volumes between")


@pytest.mark.parametrize("values", ["aaaabbbb", "aabbccdd", "abcdefgh", "aaabaaaa", "aaabbaaa", "aabbaacc"])
def test_rotations_along_a_volume_of_which_one_was_taken_again_are_one_volume(values: str) -> None:
    assert stack_of(tagged(values, "AcquisitionNumber"), ROWS).order == tuple(range(8))


@pytest.mark.parametrize("keyword", ["StackID", "TemporalPositionIndex", "FrameType"])
def test_frames_of_several_volumes_are_refused_though_they_lie_beside_each_other(keyword: str) -> None:
    slices = [replace(frame, told_apart=((keyword, str(n < 4)),)) for n, frame in enumerate(frames(8))]
    refused(slices, f"frames differ in {keyword}, so it holds several volumes: give each a series of its own")


def test_single_slice_is_as_thick_as_it_says() -> None:
    stack = stack_of(frames(1, thickness_mm=3.27), ROWS)
    assert stack.step_mm.tolist() == [0, 0, 3.27]
    assert stack.warnings == ("one slice only, taken to be 3.27 mm thick (SliceThickness)",)
    refused(
        frames(1, thickness_mm=None), r"one slice, which does not say how thick it is \(SpacingBetweenSlices, Slice"
    )


def test_slices_far_apart_are_told() -> None:
    (told,) = stack_of(frames(5, thickness_mm=1.0), ROWS).warnings
    assert told.startswith("its slices lie 2.5 mm apart, where 1 mm are said (SliceThickness): what lies between")


@pytest.mark.parametrize("tolerated", [True, False])
def test_orientations_and_spacings_may_differ_by_their_tolerance_and_no_more(tolerated: bool) -> None:
    turned, spaced = frames(), frames()
    sine = 0.9e-3 if tolerated else 1.1e-3
    turned[2] = replace(turned[2], orientation_lps=(1.0, sine, 0.0, -sine, 1.0, 0.0))
    spaced[5] = replace(spaced[5], pixel_spacing_mm=(0.8, 0.8 + (0.9e-4 if tolerated else 1.1e-4)))
    if tolerated:
        assert stack_of(turned, ROWS).along_x.tolist() == [1, 0, 0]
        assert stack_of(spaced, ROWS).pixel_spacing_mm == (0.8, 0.8)
    else:
        refused(turned, "another orientation .* in 1 of 8 slices, turned by up to 0.063 degrees")
        refused(spaced, r"voxels of 0.8 to 0.80011 mm \(PixelSpacing\): give each spacing a series of its own")


def test_axes_that_are_nearly_at_right_angles_are_made_so_and_told() -> None:
    skew = 2e-4
    stack: Stack = stack_of(frames(orientation=(1, 0, 0, skew, 1, 0)), ROWS)
    assert stack.along_x @ stack.along_y == pytest.approx(0, abs=1e-15)
    assert stack.warnings == ("rows and columns off a right angle by 0.082 mm over a slice: made orthogonal",)
    refused(frames(orientation=(1, 0, 0, 3e-4, 1, 0)), "off by 0.0172 degrees, 0.123 mm over a slice, where 0.1 mm")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"position_lps_mm": None}, r"positions \(ImagePositionPatient\) are missing in 1 of 8 slices: export"),
        ({"position_lps_mm": (0.0, 0.0, 1e6)}, r"lies 1e\+06 mm from the origin .* cannot be: export"),
        ({"orientation_lps": None}, r"orientations \(ImageOrientationPatient\) are missing in 1 of 8 slices: export"),
        ({"pixel_spacing_mm": None}, r"sizes of voxels \(PixelSpacing\) are missing in 1 of 8 slices: export"),
        ({"pixel_spacing_mm": (0.8, 0.0)}, r"a voxel is 0 mm large \(PixelSpacing\), which cannot be: export"),
        ({"slope": None}, r"HU \(RescaleSlope, RescaleIntercept\) is missing in 1 of 8 slices: export"),
        ({"intercept": None}, "what makes numbers HU .* is missing in 1 of 8 slices"),
        ({"slope": 0.0}, "the slope 0 and the intercept -1024 .* give no HU: export"),
        ({"slope": -1e-9}, "the slope -1e-09 and the intercept -1024"),
        ({"slope": 1e30}, r"the slope 1e\+30 and the intercept -1024"),
    ],
)
def test_missing_and_impossible_values_of_one_slice_are_refused(change: dict[str, object], match: str) -> None:
    slices = frames()
    slices[6] = replace(slices[6], **change)  # type: ignore[arg-type]
    refused(slices, match)


def test_lengths_of_axes_that_are_none_are_refused() -> None:
    refused(frames(orientation=(0,) * 6), "expected unit vectors along rows and columns .* found lengths of 0 and 0")
    refused(frames(orientation=(1, 0, 0, 1, 0, 0)), "not at right angles .* off by 90 degrees")
