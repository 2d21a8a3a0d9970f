"""Contours along pixel edges give back the very pixels, by the even-odd rule and as a union."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctseg.files.dicom.contours import MAX_TEXT_BYTES, Contour, Plane, contours_of, mask_of
from tests.support.even_odd import pixels_inside

PLANE = Plane(np.array([-10.0, 5.5, 3.0]), np.array([0, 0.7, 0]), np.array([0.3, 0, 0]))


def points_of(contour: Contour) -> np.ndarray:
    """(points, 2): rows and columns."""
    x, y, _ = np.array(contour.text.decode().split("\\"), dtype=float).reshape(-1, 3).T
    return np.stack([(y - 5.5) / 0.7, (x + 10.0) / 0.3], axis=1)


def contours(rows: list[str]) -> list[list[list[float]]]:
    """Contours of a drawing, ``#`` is inside."""
    colours = np.array([[character == "#" for character in row] for row in rows], np.uint16)
    return [points_of(contour).round(6).tolist() for contour in contours_of(colours, PLANE)]


def check(colours: np.ndarray) -> None:
    found = list(contours_of(colours, PLANE))
    for colour in range(1, int(colours.max(initial=0)) + 1):
        mine = [contour for contour in found if contour.colour == colour]
        parts = [points_of(contour) for contour in mine]
        expected = colours == colour
        each = [pixels_inside([part], colours.shape) for part in parts]
        together = np.sum(each, axis=0) if each else np.zeros(colours.shape, int)
        assert np.array_equal(together, expected)  # no pixel twice: union and even-odd are the same
        assert np.array_equal(mask_of(parts, colours.shape), expected)
        assert [len(part) for part in parts] == [contour.points for contour in mine]


RING_IN_RING = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 0, 1, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ],
    np.uint16,
)
HOLES_UNDER_HOLES = np.array([[1] * 7, [1, 0, 1, 0, 1, 0, 1], [1] * 7, [1, 0, 1, 0, 0, 0, 1], [1] * 7], np.uint16)
HOLE_OF_DIAGONALS = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], np.uint16)
OPEN_BY_A_CORNER = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint16)
TWO_RINGS = np.array([[1, 1, 1, 2, 2, 2], [1, 2, 1, 2, 1, 2], [1, 1, 1, 2, 2, 2]], np.uint16)


@settings(deadline=None)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2)))
@example(RING_IN_RING)
@example(HOLES_UNDER_HOLES)
@example(HOLE_OF_DIAGONALS)
@example(OPEN_BY_A_CORNER)
@example(TWO_RINGS)
@example(np.ones((1, 1), np.uint16))
def test_contours_give_back_the_pixels_by_both_rules(colours):
    check(colours)


def test_a_pixel_is_the_square_around_its_centre():
    assert contours(["...", "..#"]) == [[[0.5, 2.5], [1.5, 2.5], [1.5, 1.5], [0.5, 1.5]]]


def test_pixels_that_touch_by_a_corner_are_two_contours():
    assert [len(part) for part in contours(["#.", ".#"])] == [4, 4]


def test_axes_may_lie_in_memory_in_any_order():
    colours = np.array([[1, 1, 0], [0, 2, 2]], np.uint16)
    found = [[contour.text for contour in contours_of(one, PLANE)] for one in (colours, np.asfortranarray(colours))]
    assert found[0] == found[1]


def test_collinear_points_are_left_out():
    assert [len(part) for part in contours(["####", "####"])] == [4]


def test_a_hole_is_joined_to_its_outline_by_a_channel_of_no_width():
    (ring,) = contours(["###", "#.#", "###"])
    assert ring == [
        [-0.5, 0.5],  # along the channel to the hole, round it, and back
        [1.5, 0.5],
        [1.5, 1.5],
        [0.5, 1.5],
        [0.5, 0.5],
        [-0.5, 0.5],
        [-0.5, 2.5],
        [2.5, 2.5],
        [2.5, -0.5],
        [-0.5, -0.5],
    ]


def test_an_island_in_a_hole_is_a_contour_of_its_own():
    assert len(contours(["#####", "#...#", "#.#.#", "#...#", "#####"])) == 2


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_speckle_stays_exact(share):
    check((np.random.default_rng(0).random((120, 130)) < share).astype(np.uint16))


def test_a_contour_too_long_for_explicit_vr_is_cut_and_stays_exact():
    colours = np.ones((120, 130), np.uint16)
    colours[1::2, 1::2] = 0
    colours[:4, :4] = 2
    found = list(contours_of(colours, PLANE))
    assert sum(len(contour.text) for contour in found) > MAX_TEXT_BYTES
    assert max(len(contour.text) for contour in found) <= MAX_TEXT_BYTES
    assert sum(contour.colour == 2 for contour in found) == 1  # the others are left whole
    check(colours)


@pytest.mark.parametrize(
    ("origin", "step", "expected"),
    [
        ((0.5, 0.0, -100.0), 1.0, {("0", "-0.5", "-100"), ("1", "-0.5", "-100"),
                                   ("1", "0.5", "-100"), ("0", "0.5", "-100")}),
        ((1234.25, -1e-7, 0.1), 1e-7, {("1234.25", "0", "0.1")}),
        ((-1e-6, 0.0, 1 / 3), 2e-6, {("-0.000002", "-0.000001", "0.333333"), ("0", "-0.000001", "0.333333"),
                                     ("0", "0.000001", "0.333333"), ("-0.000002", "0.000001", "0.333333")}),
    ],
)  # fmt: skip
def test_decimals_have_six_places_and_no_zeros_behind(origin, step, expected):
    plane = Plane(np.array(origin), np.array([0, step, 0]), np.array([step, 0, 0]))
    (contour,) = contours_of(np.ones((1, 1), np.uint16), plane)
    values = contour.text.decode().rstrip(" ").split("\\")
    assert set(zip(values[::3], values[1::3], values[2::3], strict=True)) == expected
    assert len(contour.text) % 2 == 0
