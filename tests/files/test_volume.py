"""Reading and writing beside nnU-Net's own four readers, voxel by voxel and in millimetres; and every refusal."""

import gzip
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from scipy.spatial.transform import Rotation

from ctseg.errors import InputError, OutputError, SetupError
from ctseg.files.geometry import RAS_FROM_LPS, Geometry
from ctseg.files.volume import WRITE_ENDINGS, read_volume, volume_from_array, write_label_map

NNUNET = {cls.__name__: cls() for cls in (SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient)}
READERS = list(NNUNET)
ITK_READERS = READERS[:2]
SHAPE_XYZ = (5, 4, 3)
SPACING_XYZ = (0.7, 1.1, 2.5)


@pytest.fixture(autouse=True)
def _quiet():
    """ITK and nibabel tell of odd headers on standard error; nnU-Net prints."""
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    level = nibabel.imageglobals.logger.level
    nibabel.imageglobals.logger.setLevel(100)
    yield
    nibabel.imageglobals.logger.setLevel(level)


def affine_of(rotation=((1, 0, 0), (0, 1, 0), (0, 0, 1)), spacing=SPACING_XYZ, origin=(-120.0, 35.5, 801.25)):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(rotation) * spacing
    affine[:3, 3] = origin
    return affine


OBLIQUE = affine_of(Rotation.from_euler("xyz", (10, -20, 35), degrees=True).as_matrix())
FLIPPED = affine_of(np.diag((-1, 1, -1)))
PERMUTED = affine_of(((0, 0, -1), (1, 0, 0), (0, -1, 0)))
TURNED_FAR = affine_of(Rotation.from_euler("xyz", (100, 50, -160), degrees=True).as_matrix() @ np.diag((1, -1, 1)))
SHEARED = OBLIQUE @ np.array([[1, 0.3, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
ELSEWHERE = affine_of(Rotation.from_euler("xyz", (-15, 5, 170), degrees=True).as_matrix(), origin=(1, 2, 3))


def phantom(dtype=np.int16):
    """Every voxel has a value of its own, in NIfTI's order (x, y, z)."""
    return (np.arange(np.prod(SHAPE_XYZ)).reshape(SHAPE_XYZ) - 20).astype(dtype)


def nifti_header(voxels, qform=None, sform=None, *, codes=(1, 1), endianness="<", **fields):
    header = nibabel.Nifti1Header(endianness=endianness)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_zooms(SPACING_XYZ[: voxels.ndim] + (1,) * (voxels.ndim - 3))
    if qform is not None:
        header.set_qform(qform, code=codes[0], strip_shears=True)
    if sform is not None:
        header.set_sform(sform, code=codes[1])
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for name, value in fields.items():
        header[name] = value
    return header


def write_raw_nifti(path: Path, voxels, *args, endianness="<", tail=b"", **kwargs) -> Path:
    """Write header and voxels as they are, so that headers may be odd."""
    header = nifti_header(voxels, *args, endianness=endianness, **kwargs)
    data = header.binaryblock + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(endianness)).tobytes("F") + tail
    path.write_bytes(gzip.compress(data, 1) if path.name.endswith(".gz") else data)
    return path


def affine_ras_of(properties) -> np.ndarray:
    """The affine of what nnU-Net's reader returned."""
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        direction = np.reshape(stuff["direction"], (3, 3))
        return affine_of(RAS_FROM_LPS @ direction, stuff["spacing"], RAS_FROM_LPS @ stuff["origin"])
    stuff = properties["nibabel_stuff"]
    return stuff.get("reoriented_affine", stuff["original_affine"])


def check_equals_nnunet(files, reader) -> None:
    expected, properties = NNUNET[reader].read_images([str(file) for file in files])
    volume = read_volume(files, reader)
    np.testing.assert_array_equal(volume.voxels.astype(np.float32), expected)
    assert volume.spacing_mm == tuple(float(size) for size in properties["spacing"])
    np.testing.assert_allclose(volume.geometry.affine_ras, affine_ras_of(properties), rtol=3e-7, atol=2e-4)


FORMS = {
    "one affine in both forms": (OBLIQUE, OBLIQUE, (1, 1)),
    "flipped": (FLIPPED, FLIPPED, (1, 1)),
    "permuted": (PERMUTED, PERMUTED, (1, 1)),
    "turned far, left-handed": (TURNED_FAR, TURNED_FAR, (1, 1)),
    "qform only": (TURNED_FAR, None, (1, 0)),
    "sform only": (None, TURNED_FAR, (0, 1)),
    "sform only, far from the origin": (None, affine_of(PERMUTED[:3, :3] / SPACING_XYZ, origin=(0, 0, 1755)), (0, 2)),
    "neither": (None, None, (0, 0)),
    "both, codes off": (OBLIQUE, ELSEWHERE, (0, 0)),
    "forms differ, scanner sform": (OBLIQUE, ELSEWHERE, (1, 1)),
    "forms differ, aligned sform": (OBLIQUE, ELSEWHERE, (1, 2)),
    "forms differ, aligned qform": (OBLIQUE, ELSEWHERE, (2, 1)),
    "forms differ, template sform": (PERMUTED, ELSEWHERE, (1, 4)),
    "sheared sform, with a qform": (OBLIQUE, SHEARED, (1, 1)),
    "sform of other lengths": (OBLIQUE, affine_of(spacing=(2, 2, 2)), (1, 1)),
}


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
def test_two_channels_are_read_as_nnunets_reader_does(reader, tmp_path):
    files = [
        write_raw_nifti(tmp_path / f"a_{channel:04d}.nii.gz", phantom(dtype) + channel, TURNED_FAR, TURNED_FAR)
        for channel, dtype in enumerate((np.int16, np.float32))
    ]
    check_equals_nnunet(files, reader)
    check_equals_nnunet([files[0], files[0]], reader)
    assert read_volume([files[0], files[0]], reader).voxels.dtype == np.int16


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


def landmarks(shape):
    """Labels 1, 2, 3, … at places of their own."""
    labels = np.zeros(shape, np.int64)
    labels[0, 0, 0], labels[-1, 0, 0], labels[0, -1, 0], labels[0, 0, -1], labels[1, 2, 1] = 1, 2, 3, 4, 5
    return labels


def places(image: sitk.Image):
    """Where each landmark lies, in LPS millimetres."""
    array = sitk.GetArrayFromImage(image)
    return {
        label: np.array(image.TransformIndexToPhysicalPoint([int(i) for i in np.argwhere(array == label)[0][::-1]]))
        for label in range(1, 6)
    }


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


@pytest.mark.parametrize("reader", READERS)
def test_labels_of_the_sheared_scan_keep_its_contradictory_header(reader, shared_data, tmp_path):
    scan = shared_data / "odd" / "niivue_sheared_affine_phantom.nii.gz"
    volume = read_volume([scan], reader)
    labels = (volume.voxels[0] > volume.voxels.mean()).astype(np.uint8)
    path = tmp_path / "labels.nii.gz"
    write_label_map(path, labels, volume)
    source, written = nibabel.load(scan), nibabel.load(path)
    np.testing.assert_array_equal(written.header.get_sform(), source.header.get_sform())
    np.testing.assert_array_equal(written.header.get_qform(), source.header.get_qform())
    expected = np.asarray(source.dataobj) > volume.voxels.mean()
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)


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


def test_same_labels_give_the_same_bytes(tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(tmp_path / name, landmarks((3, 4, 5)), volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


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


# ---- refusals: the message names the file, what was expected, what was found, what to do


def refusal(path, reader="SimpleITKIO", error=InputError) -> str:
    files = path if isinstance(path, list) else [path]
    with pytest.raises(error) as caught:
        read_volume(files, reader)
    assert files[-1].name in str(caught.value)
    return str(caught.value)


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


def test_half_of_a_pair_is_refused(tmp_path):
    assert "one file" in refusal(write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, magic=b"ni1"))
    assert "one file" in refusal(write_raw_nifti(tmp_path / "b.nii", phantom(), OBLIQUE, magic=b""))


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


@pytest.mark.parametrize("reader", READERS)
def test_colour_and_complex_voxels_are_refused(reader, shared_data, tmp_path):
    assert "data type RGB" in refusal(shared_data / "odd" / "niivue_rgb24_ct_perfusion_map.nii.gz", reader)
    path = write_raw_nifti(tmp_path / "a.nii", phantom(np.complex64), OBLIQUE)
    assert "data type complex64" in refusal(path, reader)
    path = write_raw_nifti(tmp_path / "b.nii", phantom(), OBLIQUE, datatype=1)
    assert "data type" in refusal(path, reader)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), str(tmp_path / "a.mha"))
    assert "found 3" in refusal(tmp_path / "a.mha", reader)


@pytest.mark.parametrize("size", [0, -3])
def test_zero_sized_volume_is_refused(size, tmp_path):
    path = write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, dim=[3, 5, 4, size, 1, 1, 1, 1])
    assert "at least one voxel" in refusal(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_counted_and_refused(dtype, reader, tmp_path):
    voxels = phantom(dtype)
    voxels[0, 0, 0], voxels[1, 1, 1], voxels[2, 2, 2] = np.nan, np.inf, -np.inf
    message = refusal(write_raw_nifti(tmp_path / "a.nii.gz", voxels, OBLIQUE), reader)
    assert "1 NaN and 2 infinite in 60" in message
    voxels[:] = np.nan
    assert "60 NaN" in refusal(write_raw_nifti(tmp_path / "b.nii.gz", voxels, OBLIQUE), reader)


def test_float64_beyond_float32_counts_as_infinite(tmp_path):
    voxels = phantom(np.float64)
    voxels[0, 0, 0] = 1e300
    assert "1 infinite" in refusal(write_raw_nifti(tmp_path / "a.nii.gz", voxels, OBLIQUE))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("linear", ["no length", "one plane", "NaN"])
def test_singular_affine_is_refused(linear, reader, tmp_path):
    singular = OBLIQUE.copy()
    singular[:3, 2] = {"no length": 0, "one plane": singular[:3, 1], "NaN": np.nan}[linear]
    path = write_raw_nifti(tmp_path / "a.nii.gz", phantom(), None, singular, codes=(0, 1))
    assert "repair its affine" in refusal(path, reader)


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
    assert "found meters" in refusal(write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, xyzt_units=1), reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_header_that_promises_too_much_allocates_nothing(name, reader, tmp_path):
    path = write_raw_nifti(tmp_path / name, phantom(), OBLIQUE, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "54000000000000 bytes" in refusal(path, reader)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_nrrd_that_promises_too_much_is_refused(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 30000\nencoding: gzip\nendian: little\n\nxx"
    )
    assert "cut off" in refusal(tmp_path / "a.nrrd")


@pytest.mark.parametrize("offset", [0, 100, np.nan, 1e30, 352.5])
def test_impossible_start_of_the_voxels_is_refused(offset, tmp_path):
    assert "vox_offset" in refusal(write_raw_nifti(tmp_path / "a.nii", phantom(), OBLIQUE, vox_offset=offset))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_missing_file_and_folder_are_refused(name, tmp_path):
    assert "No such file" in refusal(tmp_path / name)
    (tmp_path / name).mkdir()
    assert "directory" in refusal(tmp_path / name)


@contextmanager
def nobody(path: Path, mode: int):
    """Take the rights on a path away, also from root."""
    before = path.stat().st_mode
    path.chmod(mode)
    euid = os.geteuid()
    if euid == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(euid)
        path.chmod(before)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_file_without_permission_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with nobody(tmp_path / name, 0):
        assert "ermission" in refusal(tmp_path / name)


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


def test_nrrd_without_simpleitk_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n")
    assert 'pip install "ctseg[itk]"' in refusal(tmp_path / "a.nrrd", error=SetupError)
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    with pytest.raises(SetupError, match="ctseg\\[itk\\]"):
        write_label_map(tmp_path / "b.nrrd", landmarks((3, 4, 5)), volume)


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
    assert "CRC check failed" in result.stdout
    for reader in READERS:
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / f"{reader}.nii.gz").dataobj), phantom() > 0)


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
    with pytest.raises(InputError, match="1 NaN"):
        volume_from_array(np.array([[[1, np.nan]]]), OBLIQUE)
    assert not list(tmp_path.iterdir())


# ---- writing that fails leaves nothing behind


@contextmanager
def disk_full_at(size: int):
    """Files cannot grow beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


def test_unknown_output_ending_is_told(tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    with pytest.raises(OutputError, match="label maps are written as"):
        write_label_map(tmp_path / "a.png", landmarks((3, 4, 5)), volume)


def test_written_file_has_the_rights_of_any_new_file(tmp_path):
    volume = volume_from_array(np.zeros((3, 4, 5), np.int16), OBLIQUE)
    write_label_map(tmp_path / "a.nii.gz", landmarks((3, 4, 5)), volume)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.nii.gz").stat().st_mode == (tmp_path / "b").stat().st_mode
