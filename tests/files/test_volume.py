"""Volumes: channels put together, arrays taken as files are, labels written; and what is refused."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from ctseg.errors import InputError, OutputError
from ctseg.files.formats import WRITE_ENDINGS
from ctseg.files.geometry import Geometry
from ctseg.files.grid import FileGrid
from ctseg.files.volume import Volume, read_label_map, read_volume, volume_from_array, write_label_map
from tests.support.scan_files import (
    OBLIQUE,
    PERMUTED,
    READERS,
    SHAPE_XYZ,
    TURNED_FAR,
    check_equals_nnunet,
    disk_full_at,
    landmarks,
    nobody,
    phantom,
    refusal,
    write_raw_nifti,
)


@pytest.mark.parametrize("reader", READERS)
def test_two_channels_are_read_as_nnunets_reader_does(reader, tmp_path):
    files = [
        write_raw_nifti(tmp_path / f"a_{channel:04d}.nii.gz", phantom(dtype) + channel, TURNED_FAR, TURNED_FAR)
        for channel, dtype in enumerate((np.int16, np.float32))
    ]
    check_equals_nnunet(files, reader)
    check_equals_nnunet([files[0], files[0]], reader)
    assert read_volume([files[0], files[0]], reader).voxels.dtype == np.int16


@pytest.mark.parametrize(
    ("largest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)]
)
@pytest.mark.parametrize("ending", WRITE_ENDINGS)
def test_labels_are_written_in_the_smallest_type_that_holds_them(largest, dtype, ending, tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    labels = landmarks((3, 4, 5)) * 0 + largest
    write_label_map(tmp_path / f"a{ending}", labels, volume)
    back = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"a{ending}")))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("reader", READERS)
def test_arrays_are_treated_as_files_are(reader, tmp_path):
    nifti = write_raw_nifti(tmp_path / "a.nii.gz", phantom(np.float32), TURNED_FAR, TURNED_FAR)
    expected = read_volume([nifti], reader)
    for geometry in (TURNED_FAR, Geometry(SHAPE_XYZ[::-1], TURNED_FAR)):
        volume = volume_from_array(phantom(np.float64).T, geometry, reader)
        np.testing.assert_array_equal(volume.voxels, expected.voxels)
        np.testing.assert_allclose(volume.geometry.affine_ras, expected.geometry.affine_ras, atol=1e-3)
        np.testing.assert_allclose(volume.spacing_mm, expected.spacing_mm, rtol=1e-6)
    labels = landmarks(volume.geometry.shape)
    write_label_map(tmp_path / "labels.nii.gz", labels, volume)
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj).T, volume.on_file_axes(labels)
    )
    np.testing.assert_allclose(nibabel.load(tmp_path / "labels.nii.gz").affine, TURNED_FAR, atol=1e-3)


def test_array_that_needs_no_change_is_not_copied():
    voxels = np.zeros((3, 4, 5), np.int16)
    assert np.shares_memory(volume_from_array(voxels, OBLIQUE).voxels, voxels)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_counted_and_refused(dtype, reader, tmp_path):
    voxels = phantom(dtype)
    voxels[0, 0, 0], voxels[1, 1, 1], voxels[2, 2, 2] = np.nan, np.inf, -np.inf
    message = refusal(write_raw_nifti(tmp_path / "a.nii.gz", voxels, OBLIQUE), reader)
    assert "1 NaN and 2 infinite in 60" in message
    voxels[:] = np.nan
    assert "60 NaN" in refusal(write_raw_nifti(tmp_path / "b.nii.gz", voxels, OBLIQUE), reader)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxel_that_is_not_finite_is_refused_on_every_way_into_a_volume(value, tmp_path):
    voxels = np.zeros((2, 3, 4, 5), np.float32)
    voxels[1, 2, 3, 4] = value
    geometry = Geometry((3, 4, 5), OBLIQUE)
    with pytest.raises(InputError, match=r"channel 1: expected a finite number .* in slice 2: replace"):
        Volume(voxels, geometry.spacing_mm, geometry, FileGrid(geometry, geometry.spacing_mm))
    with pytest.raises(InputError, match=r"array: channel 1: expected a finite number .* in slice 2: replace"):
        volume_from_array(voxels, geometry)
    files = [write_raw_nifti(tmp_path / f"a_{i:04d}.nii", channel.T, OBLIQUE) for i, channel in enumerate(voxels)]
    assert "in slice 2" in refusal(files)  # which names the second file


def test_float64_beyond_float32_counts_as_infinite(tmp_path):
    voxels = phantom(np.float64)
    voxels[0, 0, 0] = 1e300
    assert "1 infinite" in refusal(write_raw_nifti(tmp_path / "a.nii.gz", voxels, OBLIQUE))


def test_channels_on_different_grids_are_refused_in_millimetres(tmp_path):
    first = write_raw_nifti(tmp_path / "a_0000.nii.gz", phantom(), OBLIQUE, OBLIQUE)
    shifted = OBLIQUE.copy()
    shifted[2, 3] += 3
    cases = {
        "3 mm away": write_raw_nifti(tmp_path / "b_0001.nii.gz", phantom(), shifted, shifted),
        "instead of (3, 4, 5)": write_raw_nifti(tmp_path / "c_0001.nii.gz", phantom()[1:], OBLIQUE, OBLIQUE),
        "a_0000.nii.gz": write_raw_nifti(tmp_path / "d_0001.nii.gz", phantom(), PERMUTED, PERMUTED),
    }
    for found, second in cases.items():
        message = refusal([first, second])
        assert found in message
        assert "resample" in message
    wider = write_raw_nifti(
        tmp_path / "e_0001.nii.gz", phantom(), OBLIQUE, OBLIQUE, pixdim=[1, 0.7, 1.1, 2.6, 0, 0, 0, 0]
    )
    assert "voxel size" in refusal([first, wider], "NibabelIO")


def test_rounding_between_headers_is_no_difference(tmp_path):
    nudged = OBLIQUE.copy()
    nudged[:3, 3] += 0.01
    files = [
        write_raw_nifti(tmp_path / f"a_{i:04d}.nii.gz", phantom(), affine, affine)
        for i, affine in enumerate((OBLIQUE, nudged))
    ]
    assert read_volume(files, "SimpleITKIO").voxels.shape == (2, 3, 4, 5)


def test_caller_who_gives_nonsense_is_told(tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    for labels in (np.zeros((5, 4, 3), np.uint8), np.zeros((3, 4, 5)), np.full((3, 4, 5), -1)):
        with pytest.raises(ValueError, match="expected"):
            write_label_map(tmp_path / "a.nii.gz", labels, volume)
    with pytest.raises(ValueError, match="readers"):
        read_volume([tmp_path / "a.nii.gz"], "PillowIO")
    with pytest.raises(ValueError, match="channel"):
        read_volume([], "NibabelIO")
    with pytest.raises(ValueError, match="real voxels"):
        volume_from_array(np.zeros((4, 5)), OBLIQUE)
    geometry = Geometry((3, 4, 5), OBLIQUE)
    for voxels in (np.zeros((1, 3, 4, 5)), np.zeros((1, 3, 4, 5), np.int64), np.zeros((1, 5, 4, 3), np.int16)):
        with pytest.raises(ValueError, match="expected"):
            Volume(voxels, geometry.spacing_mm, geometry, FileGrid(geometry, geometry.spacing_mm))
    with pytest.raises(InputError, match="1 NaN"):
        volume_from_array(np.array([[[1, np.nan]]]), OBLIQUE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", WRITE_ENDINGS)
def test_full_disk_leaves_the_old_file_and_nothing_else(ending, tmp_path):
    volume = volume_from_array(np.zeros((40, 40, 40), np.int16), OBLIQUE)
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).integers(0, 250, (40, 40, 40))
    write_label_map(path, noise, volume)
    full = path.stat().st_size
    path.write_bytes(b"old")
    for size in (20_000, full - 1):
        with disk_full_at(size), pytest.raises(OutputError, match=f"a{ending}: cannot be written"):
            write_label_map(path, noise, volume)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize("ending", WRITE_ENDINGS)
def test_who_reads_the_old_file_meanwhile_reads_it_whole(ending, tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"old")
    with path.open("rb") as old:
        write_label_map(path, landmarks((3, 4, 5)), volume)
        assert old.read() == b"old"


@pytest.mark.parametrize("ending", WRITE_ENDINGS)
def test_folder_that_cannot_be_written_is_told(ending, tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    with pytest.raises(OutputError, match="cannot be written"):
        write_label_map(tmp_path / "missing" / f"a{ending}", landmarks((3, 4, 5)), volume)
    with nobody(tmp_path, 0o555), pytest.raises(OutputError, match="cannot be written"):
        write_label_map(tmp_path / f"a{ending}", landmarks((3, 4, 5)), volume)
    assert not list(tmp_path.iterdir())


def test_written_file_has_the_rights_of_any_new_file(tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    write_label_map(tmp_path / "a.nii.gz", landmarks((3, 4, 5)), volume)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.nii.gz").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("reader", READERS)
def test_a_label_map_is_read_onto_the_axes_of_its_scan(reader, tmp_path):
    scan = read_volume([write_raw_nifti(tmp_path / "scan.nii.gz", phantom(np.int16), TURNED_FAR, TURNED_FAR)], reader)
    labels = (7 * np.arange(scan.voxels[0].size)).reshape(scan.voxels[0].shape).astype(np.uint16)
    for ending in (".nii.gz", ".mha"):
        path = tmp_path / f"labels{ending}"
        write_label_map(path, labels, scan)
        found = read_label_map(path, reader, scan)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, labels)
    as_floats = write_raw_nifti(
        tmp_path / "floats.nii.gz", scan.on_file_axes(labels % 7).T.astype(np.float32), TURNED_FAR, TURNED_FAR
    )
    found = read_label_map(as_floats, reader, scan)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels % 7)


def test_what_is_no_label_map_of_the_scan_is_refused(tmp_path):
    voxels = np.zeros(SHAPE_XYZ, np.int16)
    scan = read_volume([write_raw_nifti(tmp_path / "scan.nii.gz", voxels, OBLIQUE)], "SimpleITKIO")
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 1.0
    for name, wrong, affine, told in (
        ("shape", np.zeros((*SHAPE_XYZ[:2], SHAPE_XYZ[2] + 1), np.int16), OBLIQUE, "voxels (z, y, x) instead of"),
        ("place", voxels, shifted, "voxels up to 1 mm away from its own"),
        ("negative", voxels - 1, OBLIQUE, "whole numbers from 0 to 65535, found values from -1 to -1"),
        ("half", voxels + np.float32(0.5), OBLIQUE, "found values from 0.5 to 0.5: is this a label map?"),
    ):
        path = write_raw_nifti(tmp_path / f"{name}.nii.gz", wrong, affine)
        with pytest.raises(InputError) as caught:
            read_label_map(path, "SimpleITKIO", scan)
        assert str(caught.value).startswith(f"{name}.nii.gz: expected ")
        assert told in str(caught.value)
