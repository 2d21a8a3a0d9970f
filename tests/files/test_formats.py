"""What holds for every format: real files, labels on the scan, and files that are refused by name."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from ctseg.errors import InputError, OutputError
from ctseg.files.formats import FORMATS, READ_ENDINGS, WRITE_ENDINGS, ChannelFiles, Format, format_of, stem_of
from ctseg.files.geometry import Geometry
from ctseg.files.grid import ChannelHeader, ChannelVolume, FileGrid
from ctseg.files.volume import read_volume, read_volume_header, volume_from_array, write_label_map
from tests.support.scan_files import (
    ELSEWHERE,
    FLIPPED,
    ITK_READERS,
    OBLIQUE,
    PERMUTED,
    READERS,
    TURNED_FAR,
    check_equals_nnunet,
    check_header_says,
    landmarks,
    nobody,
    phantom,
    places,
    refusal,
    write_raw_nifti,
)

REAL_FILES = [
    "sts_sarcoma/test/STS_042_ct.nii.gz",
    "totalseg/ts_abdomen_3mm_ct.nii.gz",
    "spine_small/tptbox_spine_ct.nii.gz",
    "odd/niivue_sheared_affine_phantom.nii.gz",
    "chest_small/cip_ct64_ct.nrrd",
    "odd/cip_ct64_oblique20_ct.nrrd",
    "odd/dcmqi_3slice/liver_spine_seg.nrrd",
    "chest_small/elastix_rightlung_ct.mha",
]


@pytest.mark.parametrize("reader", READERS)
def test_real_ct_is_read_as_nnunets_reader_does(reader, shared_data):
    for name in REAL_FILES:
        if name.endswith(".nii.gz") or reader in ITK_READERS:
            check_equals_nnunet([shared_data / name], reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("ending", READ_ENDINGS)
def test_committed_ct_is_read_as_nnunets_reader_does(ending, reader, ct_piece, tmp_path):
    if ending.startswith(".nii"):
        nibabel.save(nibabel.load(ct_piece), tmp_path / f"ct{ending}")
    else:
        sitk.WriteImage(sitk.ReadImage(str(ct_piece)), str(tmp_path / f"ct{ending}"))
    if ending.startswith(".nii") or reader in ITK_READERS:
        check_equals_nnunet([tmp_path / f"ct{ending}"], reader)
    volume = read_volume([tmp_path / f"ct{ending}"], reader)
    check_header_says(volume, [tmp_path / f"ct{ending}"], reader)
    voxels = np.sort(volume.voxels, axis=None)
    np.testing.assert_array_equal(voxels, np.sort(nibabel.load(ct_piece).dataobj, axis=None))


def test_each_ending_belongs_to_one_format():
    assert len(set(READ_ENDINGS)) == len(READ_ENDINGS)
    assert set(WRITE_ENDINGS) < set(READ_ENDINGS)
    assert [format_of(Path(f"a.b{ending.upper()}")).endings for ending in READ_ENDINGS] == [
        entry.endings for entry in FORMATS for _ in entry.endings
    ]
    for name in ("a.png", "nii.gz", "a.gz", "a"):
        assert format_of(Path(name)) is None
        assert stem_of(Path(name)) == name
    assert stem_of(Path("a.b.NII.gz")) == "a.b"


@pytest.mark.parametrize("ending", READ_ENDINGS)
def test_format_of_one_file_refuses_more_files_for_a_channel(ending, tmp_path):
    files = ChannelFiles((tmp_path / f"a{ending}", tmp_path / f"b{ending}"))
    with pytest.raises(InputError, match=rf"a{ending}: expected one file for a channel, found 2 \(a.*b"):
        read_volume([files], "SimpleITKIO")
    with pytest.raises(ValueError, match="at least one file"):
        ChannelFiles(())


def test_format_of_many_files_reads_a_channel_from_all_of_them(tmp_path):
    """As DICOM will: a format is no more than its entry."""

    def read(files, reader):
        voxels = np.stack([np.full((4, 5), int(path.read_text()), np.int16) for path in files.paths])
        geometry = Geometry(voxels.shape, OBLIQUE)
        return ChannelVolume(voxels, geometry.spacing_mm, FileGrid(geometry, geometry.spacing_mm))

    def read_header(files, reader):
        geometry = Geometry((len(files.paths), 4, 5), OBLIQUE)
        return ChannelHeader(np.dtype(np.int16), geometry.spacing_mm, FileGrid(geometry, geometry.spacing_mm), 40)

    slices = Format("slices", (".slice",), read, read_header)
    paths = tuple(tmp_path / f"{z}.slice" for z in range(3))
    for z, path in enumerate(paths):
        path.write_text(str(z * 7))
    channel = slices.read(ChannelFiles(paths), "SimpleITKIO")
    assert channel.voxels[:, 0, 0].tolist() == [0, 7, 14]
    assert channel.stored_dtype == np.int16
    np.testing.assert_array_equal(
        slices.read_header(ChannelFiles(paths), "SimpleITKIO").geometry.affine_ras, channel.geometry.affine_ras
    )


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("ending", READ_ENDINGS[2:])
@pytest.mark.parametrize(
    "affine", [OBLIQUE, FLIPPED, PERMUTED, TURNED_FAR], ids=["oblique", "flipped", "permuted", "far"]
)
def test_header_of_a_turned_scan_says_what_reading_gives(affine, ending, reader, tmp_path):
    for dtype in (np.int16, np.float64, np.uint8):
        nifti = write_raw_nifti(tmp_path / "a.nii.gz", phantom(dtype), affine, affine)
        path = tmp_path / f"a{ending}"
        sitk.WriteImage(sitk.ReadImage(str(nifti)), str(path))
        check_header_says(read_volume([path], reader), [path], reader)


@pytest.mark.parametrize("reader", READERS)
def test_header_with_spacing_below_zero_says_what_reading_gives(reader, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(phantom().T.copy()), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text().replace("ElementSpacing = 1 1 1", "ElementSpacing = -0.7 1.1 -2.5")
    (tmp_path / "a.mhd").write_text(text)
    volume = read_volume([tmp_path / "a.mhd"], reader)
    assert volume.grid.spacing_mm == (2.5, 1.1, 0.7)
    check_header_says(volume, [tmp_path / "a.mhd"], reader)


@pytest.mark.parametrize("reader", READERS)
def test_header_of_several_channels_says_what_reading_gives(reader, tmp_path):
    paths = [
        write_raw_nifti(tmp_path / "a_0000.nii", phantom(), TURNED_FAR, TURNED_FAR),
        write_raw_nifti(tmp_path / "a_0001.nii.gz", phantom(np.float64), TURNED_FAR, TURNED_FAR, scl_slope=3),
    ]
    for files in (paths, paths[:1] * 3):
        check_header_says(read_volume(files, reader), files, reader)
    elsewhere = write_raw_nifti(tmp_path / "b.nii", phantom(), ELSEWHERE, ELSEWHERE)
    with pytest.raises(InputError, match=r"b\.nii: expected the grid of a_0000\.nii"):
        read_volume_header([paths[0], elsewhere], reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("ending", READ_ENDINGS)
def test_header_is_read_without_the_voxels(ending, reader, ct_piece, tmp_path):
    """Where the voxels are lost, the header still says what they would be."""
    path = tmp_path / f"ct{ending}"
    if ending.startswith(".nii"):
        nibabel.save(nibabel.load(ct_piece), path)
    else:
        sitk.WriteImage(sitk.ReadImage(str(ct_piece)), str(path))
    whole = read_volume([path], reader)
    damaged = next((file for file in tmp_path.iterdir() if file != path), path)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    damaged.write_bytes(content)
    check_header_says(whole, [path], reader)


def test_odd_files_give_a_right_answer_or_a_clear_refusal(shared_data):
    answers, refusals = set(), {}
    for file in sorted(path for path in (shared_data / "odd").rglob("*") if path.is_file()):
        try:
            read_volume([file], "SimpleITKIO")
        except InputError as error:
            refusals[file.name] = str(error)
        else:
            check_equals_nnunet([file], "SimpleITKIO")
            answers.add(file.name)
    assert answers == {
        "cip_ct64_oblique20_ct.nrrd",
        "cip_ct64_oblique20_regions_types.nrrd",
        "heart_seg.nrrd",
        "liver_spine_seg.nrrd",
        "niivue_sheared_affine_phantom.nii.gz",
    }
    assert all(message.startswith(f"{name}: expected ") for name, message in refusals.items())
    assert "data type RGB" in refusals.pop("niivue_rgb24_ct_perfusion_map.nii.gz")
    assert all(name.endswith((".dcm", ".tar.xz")) for name in refusals)


@pytest.mark.parametrize("reader", READERS[1::2])
@pytest.mark.parametrize("ending_in", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("ending", WRITE_ENDINGS)
def test_labels_lie_on_the_scan_whatever_the_formats(ending_in, ending, reader, tmp_path):
    scan = tmp_path / f"scan{ending_in}"
    nifti = write_raw_nifti(tmp_path / "a.nii.gz", phantom(), TURNED_FAR, TURNED_FAR)
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(scan))
    volume = read_volume([scan], reader)
    labels = landmarks(volume.geometry.shape)
    path = tmp_path / f"labels{ending}"
    write_label_map(path, labels, volume)
    written, source = sitk.ReadImage(str(path)), sitk.ReadImage(str(scan))
    assert written.GetSize() == source.GetSize()
    for label, place in places(written).items():
        index = np.argwhere(labels == label)[0]
        right, anterior, superior = volume.geometry.position_mm(index)
        np.testing.assert_allclose(place, (-right, -anterior, superior), atol=1e-3)
    np.testing.assert_allclose(written.GetOrigin(), source.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(written.GetDirection(), source.GetDirection(), atol=1e-6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_empty_file_is_refused(name, tmp_path):
    (tmp_path / name).touch()
    assert "empty" in refusal(tmp_path / name)
    if name.endswith("gz"):
        (tmp_path / name).write_bytes(gzip.compress(b""))
        assert "empty" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_file_that_is_no_image_is_refused(name, tmp_path):
    text = b"Dear colleague, the images are on the other disk. " * 20
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert "expected a" in refusal(tmp_path / name)


def test_unknown_ending_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x")
    assert "convert" in refusal(tmp_path / "a.dcm")


@pytest.mark.parametrize("reader", READERS)
def test_other_dimensions_than_three_are_refused(reader, tmp_path):
    flat = write_raw_nifti(tmp_path / "2d.nii.gz", phantom()[:, :, 0], OBLIQUE)
    assert "found shape (5, 4)" in refusal(flat, reader)
    moving = write_raw_nifti(tmp_path / "4d.nii.gz", np.stack([phantom()] * 2, axis=-1), OBLIQUE)
    assert "found shape (5, 4, 3, 2)" in refusal(moving, reader)
    for name, array in (("2d", phantom()[:, :, 0]), ("4d", np.stack([phantom()] * 2))):
        for ending in (".mha", ".nrrd"):
            sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / f"{name}{ending}"))
            assert "3-D" in refusal(tmp_path / f"{name}{ending}", reader)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_missing_file_and_folder_are_refused(name, tmp_path):
    assert "No such file" in refusal(tmp_path / name)
    (tmp_path / name).mkdir()
    assert "is a folder" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_file_without_permission_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with nobody(tmp_path / name, 0):
        assert "ermission" in refusal(tmp_path / name)


def test_unknown_output_ending_is_told(tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    with pytest.raises(OutputError, match="label maps are written as"):
        write_label_map(tmp_path / "a.png", landmarks((3, 4, 5)), volume)


@pytest.mark.parametrize("ending", WRITE_ENDINGS)
def test_case_of_an_ending_does_not_matter(ending, tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    path = tmp_path / f"A{ending.upper()}"
    write_label_map(path, landmarks((3, 4, 5)), volume)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    lower = path.rename(tmp_path / f"a{ending}")  # ITK cannot read .MHA
    np.testing.assert_array_equal(read_volume([lower], "SimpleITKIO").voxels[0], landmarks((3, 4, 5)))


@pytest.mark.parametrize("ending", [".nhdr", ".mhd", ".gipl"])
def test_formats_that_are_only_read_are_not_written(ending, tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    with pytest.raises(OutputError, match="label maps are written as"):
        write_label_map(tmp_path / f"a{ending}", landmarks((3, 4, 5)), volume)
    assert not list(tmp_path.iterdir())
