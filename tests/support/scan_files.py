"""Scan files with odd headers, nnU-Net's own readers beside ours, and landmarks to find again."""

import gzip
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from scipy.spatial.transform import Rotation

from ctseg.errors import InputError
from ctseg.files.geometry import RAS_FROM_LPS
from ctseg.files.volume import Volume, read_volume, read_volume_header

NNUNET = {cls.__name__: cls() for cls in (SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient)}

READERS = list(NNUNET)

ITK_READERS = READERS[:2]

SHAPE_XYZ = (5, 4, 3)

SPACING_XYZ = (0.7, 1.1, 2.5)


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
    check_header_says(volume, files, reader)


def check_header_says(volume: Volume, files, reader) -> None:
    """The headers alone say all that reading gave."""
    header = read_volume_header(files, reader)
    assert (header.channels, *header.geometry.shape) == volume.voxels.shape
    assert header.dtype == volume.voxels.dtype
    assert header.voxel_bytes == volume.voxels.nbytes <= header.reading_bytes
    assert header.spacing_mm == volume.spacing_mm
    np.testing.assert_array_equal(header.geometry.affine_ras, volume.geometry.affine_ras)
    np.testing.assert_array_equal(header.grid.geometry.affine_ras, volume.grid.geometry.affine_ras)
    assert header.grid.spacing_mm == volume.grid.spacing_mm
    assert header.grid.reorientation == volume.grid.reorientation
    assert header.grid.source.dtype == volume.grid.source.dtype


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


def refusal(path, reader="SimpleITKIO", error=InputError) -> str:
    files = path if isinstance(path, list) else [path]
    with pytest.raises(error) as caught:
        read_volume(files, reader)
    assert files[-1].name in str(caught.value)
    return str(caught.value)


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


@contextmanager
def disk_full_at(size: int):
    """Files cannot grow beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
