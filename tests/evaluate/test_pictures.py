"""Planes of a scan as small pictures: aspect, orientation, colours, and what is too small to see."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ctseg.evaluate.pages.colours import colours_of_values
from ctseg.evaluate.pages.pictures import largest_section, radiological_turn, three_planes, thumbnail
from ctseg.files.geometry import Geometry, Reorientation

RED, GREEN, BLUE = (230, 40, 40), (40, 200, 60), (60, 60, 240)
COLOURS = {1: RED, 2: GREEN, 3: BLUE}
WHITE_HU, BLACK_HU = 400.0, -400.0


def pixels(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


def test_a_picture_is_as_wide_and_high_as_the_patient():
    picture = pixels(thumbnail(np.zeros((20, 30)), None, {}, spacing_mm=(3.0, 1.0), size=120))
    assert picture.shape == (120, 60, 3)


def test_the_window_says_what_is_black_and_white():
    plane = np.zeros((40, 40))
    plane[:20], plane[20:] = BLACK_HU, WHITE_HU
    picture = pixels(thumbnail(plane, None, {}, spacing_mm=(1, 1), window_hu=(-100, 100), size=80))
    assert picture[:30].max() < 20
    assert picture[50:].min() > 235


def test_a_label_is_a_veil_and_a_reference_an_outline():
    labels, reference = np.zeros((2, 80, 80), dtype=np.uint8)
    labels[20:60, 20:60] = 1
    reference[10:70, 10:70] = 2
    picture = pixels(
        thumbnail(np.full((80, 80), BLACK_HU), labels, COLOURS, spacing_mm=(1, 1), outline=reference, size=80)
    )
    assert np.abs(picture[40, 40] - 0.45 * np.array(RED)).max() < 12
    assert np.abs(picture[10, 40] - np.array([148, 228, 158])).max() < 12, "lighter, to be seen on its own veil"
    assert picture[15, 40].max() < 40, "inside of an outline the scan is seen"


def test_an_outline_has_a_dark_line_beside_it_on_bright_bone():
    reference = np.zeros((80, 80), dtype=np.uint8)
    reference[10:70, 10:70] = 2
    picture = pixels(
        thumbnail(np.full((80, 80), WHITE_HU), None, COLOURS, spacing_mm=(1, 1), outline=reference, size=80)
    )
    assert picture[9, 40].max() < 100
    assert picture[40, 70].max() < 100
    assert picture[5, 40].min() > 235, "further out the scan is seen"
    assert picture[15, 40].min() > 235, "inside, too"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_label_of_one_voxel_is_seen_in_a_picture_that_is_much_smaller(dtype):
    labels = np.zeros((512, 512), dtype=dtype)
    labels[100, 300] = 3
    picture = pixels(thumbnail(np.full((512, 512), BLACK_HU), labels, COLOURS, spacing_mm=(1, 1), size=64))
    row, column = np.unravel_index(picture[:, :, 2].argmax(), (64, 64))
    assert (row, column) == (12, 37)
    assert picture[row, column, 2] > 60


def test_the_largest_section_is_found_along_each_axis_by_itself():
    labels = np.zeros((7, 9, 11), dtype=np.uint16)
    labels[5, 1:4, 2:9] = 300
    labels[1:7, 3, 4] = 2
    assert largest_section(labels) == (5, 3, 4)
    assert largest_section(np.zeros((7, 9, 11))) == (3, 4, 5)


def test_the_planes_show_the_patients_right_on_the_left_whatever_the_axes_of_the_file():
    """A landmark right, in front and above of the middle, on grids of every order and direction."""
    ras = np.full((20, 24, 28), BLACK_HU)  # (z, y, x) along (up, front, right)
    ras[14:18, 18:22, 20:26] = WHITE_HU
    place = Geometry(ras.shape, np.diag([2.0, 2.5, 3.0, 1.0]))
    for axes in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        for flips in ((False, False, False), (True, False, True), (True, True, True)):
            turn = Reorientation(axes, flips)
            there = place.reoriented(turn)
            planes = three_planes(turn.apply(ras), None, {}, there, at=_at(turn.apply(ras)), size=90)
            for picture in (planes.axial, planes.coronal, planes.sagittal):
                bright = pixels(picture)[:, :, 0] > 128
                rows, columns = np.nonzero(bright)
                assert rows.mean() < bright.shape[0] / 2, "up, or in front"
                assert columns.mean() < bright.shape[1] / 2, "the right, or the front, is on the left"
            assert pixels(planes.axial).shape[:2] == (90, 84)


def test_an_oblique_grid_is_turned_by_its_nearest_axes():
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[-np.cos(angle), np.sin(angle)], [-np.sin(angle), -np.cos(angle)]]
    turn = radiological_turn(Geometry((4, 5, 6), affine))
    assert turn.axes == (0, 1, 2)
    assert turn.flipped == (True, False, False), "x already runs left, y back; z has to run down"


def _at(voxels: np.ndarray) -> tuple[int, int, int]:
    z, y, x = (int(place) for place in np.argwhere(voxels == WHITE_HU).mean(axis=0).round())
    return z, y, x


def test_a_picture_is_half_grey_in_the_middle_of_its_window():
    for hu, grey in ((-160, 0), (40, 127), (140, 191), (240, 255)):
        picture = pixels(thumbnail(np.full((20, 20), float(hu)), None, {}, spacing_mm=(1, 1), size=20))
        assert np.abs(picture - grey).max() <= 2


def test_planes_go_through_the_very_voxel_also_along_axes_that_are_turned_round():
    voxels = np.full((5, 6, 7), BLACK_HU)
    voxels[1, 2, 4] = WHITE_HU
    for signs in ((1, 1, 1), (-1, -1, 1), (1, -1, -1)):
        geometry = Geometry(voxels.shape, np.diag([*map(float, signs), 1.0]))
        planes = three_planes(voxels, None, {}, geometry, at=(1, 2, 4), size=70)
        for picture in (planes.axial, planes.coronal, planes.sagittal):
            assert pixels(picture).max() > 200, signs


def test_a_value_of_several_regions_has_the_colour_of_the_smallest():
    regions = {"core": (2,), "whole": (1, 2, 3), "inner": (2, 3)}
    colours = {"core": (1, 0, 0), "whole": (2, 0, 0), "inner": (3, 0, 0)}
    assert colours_of_values(regions, colours) == {1: (2, 0, 0), 2: (1, 0, 0), 3: (3, 0, 0)}


def test_labels_that_touch_have_no_gap_between_them_where_a_pixel_has_half_of_each():
    width = 2 * 45
    plane, labels = np.full((width, width), -1000.0, np.float32), np.ones((width, width), np.uint8)
    labels[:, 45:] = 2
    uri = thumbnail(plane, labels, {1: (0, 250, 0), 2: (0, 250, 0)}, spacing_mm=(1.0, 1.0), size=45)
    row = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))[22, :, 1].astype(int)
    assert row.min() > 100, "the veil is everywhere, in the 23rd pixel too"


def test_a_picture_that_is_all_noise_takes_no_more_room_than_the_index_has_for_it():
    noise = np.random.default_rng(0).uniform(-160, 240, (160, 160)).astype(np.float32)
    uri = thumbnail(noise, None, {}, spacing_mm=(1.0, 1.0), size=160)
    assert len(base64.b64decode(uri.partition(",")[2])) <= 0.43 * 160 * 160
