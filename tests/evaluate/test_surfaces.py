"""Distances between surfaces: DeepMind's definition, known bodies, and what is empty."""

import math

import numpy as np
import pytest

from ctseg.arrays import Spacing
from ctseg.evaluate.surfaces import SurfaceScores, _percentile, element_areas, surface_scores

ISOTROPIC: Spacing = (1.0, 1.0, 1.0)
CLINICAL: Spacing = (5.0, 0.7, 1.25)


def box_of(shape: tuple[int, int, int], *, begin: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(first, first + count) for first, count in zip(begin, size, strict=True))] = True
    return mask


def ball(spacing_mm: Spacing, radius_mm: float, *, shape: tuple[int, int, int]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij"), axis=-1) * spacing_mm
    mask: np.ndarray = np.linalg.norm(grid, axis=-1) <= radius_mm
    return mask


def test_percentile_is_the_least_distance_that_so_many_percent_of_the_area_do_not_exceed() -> None:
    assert _percentile(np.arange(20.0)[::-1], np.ones(20)) == 18.0  # 19 of 20 elements are 95 %
    assert _percentile(np.array([5.0, 1.0, 3.0]), np.array([4.0, 95.0, 1.0])) == 1.0
    assert _percentile(np.array([5.0, 1.0, 3.0]), np.array([4.0, 94.0, 2.0])) == 3.0


def test_area_of_a_large_plane_edge_and_corner_are_those_of_a_cut_box() -> None:
    areas = element_areas(CLINICAL)
    z, y, x = CLINICAL
    assert areas[0] == areas[255] == 0
    assert areas[0b11110000] == pytest.approx(y * x)  # the four voxels below are inside: a plane across z
    assert areas[0b11001100] == pytest.approx(z * x)
    assert areas[0b10101010] == pytest.approx(z * y)
    assert areas[1] == pytest.approx(np.linalg.norm([y * x, z * x, z * y]) / 8)  # a corner is cut off
    assert areas[3] == pytest.approx(x * math.hypot(y, z) / 2)  # an edge along x is cut off


def test_areas_of_all_256_neighbourhoods_are_those_of_surface_distance() -> None:
    areas = element_areas(CLINICAL)
    # by its create_table_neighbour_code_to_surface_area, version 0.1
    assert areas.sum() == pytest.approx(968.5977460398747, rel=1e-13)
    assert (areas * np.arange(256) ** 2).sum() == pytest.approx(20339108.132976472, rel=1e-13)


def rough_ellipsoid(centre: tuple[int, int, int], size: int) -> np.ndarray:
    z, y, x = np.indices((16, 24, 20))
    distance = ((z - centre[0]) * 4) ** 2 + ((y - centre[1]) * 2) ** 2 + ((x - centre[2]) * 3) ** 2
    mask: np.ndarray = distance + (z * 7 + y * 13 + x * 29) % 11 * 40 < size
    return mask


def test_rough_bodies_score_what_surface_distance_says_of_them() -> None:
    one, other = rough_ellipsoid((8, 12, 10), 900), rough_ellipsoid((7, 13, 9), 1000)
    assert (one.sum(), other.sum()) == (3176, 3755)
    scores = surface_scores(one, other, CLINICAL, (1.0, 3.0))
    # by its compute_robust_hausdorff, compute_average_surface_distance and compute_surface_dice_at_tolerance
    assert scores.hd95_mm == pytest.approx(2.596150997149434, rel=1e-13)
    assert scores.assd_mm == pytest.approx(0.48270942148463786, rel=1e-13)
    assert scores.nsd == pytest.approx((0.7932895180470111, 0.9734656538611731), rel=1e-13)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_box_that_is_shifted_has_the_shift_as_the_distance_of_its_faces(axis: int) -> None:
    shape, size = (20, 40, 40), (8, 20, 22)
    begin = [4, 6, 5]
    one = box_of(shape, begin=(4, 6, 5), size=size)
    begin[axis] += 2
    other = box_of(shape, begin=(begin[0], begin[1], begin[2]), size=size)
    shift_mm = 2 * CLINICAL[axis]
    scores = surface_scores(one, other, CLINICAL, (shift_mm - 0.01, shift_mm))
    assert scores.hd95_mm == pytest.approx(shift_mm)
    assert scores.nsd[1] == 1.0  # at the very tolerance is within
    assert scores.nsd[0] < 1.0
    assert 0 < scores.assd_mm < shift_mm


def test_ball_in_a_ball_has_the_difference_of_radii_for_every_distance() -> None:
    shape = (71, 115, 95)
    spacing_mm: Spacing = (0.8, 0.5, 0.6)
    small, large = ball(spacing_mm, 20, shape=shape), ball(spacing_mm, 26, shape=shape)
    scores = surface_scores(small, large, spacing_mm, (5.0, 7.0))
    assert scores.hd95_mm == pytest.approx(6, abs=0.4)  # half the longest side of a voxel
    assert scores.assd_mm == pytest.approx(6, abs=0.4)
    assert scores.nsd == (pytest.approx(0, abs=0.03), pytest.approx(1, abs=0.03))


def test_both_directions_count_and_their_order_does_not() -> None:
    one = box_of((12, 40, 30), begin=(3, 3, 3), size=(6, 10, 10))
    other = one | box_of((12, 40, 30), begin=(3, 28, 3), size=(6, 10, 10))  # a second piece, far from the first
    scores = surface_scores(one, other, CLINICAL, (1.0,))
    assert scores == surface_scores(other, one, CLINICAL, (1.0,))
    assert scores.hd95_mm > 15 * CLINICAL[1]  # one direction alone says 0
    assert scores.nsd == (pytest.approx(2 / 3, abs=1e-12),)  # of three equal surfaces, two lie on each other


def test_equal_masks_are_at_no_distance_at_the_border_of_the_array_too() -> None:
    mask = box_of((3, 4, 5), begin=(0, 0, 0), size=(3, 4, 5))
    assert surface_scores(mask, mask, CLINICAL, (0.0,)) == SurfaceScores(0.0, 0.0, (1.0,))


def test_cutting_both_masks_to_their_common_box_changes_nothing() -> None:
    one = box_of((20, 40, 30), begin=(4, 5, 6), size=(6, 10, 11))
    other = box_of((20, 40, 30), begin=(5, 7, 9), size=(6, 10, 11))
    cut = np.s_[4:11, 5:17, 6:20]
    whole = surface_scores(one, other, CLINICAL, (1.0, 3.0))
    assert surface_scores(one[cut], other[cut], CLINICAL, (1.0, 3.0)) == whole


def test_where_neither_has_voxels_nothing_is_defined_and_where_one_has_they_are_infinitely_far_apart() -> None:
    nothing = np.zeros((3, 4, 5), bool)
    something = box_of((3, 4, 5), begin=(1, 1, 1), size=(1, 1, 2))
    both = surface_scores(nothing, nothing, CLINICAL, (1.0, 3.0))
    assert np.isnan([both.hd95_mm, both.assd_mm, *both.nsd]).all()
    assert len(both.nsd) == 2
    for pair in ((something, nothing), (nothing, something)):
        assert surface_scores(*pair, CLINICAL, (1.0, 3.0)) == SurfaceScores(math.inf, math.inf, (0.0, 0.0))


def test_surface_that_touches_ignored_voxels_is_left_out_of_both() -> None:
    shape = (12, 30, 30)
    one = box_of(shape, begin=(3, 5, 5), size=(6, 20, 20))
    other = box_of(shape, begin=(3, 5, 5), size=(6, 20, 12))  # ends eight voxels before the other one
    ignored = box_of(shape, begin=(0, 0, 17), size=(12, 30, 13))  # from there on nothing is known
    assert surface_scores(one, other, CLINICAL, (1.0,)).hd95_mm > 5
    assert surface_scores(one, other, CLINICAL, (1.0,), ignored) == SurfaceScores(0.0, 0.0, (1.0,))


def test_label_in_ignored_voxels_alone_is_none() -> None:
    shape = (6, 7, 8)
    known, unknown = box_of(shape, begin=(1, 1, 1), size=(2, 2, 2)), box_of(shape, begin=(1, 1, 5), size=(2, 2, 2))
    ignored = box_of(shape, begin=(0, 0, 4), size=(6, 7, 4))
    assert surface_scores(unknown, known, CLINICAL, (1.0,), ignored) == SurfaceScores(math.inf, math.inf, (0.0,))
    assert math.isnan(surface_scores(unknown, unknown, CLINICAL, (1.0,), ignored).hd95_mm)
