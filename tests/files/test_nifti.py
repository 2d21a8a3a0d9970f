"""NIfTI beside nnU-Net's own four readers, voxel by voxel and in millimetres; and every refusal."""

import gzip
import resource
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from ctseg.files.volume import read_volume, volume_from_array, write_label_map
from tests.support.scan_files import (
    FORMS,
    ITK_READERS,
    NNUNET,
    OBLIQUE,
    PERMUTED,
    READERS,
    SHAPE_XYZ,
    SHEARED,
    SPACING_XYZ,
    TURNED_FAR,
    affine_of,
    check_equals_nnunet,
    landmarks,
    phantom,
    places,
    refusal,
    write_raw_nifti,
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("forms", FORMS)
def test_nifti_affines_are_read_as_nnunets_reader_does(forms, reader, tmp_path):
    qform, sform, codes = FORMS[forms]
    check_equals_nnunet([write_raw_nifti(tmp_path / "a.nii.gz", phantom(), qform, sform, codes=codes)], reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_numbers_are_read_as_nnunets_reader_does(dtype, reader, tmp_path):
    dtype = np.dtype(dtype)
    largest = np.iinfo(dtype).max // 3 if dtype.kind in "iu" else 1e6
    voxels = (np.linspace(-1 if dtype.kind != "u" else 0, 1, 60).reshape(SHAPE_XYZ) * largest).astype(dtype)
    for slope, intercept in ((0, -1024), (2.5, -1024.1), (-0.3, 0), (np.nan, np.nan), (np.nan, 7)):
        path = write_raw_nifti(tmp_path / "a.nii", voxels, OBLIQUE, scl_slope=slope, scl_inter=intercept)
        check_equals_nnunet([path], reader)
    for endianness in "<>":
        path = write_raw_nifti(tmp_path / "a.nii", voxels, OBLIQUE, endianness=endianness)
        check_equals_nnunet([path], reader)
        kept = dtype if dtype.kind in "iu" and dtype.itemsize <= 4 else np.dtype(np.float32)
        assert read_volume([path], reader).voxels.dtype == kept


def random_header(seed):
    rng = np.random.default_rng(seed)

    def affine():
        rotation = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
        return affine_of(
            rotation[:, rng.permutation(3)] * rng.choice((-1, 1), 3), SPACING_XYZ, rng.uniform(-900, 900, 3)
        )

    qform = affine()
    sform = qform if rng.random() < 0.5 else affine()
    pixdim = np.array([rng.choice((-1, 1)), *rng.uniform(0.3, 5, 3), 0, 0, 0, 0])
    if rng.random() < 0.2:
        pixdim[1 + rng.integers(3)] *= -1
    codes = tuple(int(code) for code in rng.integers(0, 4, 2))
    return qform, sform, codes, pixdim


@pytest.mark.parametrize("reader", READERS)
def test_contradictory_headers_are_read_as_nnunets_reader_does(reader, tmp_path):
    for seed in range(60):
        qform, sform, codes, pixdim = random_header(seed)
        path = write_raw_nifti(tmp_path / f"{seed}.nii", phantom(), qform, sform, codes=codes, pixdim=pixdim)
        check_equals_nnunet([path], reader)


def test_axes_at_45_degrees_are_turned_as_itk_turns_them(tmp_path):
    for degrees in ((90, 90, 135), (135, 90, 90), (90, 90, 45), (0, 45, 0)):
        rotation = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().round(12)
        for spacing in ((0.98, 4.76, 1.77), (2.72, 1.7, 3.11), (1.81, 4.84, 3.78)):
            affine = affine_of(rotation, spacing)
            path = write_raw_nifti(
                tmp_path / "a.nii", phantom(), None, affine, codes=(0, 1), pixdim=[1, *spacing, 0, 0, 0, 0]
            )
            check_equals_nnunet([path], "SimpleITKIOWithReorient")


@pytest.mark.parametrize("reader", ITK_READERS)
def test_units_are_read_as_nnunets_reader_does(reader, tmp_path):
    for units in (0, 1, 2, 3, 10):
        check_equals_nnunet([write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, xyzt_units=units)], reader)


@pytest.mark.parametrize("reader", READERS)
def test_single_slices_and_constant_volumes_are_right_answers(reader, tmp_path):
    for name, voxels in {"slice": phantom()[:, :, :1], "column": phantom()[:1, :1], "constant": phantom() * 0}.items():
        check_equals_nnunet([write_raw_nifti(tmp_path / f"{name}.nii.gz", voxels, OBLIQUE, OBLIQUE)], reader)


@pytest.mark.parametrize("reader", READERS)
def test_fourth_dimension_of_one_is_no_dimension(reader, tmp_path):
    plain = write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE)
    four = write_raw_nifti(tmp_path / "b.nii", phantom()[..., None], OBLIQUE)
    np.testing.assert_array_equal(read_volume([four], reader).voxels, read_volume([plain], reader).voxels)


@pytest.mark.parametrize("reader", READERS)
def test_nifti_2_is_read_and_written_like_nifti_1(reader, tmp_path):
    image = nibabel.Nifti2Image(phantom(), PERMUTED)
    image.header.set_qform(PERMUTED, code=1)
    nibabel.save(image, tmp_path / "two.nii.gz")
    one = write_raw_nifti(tmp_path / "one.nii.gz", phantom(), PERMUTED, PERMUTED)
    volume, same = (read_volume([path], reader) for path in (tmp_path / "two.nii.gz", one))
    np.testing.assert_array_equal(volume.voxels, same.voxels)
    np.testing.assert_allclose(volume.geometry.affine_ras, same.geometry.affine_ras, atol=1e-4)
    write_label_map(tmp_path / "labels.nii.gz", (volume.voxels[0] > 0).astype(np.uint8), volume)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "labels.nii.gz").dataobj, phantom() > 0)


@pytest.mark.parametrize("reader", READERS)
def test_content_decides_whether_a_file_is_compressed(reader, tmp_path):
    plain = write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE)
    (tmp_path / "b.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "C.NII").write_bytes(gzip.compress(plain.read_bytes()))
    for name in ("b.nii.gz", "C.NII"):
        np.testing.assert_array_equal(
            read_volume([tmp_path / name], reader).voxels, read_volume([plain], reader).voxels
        )


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("forms", [name for name in FORMS if name != "sheared sform, with a qform"])
def test_labels_open_where_nnunets_would(forms, reader, tmp_path):
    qform, sform, codes = FORMS[forms]
    scan = write_raw_nifti(tmp_path / "scan.nii.gz", phantom(), qform, sform, codes=codes)
    volume = read_volume([scan], reader)
    labels = landmarks(volume.geometry.shape)
    ours, theirs = tmp_path / "ours.nii.gz", tmp_path / "theirs.nii.gz"
    write_label_map(ours, labels, volume)
    _, properties = NNUNET[reader].read_images([str(scan)])
    NNUNET[reader].write_seg(labels, str(theirs), properties)

    # the header is the input's, so that every program opens both in one place
    written, source = nibabel.load(ours), nibabel.load(scan)
    assert written.get_data_dtype() == np.uint8
    for field in ("pixdim", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(written.header[field], source.header[field])
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(ours))), np.asarray(written.dataobj).T)

    # and where the library that read it would put nnU-Net's own
    if reader in ITK_READERS:
        ours_at, theirs_at = (places(sitk.ReadImage(str(path))) for path in (ours, theirs))
        for label, place in theirs_at.items():
            np.testing.assert_allclose(ours_at[label], place, atol=1e-3)
    else:
        expected = nibabel.load(theirs)
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_allclose(written.affine, expected.affine, atol=1e-3)
    back = read_volume([ours], reader)
    np.testing.assert_array_equal(back.voxels[0], labels)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("origin", ["made", pytest.param("real", marks=pytest.mark.data)])
def test_labels_of_a_sheared_scan_keep_its_contradictory_header(origin, reader, tmp_path, request):
    if origin == "real":
        scan = request.getfixturevalue("shared_data") / "odd" / "niivue_sheared_affine_phantom.nii.gz"
    else:
        scan = write_raw_nifti(tmp_path / "scan.nii.gz", phantom(), OBLIQUE, SHEARED)
    volume = read_volume([scan], reader)
    labels = (volume.voxels[0] > volume.voxels.mean()).astype(np.uint8)
    path = tmp_path / "labels.nii.gz"
    write_label_map(path, labels, volume)
    source, written = nibabel.load(scan), nibabel.load(path)
    np.testing.assert_array_equal(written.header.get_sform(), source.header.get_sform())
    np.testing.assert_array_equal(written.header.get_qform(), source.header.get_qform())
    expected = np.asarray(source.dataobj) > volume.voxels.mean()
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)


def test_same_labels_give_the_same_bytes(tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(tmp_path / name, landmarks((3, 4, 5)), volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_gzip_is_refused(share, tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    path = write_raw_nifti(tmp_path / "cut.nii.gz", voxels, OBLIQUE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for reader in READERS:
        assert "copy it again" in refusal(path, reader)


@pytest.mark.parametrize("position", [0.3, 0.9, -5])
def test_damaged_gzip_is_refused(position, tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    path = write_raw_nifti(tmp_path / "bad.nii.gz", voxels, OBLIQUE)
    data = bytearray(path.read_bytes())
    data[int(position * len(data)) if isinstance(position, float) else position] ^= 0x55
    path.write_bytes(data)
    assert "copy it again" in refusal(path)


def test_truncated_plain_nifti_is_refused(tmp_path):
    path = write_raw_nifti(tmp_path / "cut.nii", phantom(), OBLIQUE)
    path.write_bytes(path.read_bytes()[:-2])
    assert "118 of 120 bytes" in refusal(path)
    path.write_bytes(path.read_bytes()[:100])
    assert "header" in refusal(path)


def test_half_of_a_pair_is_refused(tmp_path):
    assert "one file" in refusal(write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, magic=b"ni1"))
    assert "one file" in refusal(write_raw_nifti(tmp_path / "b.nii", phantom(), OBLIQUE, magic=b""))
    text = refusal(write_raw_nifti(tmp_path / "c.nii", phantom(), OBLIQUE, magic=b"abc"))
    assert "found magic b'abc', no NIfTI file: convert the scan to .nii.gz again, or mend the field magic" in text


@pytest.mark.parametrize("reader", READERS)
def test_real_colour_scan_is_refused(reader, shared_data):
    assert "data type RGB" in refusal(shared_data / "odd" / "niivue_rgb24_ct_perfusion_map.nii.gz", reader)


@pytest.mark.parametrize("reader", READERS)
def test_colour_and_complex_voxels_are_refused(reader, tmp_path):
    colour = np.zeros(SHAPE_XYZ, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "data type RGB" in refusal(write_raw_nifti(tmp_path / "c.nii.gz", colour, OBLIQUE), reader)
    path = write_raw_nifti(tmp_path / "a.nii", phantom(np.complex64), OBLIQUE)
    assert "data type complex64" in refusal(path, reader)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), str(tmp_path / "a.mha"))
    assert "found 3" in refusal(tmp_path / "a.mha", reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("code", [0, 1, 1536, 9999, -7])
def test_data_types_that_no_scan_has_are_told_by_their_field(code, reader, tmp_path):
    text = refusal(write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, datatype=code), reader)
    assert f"found datatype {code}," in text
    assert "mend the field datatype" in text


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("count", [0, 8, -1])
def test_an_impossible_number_of_dimensions_is_told_by_its_field(count, reader, tmp_path):
    path = write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, dim=[count, 5, 4, 3, 1, 1, 1, 1])
    assert f"found dim[0] = {count}" in refusal(path, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("units", [128, 130, 255, 7])
def test_unknown_units_are_no_units(units, reader, tmp_path):
    check_equals_nnunet([write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, xyzt_units=units)], reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "tail", [b"\0" * 40, b"anything at all", b"\x1f\x8bno gzip", gzip.compress(b"more", mtime=0)[:-3]]
)
def test_what_follows_the_voxels_is_left_alone_as_nnunets_readers_do(tail, reader, tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)  # nibabel looks a bit ahead
    for ending in (".nii", ".nii.gz"):
        path = write_raw_nifti(tmp_path / f"a{ending}", voxels, OBLIQUE)
        path.write_bytes(path.read_bytes() + tail)
        check_equals_nnunet([path], reader)


def test_damage_is_seen_whatever_follows_it(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    path = write_raw_nifti(tmp_path / "a.nii.gz", voxels, OBLIQUE)
    whole = path.read_bytes()
    for position in (len(whole) // 2, -5):
        data = bytearray(whole)
        data[position] ^= 0x55
        path.write_bytes(bytes(data) + b"anything at all")
        assert "copy it again" in refusal(path)


@pytest.mark.parametrize("size", [0, -3])
def test_zero_sized_volume_is_refused(size, tmp_path):
    path = write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, dim=[3, 5, 4, size, 1, 1, 1, 1])
    assert "at least one voxel" in refusal(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("linear", ["no length", "one plane", "NaN"])
def test_singular_affine_is_refused(linear, reader, tmp_path):
    singular = OBLIQUE.copy()
    singular[:3, 2] = {"no length": 0, "one plane": singular[:3, 1], "NaN": np.nan}[linear]
    path = write_raw_nifti(tmp_path / "a.nii.gz", phantom(), None, singular, codes=(0, 1))
    assert "mend its affine" in refusal(path, reader)


@pytest.mark.parametrize("reader", READERS)
def test_sheared_affine_alone_is_refused_by_simpleitks_rule_and_read_by_nibabels(reader, tmp_path):
    path = write_raw_nifti(tmp_path / "a.nii.gz", phantom(), None, SHEARED, codes=(0, 1))
    if reader in ITK_READERS:
        assert "right angles" in refusal(path, reader)
        with pytest.raises(RuntimeError, match="orthonormal"):
            NNUNET[reader].read_images([str(path)])
    else:
        check_equals_nnunet([path], reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [0, np.nan, np.inf])
def test_voxels_without_a_size_are_refused(size, reader, tmp_path):
    pixdim = [1, 0.7, size, 2.5, 0, 0, 0, 0]
    path = write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, OBLIQUE, pixdim=pixdim)
    assert "voxel size" in refusal(path, reader)


@pytest.mark.parametrize("reader", READERS[2:])
def test_other_units_than_millimetres_are_refused_by_nibabels_rule(reader, tmp_path):
    for units, name in {1: "metres", 3: "micrometres", 129: "metres"}.items():
        text = refusal(write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, xyzt_units=units), reader)
        assert f"xyzt_units {units} ({name})" in text
        assert "affine" not in text


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_header_that_promises_too_much_allocates_nothing(name, reader, tmp_path):
    path = write_raw_nifti(tmp_path / name, phantom(), OBLIQUE, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "54000000000000 bytes" in refusal(path, reader)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("offset", [0, 100, np.nan, 1e30, 352.5])
def test_impossible_start_of_the_voxels_is_refused(offset, tmp_path):
    for reader in READERS:
        text = refusal(write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, vox_offset=offset), reader)
        assert "mend the field vox_offset" in text


def test_nifti_needs_neither_simpleitk_nor_isal(tmp_path):
    scan = write_raw_nifti(tmp_path / "a.nii.gz", phantom(), TURNED_FAR, TURNED_FAR)
    data = bytearray(scan.read_bytes())
    data[-5] ^= 0x55  # the checksum
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(data)
    code = (
        "import sys; sys.modules.update(SimpleITK=None, isal=None)\n"
        "from pathlib import Path; from ctseg.errors import InputError\n"
        "from ctseg.files.volume import read_volume, write_label_map\n"
        "scan, damaged, output = map(Path, sys.argv[1:4])\n"
        "for reader in sys.argv[4:]:\n"
        "    volume = read_volume([scan], reader)\n"
        "    write_label_map(output / f'{reader}.nii.gz', (volume.voxels[0] > 0).astype('u1'), volume)\n"
        "try: read_volume([damaged], reader)\n"
        "except InputError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(scan), str(damaged), str(tmp_path), *READERS]
    result = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "incorrect data check" in result.stdout
    for reader in READERS:
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / f"{reader}.nii.gz").dataobj), phantom() > 0)
