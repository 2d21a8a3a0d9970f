"""NRRD and MetaImage through SimpleITK."""

import os
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from ctseg.errors import InputError, SetupError
from ctseg.files.formats import with_companions
from ctseg.files.itk import data_files_of
from ctseg.files.volume import read_volume, read_volume_header, volume_from_array, write_label_map
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


def _headers_of_slices(folder):
    """Write a volume as one file a slice, and headers that name them in every way there is; return all of them."""
    voxels = np.arange(24, dtype="<i2").reshape(3, 2, 4)
    names = [f"s{z:02d}.raw" for z in (2, 4, 6)]
    for name, plane in zip(names, voxels, strict=True):
        (folder / name).write_bytes(plane.tobytes())
    listed = "\n".join(names)
    meta = "NDims = 3\nDimSize = 4 2 3\nElementType = MET_SHORT\nElementByteOrderMSB = False\nElementDataFile = "
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 2 3\nencoding: raw\nendian: little\ndata file: "
    headers = {
        "list.mhd": f"{meta}LIST\n{listed}\n",
        "numbered.mhd": f"{meta}s%02d.raw 2 6 2\n",
        "list.nhdr": f"{nrrd}LIST\n{listed}\n",
        "numbered.nhdr": f"{nrrd}s%02d.raw 2 6 2\n",
    }
    for name, text in headers.items():
        (folder / name).write_text(text)
    return [folder / name for name in headers], [folder / name for name in names], voxels


@pytest.mark.parametrize(
    "named", ["LIST\ns02.raw\ns04.raw\n", "LIST\n", "LIST 3\ns02.raw\n", "s%02d.raw 2 4 2\n", "s%02d.raw 2 6 4\n"]
)
def test_a_list_that_names_too_few_slices_is_refused_though_itk_reads_it(named, tmp_path):
    _headers_of_slices(tmp_path)
    path = tmp_path / "list.mhd"
    path.write_text(path.read_text().partition("LIST")[0] + named)
    sitk.ReadImage(str(path))
    assert "expected a file for each of 3 slices, found the names of " in refusal(path)
    with pytest.raises(InputError, match="3 slices"):
        read_volume_header([path], "SimpleITKIO")


def test_a_data_file_that_was_cut_off_is_told_as_missing_voxels(tmp_path):
    headers, slices, _ = _headers_of_slices(tmp_path)
    slices[1].write_bytes(b"short")
    assert "found one that ITK cannot read (voxels are missing): copy it again" in refusal(headers[0])


def test_files_that_hold_the_voxels_of_a_header_are_found_however_it_names_them(tmp_path):
    headers, slices, voxels = _headers_of_slices(tmp_path)
    for header in headers:
        assert data_files_of(header) == tuple(slices)
        np.testing.assert_array_equal(read_volume([header], "SimpleITKIO").voxels[0], voxels)  # ITK agrees
        assert with_companions([header]) == (header, *slices)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".mha", ".nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_names_what_simpleitk_wrote_beside_it(tmp_path, ending, compressed):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(phantom().T), str(path), compressed)
    beside = tuple(file for file in tmp_path.iterdir() if file != path)
    assert len(beside) == (ending in (".mhd", ".nhdr"))
    assert data_files_of(path) == beside


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\0" * 5000, b"ElementDataFile = gone.raw\n", b"ElementDataFile = a\0b\n",
        b"ElementDataFile = " + b"x" * 9000,
        b"ElementDataFile = .\n", b"data file: x%d.raw 0 999999999 1\n", b"data file: x%d.raw 0 9 0\n",
        b"NRRD0004\ntype: short\n\ndata file: there.raw\n", b"ElementDataFile = LIST\n\n",
    ],
)  # fmt: skip
def test_a_header_that_names_nothing_has_no_companions(tmp_path, text):
    (tmp_path / "there.raw").touch()
    (tmp_path / "a.mhd").write_bytes(text)
    assert data_files_of(tmp_path / "a.mhd") == ()


@pytest.mark.parametrize("ending", [".MHA", ".MHD", ".Mhd", ".NRRD", ".NHDR", ".GIPL"])
def test_endings_in_capitals_are_read(ending, tmp_path):
    path = tmp_path / f"a{ending.lower()}"
    sitk.WriteImage(sitk.GetImageFromArray(phantom().T), str(path), True)
    expected = {reader: read_volume([path], reader) for reader in READERS}
    path = path.rename(tmp_path / f"A{ending}")
    for reader, small in expected.items():
        volume = read_volume([path], reader)
        np.testing.assert_array_equal(volume.voxels, small.voxels)
        np.testing.assert_array_equal(volume.geometry.affine_ras, small.geometry.affine_ras)
        assert read_volume_header([path], reader).geometry.shape == small.geometry.shape


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_missing_voxels_beside_a_header_are_told_by_their_name(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(phantom().T), str(path))
    beside = next(file for file in tmp_path.iterdir() if file != path)
    beside.unlink()
    text = refusal(path)
    assert f"expected its voxels in {beside.name}, which cannot be read (No such file or directory)" in text
    assert "copy both files into one folder" in text


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_voxels_in_a_pipe_beside_a_header_are_not_waited_for(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(phantom().T), str(path))
    beside = next(file for file in tmp_path.iterdir() if file != path)
    beside.unlink()
    os.mkfifo(beside)
    assert "is a named pipe, not a file" in refusal(path)


@pytest.mark.parametrize("count", ["-3", "0", "93", "99999999999", "x"])
def test_a_number_of_dimensions_that_metaio_does_not_survive_is_refused(count, tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(phantom().T), str(path))
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", f"NDims = {count}".encode()))
    assert f"found NDims {count}" in refusal(path)


def test_no_change_of_a_header_ends_in_anything_but_a_volume_or_a_named_error(tmp_path):
    rng = np.random.default_rng(5)
    write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, TURNED_FAR)
    for ending in (".mha", ".nrrd", ".gipl", ".mhd", ".nhdr"):
        sitk.WriteImage(sitk.GetImageFromArray(phantom().T), str(tmp_path / f"a{ending}"), ending != ".gipl")
    endings = [".nii", ".mha", ".nrrd", ".gipl", ".mhd", ".nhdr"]
    whole = {ending: (tmp_path / f"a{ending}").read_bytes() for ending in endings}
    read, told = 0, set()
    for turn in range(600):
        ending = endings[turn % len(endings)]
        data = bytearray(whole[ending])
        for place in rng.integers(0, min(348, len(data)), rng.choice((1, 3, 9))):
            data[place] = rng.choice((0, 255, 10, 32, 45, 48, 57, rng.integers(256)))
        path = tmp_path / f"changed{ending}"
        path.write_bytes(data)
        try:
            with_companions([path])
            read_volume_header([path], READERS[turn % 4])
            read_volume([path], READERS[turn % 4])
            read += 1
        except InputError as error:
            told.add(path.name in str(error))
    assert told == {True}
    assert 50 < read < 550
