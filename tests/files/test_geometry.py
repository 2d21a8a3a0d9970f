"""Geometry on an asymmetric grid: three sizes, three spacings, an oblique affine; compared in millimetres."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, io_orientation
from scipy.spatial.transform import Rotation

from ctseg.files.geometry import (
    RAS_FROM_LPS,
    Geometry,
    Reorientation,
    closest_ras_by_itk,
    reorientation_from_nibabel,
)

SHAPE = (3, 4, 5)
ALL_REORIENTATIONS = [
    Reorientation(axes, flipped) for axes in permutations(range(3)) for flipped in product((False, True), repeat=3)
]


def oblique_affine(seed: int = 3) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * (0.7, 1.1, 2.5)
    affine[:3, 3] = (-120.0, 35.5, 801.25)
    return affine


def test_spacing_and_positions_of_an_oblique_grid():
    geometry = Geometry(SHAPE, oblique_affine())
    np.testing.assert_allclose(geometry.spacing_mm, (2.5, 1.1, 0.7), rtol=1e-12)
    assert geometry.position_mm((0, 0, 0)) == (-120.0, 35.5, 801.25)
    step_along_z = np.subtract(geometry.position_mm((2, 1, 1)), geometry.position_mm((1, 1, 1)))
    np.testing.assert_allclose(step_along_z, oblique_affine()[:3, 2], atol=1e-10)
    assert not geometry.is_sheared


@pytest.mark.parametrize("reorientation", ALL_REORIENTATIONS, ids=str)
def test_reorientation_leaves_every_voxel_where_it_is_and_can_be_undone(reorientation):
    geometry = Geometry(SHAPE, oblique_affine())
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turned, turned_geometry = reorientation.apply(labels), geometry.reoriented(reorientation)
    assert turned.shape == turned_geometry.shape
    for label in range(labels.size):
        index, turned_index = (np.argwhere(array == label)[0] for array in (labels, turned))
        np.testing.assert_allclose(
            turned_geometry.position_mm(turned_index), geometry.position_mm(index), atol=1e-9
        )  # fmt: skip
    np.testing.assert_array_equal(reorientation.undo(turned), labels)
    np.testing.assert_array_equal(reorientation.apply(labels[None])[0], turned)
    np.testing.assert_allclose(reorientation.apply_to_spacing(geometry.spacing_mm), turned_geometry.spacing_mm)


@pytest.mark.parametrize("seed", range(20))
def test_itk_and_nibabel_turn_to_ras_alike(seed):
    geometry = Geometry(SHAPE, oblique_affine(seed))
    labels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)

    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin((RAS_FROM_LPS @ geometry.affine_ras[:3, 3]).tolist())
    image.SetDirection((RAS_FROM_LPS @ geometry.direction_ras).ravel().tolist())
    expected = sitk.DICOMOrient(image, "RAS")
    by_itk = closest_ras_by_itk(geometry.direction_ras)
    np.testing.assert_array_equal(by_itk.apply(labels), sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(
        geometry.reoriented(by_itk).position_mm((0, 0, 0)), RAS_FROM_LPS @ expected.GetOrigin(), atol=1e-9
    )

    orientation = io_orientation(geometry.affine_ras)
    by_nibabel = reorientation_from_nibabel(orientation)
    np.testing.assert_array_equal(by_nibabel.apply(labels), apply_orientation(labels.T, orientation).T)
    assert nibabel.aff2axcodes(geometry.reoriented(by_nibabel).affine_ras) == ("R", "A", "S")


@pytest.mark.parametrize("turn", [(0, 45, 0), (45, 45, 0), (90, 45, 45), (45, 0, 135)], ids=str)
def test_ties_between_axes_are_broken_as_itk_breaks_them(turn):
    direction = Rotation.from_euler("xyz", turn, degrees=True).as_matrix().round(12)
    labels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    image = sitk.GetImageFromArray(labels)
    image.SetDirection(direction.ravel().tolist())
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "RAS"))
    np.testing.assert_array_equal(closest_ras_by_itk(RAS_FROM_LPS @ direction).apply(labels), expected)


def test_distance_of_grids_is_that_of_the_corner_furthest_away():
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    geometry = Geometry(SHAPE, affine)
    shifted = affine.copy()
    shifted[:3, 3] = (0, 3, 4)
    assert geometry.distance_mm(Geometry(SHAPE, shifted)) == 5
    stretched = np.diag([1.5, 2.0, 3.0, 1.0])
    assert geometry.distance_mm(Geometry(SHAPE, stretched)) == 0.5 * (SHAPE[2] - 1)
    with pytest.raises(ValueError, match="different shapes"):
        geometry.distance_mm(Geometry((3, 4, 6), affine))


def test_shear_is_seen():
    sheared = oblique_affine()
    sheared[:3, 1] += 0.01 * sheared[:3, 0]
    assert Geometry(SHAPE, sheared).is_sheared


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((0, 4, 5), np.eye(4), "three positive numbers"),
        ((4, 5), np.eye(4), "three positive numbers"),
        (SHAPE, np.eye(3), "4 x 4"),
        (SHAPE, np.diag([1, np.nan, 1, 1]), "finite"),
        (SHAPE, np.diag([1, 1, 1, 2]), "ends in 0, 0, 0, 1"),
        (SHAPE, np.diag([1, 0, 1, 1]), "inverted"),
        (SHAPE, np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "inverted"),
    ],
    ids=["no voxels", "2-D", "3 x 3", "NaN", "perspective", "no length", "two axes alike"],
)
def test_impossible_grid_is_refused(shape, affine, message):
    with pytest.raises(ValueError, match=message):
        Geometry(shape, affine)


def test_affine_cannot_be_changed_from_outside():
    affine = oblique_affine()
    geometry = Geometry(SHAPE, affine)
    affine[:] = 0
    assert geometry.position_mm((0, 0, 0)) == (-120.0, 35.5, 801.25)
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine_ras[0, 0] = 1


def test_reorientation_wants_a_permutation():
    with pytest.raises(ValueError, match="permutation"):
        Reorientation((0, 1, 1))
