"""NRRD and MetaImage through SimpleITK."""

import sys

import numpy as np
import pytest
import SimpleITK as sitk

from ctseg.errors import SetupError
from ctseg.files.volume import read_volume, volume_from_array, write_label_map
from tests.support.scan_files import (
    ITK_READERS,
    OBLIQUE,
    READERS,
    TURNED_FAR,
    check_equals_nnunet,
    landmarks,
    phantom,
    refusal,
    write_raw_nifti,
)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nhdr"])
def test_nrrd_and_metaimage_lie_where_their_nifti_twin_does(ending, tmp_path):
    nifti = write_raw_nifti(tmp_path / "a.nii.gz", phantom(), TURNED_FAR, TURNED_FAR)
    twin = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(twin), True)
    for reader in READERS:
        if reader in ITK_READERS:
            check_equals_nnunet([twin], reader)
        volume, expected = read_volume([twin], reader), read_volume([nifti], reader)
        np.testing.assert_array_equal(volume.voxels, expected.voxels)
        np.testing.assert_allclose(volume.geometry.affine_ras, expected.geometry.affine_ras, atol=1e-4)
        np.testing.assert_allclose(volume.spacing_mm, expected.spacing_mm, rtol=1e-6)


def test_nrrd_that_promises_too_much_is_refused(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 30000\nencoding: gzip\nendian: little\n\nxx"
    )
    assert "cut off" in refusal(tmp_path / "a.nrrd")


def test_nrrd_without_simpleitk_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n")
    assert "a.nrrd: a .nrrd file needs SimpleITK" in refusal(tmp_path / "a.nrrd", error=SetupError)
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    with pytest.raises(SetupError, match=r"needs SimpleITK.* extra 'itk'"):
        write_label_map(tmp_path / "b.nrrd", landmarks((3, 4, 5)), volume)


def test_half_a_gipl_file_is_refused_though_itk_reads_it(tmp_path):
    path = tmp_path / "a.gipl"
    sitk.WriteImage(sitk.GetImageFromArray(phantom().T), str(path))
    check_equals_nnunet([path], "SimpleITKIO")
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut off" in refusal(path)
