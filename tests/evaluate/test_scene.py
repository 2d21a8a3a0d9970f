"""What a viewer is given: small, in the right place, and with every label."""

import base64
import gzip

import nibabel as nib
import numpy as np
import pytest

from ctseg.evaluate.pages import scene
from ctseg.evaluate.pages.scene import outline_of, renumbered, scene_of_labels, scene_of_scan, values_in
from ctseg.files.geometry import Geometry
from tests.support.run_pages import OBLIQUE, phantom

LABELS = (1, 2, 3)


def opened(volume: scene.SceneVolume) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volume.base64())))


def centre_mm(labels_xyz: np.ndarray, affine: np.ndarray, value: int) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(labels_xyz == value).mean(axis=0) + affine[:3, 3]


@pytest.mark.parametrize("most", [(200, 256, 256), (16, 22, 20), (15, 15, 30)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_a_landmark_stays_where_it_is_in_the_patient_however_small_the_scan_becomes(most, axes, monkeypatch):
    monkeypatch.setattr(scene, "MOST_VOXELS", most)
    hu, labels = phantom()
    to_file = np.eye(4)[:, [*(2 - axes[2 - axis] for axis in range(3)), 3]]
    hu, labels, affine = hu.transpose(axes), labels.transpose(axes), OBLIQUE @ to_file
    there = Geometry(labels.shape, affine)
    image, scan = opened(scene_of_labels(labels, there)), opened(scene_of_scan(hu, there))
    small, brightness = np.asarray(image.dataobj), np.asarray(scan.dataobj)
    np.testing.assert_allclose(image.affine, scan.affine)
    assert small.shape == brightness.shape
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    voxel_mm = np.abs(image.affine[:3, :3]).max()
    for value in LABELS:
        place = centre_mm(small, image.affine, value)
        assert np.abs(place - centre_mm(labels.T, affine, value)).max() < 0.5 * voxel_mm
        inside = np.linalg.inv(image.affine) @ (*place, 1)
        at = tuple(inside[:3].round().astype(int))
        assert abs(brightness[at] - (40 + 60 * value)) < (8 if most[0] == 200 else 130)


def test_means_of_blocks_lie_at_the_middle_of_their_voxels(monkeypatch):
    monkeypatch.setattr(scene, "MOST_VOXELS", (2, 2, 3))
    ramp = np.broadcast_to(10.0 * np.arange(6), (2, 4, 6))
    small = scene_of_scan(ramp, Geometry(ramp.shape, np.eye(4)))
    assert small.geometry.affine_ras[:3, 3].tolist() == [0.5, 0.5, 0]
    assert small.geometry.spacing_mm == (1, 2, 2)
    expected = 10.0 * np.array([0.5, 2.5, 4.5])
    np.testing.assert_allclose(small.voxels[0, 0] * small.slope + small.intercept, expected, atol=4)


def test_every_label_survives_even_two_that_share_a_block(monkeypatch):
    monkeypatch.setattr(scene, "MOST_VOXELS", (4, 4, 4))
    labels = np.zeros((16, 16, 16), dtype=np.uint16)
    labels[:8] = 7
    labels[5, 5, 5], labels[5, 5, 6], labels[15, 0, 15], labels[4, 5, 5] = 300, 301, 302, 303
    small = scene_of_labels(labels, Geometry(labels.shape, np.eye(4)))
    assert values_in(small.voxels) == [7, 300, 301, 302, 303]
    assert small.voxels[3, 0, 3] == 302
    place = np.argwhere(np.isin(small.voxels, (300, 301, 303)))
    assert np.abs(place - 1).max() <= 1, "in their own block, or beside it"


def test_most_of_a_block_is_what_it_becomes(monkeypatch):
    monkeypatch.setattr(scene, "MOST_VOXELS", (1, 1, 2))
    labels = np.array([[[1, 1, 2, 0], [2, 1, 0, 2]]], dtype=np.uint8)
    assert scene_of_labels(labels, Geometry(labels.shape, np.eye(4))).voxels.tolist() == [[[1, 2]]]


@pytest.mark.full
def test_a_large_scan_is_bounded():
    scan = np.broadcast_to(np.int16(40), (700, 512, 600))
    small = scene_of_scan(scan, Geometry(scan.shape, np.eye(4)))
    assert small.voxels.shape == (175, 256, 200)
    assert small.voxels.dtype == np.uint8


def test_what_a_ct_has_beyond_8_bits_is_clipped_and_told_by_the_file():
    scan = np.array([[[-3000, -1024, 0, 40, 1016, 3000]]])
    image = opened(scene_of_scan(scan, Geometry(scan.shape, np.diag([-1.0, 1, 1, 1]))))
    assert np.asarray(image.dataobj)[::-1, 0, 0].tolist() == [-1024, -1024, 0, 40, 1016, 1016]


def test_an_outline_is_what_lies_beside_another_value():
    labels = np.zeros((5, 5, 5), dtype=np.uint8)
    labels[1:4, 1:4, 1:4] = 2
    outline = outline_of(scene.SceneVolume(labels, Geometry(labels.shape, np.eye(4)))).voxels
    assert np.count_nonzero(outline) == 26
    assert outline[2, 2, 2] == 0


def test_where_slices_are_far_apart_an_outline_is_drawn_within_them():
    """Else a label that is smaller on the next slice would have a broad band for a line."""
    labels = np.zeros((3, 7, 7), dtype=np.uint8)
    labels[0, 1:6, 1:6] = labels[1, 1:6, 1:6] = 1
    labels[2, 2:5, 2:5] = 1
    spaced = Geometry(labels.shape, np.diag([0.8, 0.8, 5.0, 1.0]))
    lines = outline_of(scene.SceneVolume(labels, spaced)).voxels
    assert [np.count_nonzero(plane) for plane in lines] == [16, 16, 8]
    assert lines[0, 3, 3] == lines[1, 2, 2] == 0
    assert lines[1, 1, 3] == lines[1, 3, 5] == 1


def test_a_dark_line_lies_beside_an_outline_where_there_is_no_label():
    labels = np.zeros((3, 7, 7), dtype=np.uint8)
    labels[:, 2:5, 2:4] = 1
    labels[:, 2:5, 4:6] = 2
    spaced = Geometry(labels.shape, np.diag([0.8, 0.8, 5.0, 1.0]))
    lines = outline_of(scene.SceneVolume(labels, spaced), beside=3).voxels
    assert lines[1].tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 3, 3, 3, 3, 0],
        [0, 3, 1, 1, 2, 2, 3],
        [0, 3, 1, 1, 2, 2, 3],
        [0, 3, 1, 1, 2, 2, 3],
        [0, 0, 3, 3, 3, 3, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert (lines[0] == lines[1]).all()
    assert renumbered(scene.SceneVolume(labels, spaced), list(range(1, 255))).voxels.dtype == np.uint8
    assert renumbered(scene.SceneVolume(labels, spaced), list(range(1, 256))).voxels.dtype == np.uint16, "room for it"


def test_values_become_places_in_a_list_in_the_smallest_type():
    labels = np.array([[[0, 9, 300]]], dtype=np.uint16)
    volume = scene.SceneVolume(labels, Geometry(labels.shape, np.eye(4)))
    few = renumbered(volume, [9, 300])
    assert few.voxels.tolist() == [[[0, 1, 2]]]
    assert few.voxels.dtype == np.uint8
    assert renumbered(volume, list(range(1, 301))).voxels.dtype == np.uint16


def test_a_label_that_covers_half_of_a_block_is_shown():
    labels = np.zeros((1, 1, 512), dtype=np.uint8)
    labels[..., 1::2] = 3
    assert (scene_of_labels(labels, Geometry(labels.shape, np.eye(4))).voxels == 3).all()
