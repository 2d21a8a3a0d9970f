import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jpeg_ls
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom import imread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ctseg.errors import InputError, SetupError
from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.pixels import read_series, read_series_header
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.series import CtSeries
from ctseg.files.formats import of_series
from ctseg.files.geometry import RAS_FROM_LPS
from ctseg.files.volume import read_volume, write_on_grid
from tests.support.dicom_series import AXIAL, CORONAL, OBLIQUE, ct_series, enhanced_ct, set_raw, set_tags, write_series
from tests.support.scan_files import READERS, check_header_says

READER = "SimpleITKIO"
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
SHAPE = (4, 6, 10)


def series_in(paths) -> CtSeries:
    (series,) = find_series(list(paths)).series
    assert series.problem is None
    return series


def written(folder, synthetic, **options) -> CtSeries:
    return series_in(write_series(folder, synthetic.datasets, **options))


def check_equal(series, hu, dtype=np.int16) -> None:
    volume = read_series(series, READER)
    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.voxels, hu.astype(np.float32))
    header = read_series_header(series, READER)
    assert header.dtype == volume.voxels.dtype
    assert header.spacing_mm == volume.spacing_mm
    np.testing.assert_array_equal(header.geometry.affine_ras, volume.geometry.affine_ras)


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(
    ("signed", "bits_stored", "intercept", "dtype"),
    [(False, 12, -1024, np.int16), (True, 12, 0, np.int16), (True, 16, -1024, np.int32), (False, 16, -32768, np.int16)],
)
def test_uncompressed_slices_are_what_was_stored(tmp_path, syntax, signed, bits_stored, intercept, dtype):
    synthetic = ct_series(SHAPE, signed=signed, bits_stored=bits_stored, intercept=intercept)
    check_equal(written(tmp_path, synthetic, syntax=syntax), synthetic.hu, dtype)


def test_negative_numbers_need_not_fill_the_bits_that_are_not_stored(tmp_path):
    synthetic = ct_series(SHAPE, signed=True, intercept=0)
    for dataset, plane in zip(synthetic.datasets, synthetic.stored, strict=True):
        dataset.PixelData = (plane.view(np.uint16) & 0x0FFF).tobytes()
    check_equal(written(tmp_path, synthetic), synthetic.hu)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_bits_above_those_that_are_stored_do_not_count(tmp_path, syntax):
    synthetic = ct_series(SHAPE)
    for dataset, plane in zip(synthetic.datasets, synthetic.stored, strict=True):
        dataset.PixelData = (plane | 0x5000).tobytes()
    series = written(tmp_path, synthetic, syntax=syntax)
    check_equal(series, synthetic.hu)
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(series.slices[1].path)))[0]
    np.testing.assert_array_equal(read_series(series, READER).voxels[1], by_itk)


@pytest.mark.parametrize("name", ["a padded end", "bytes after the voxels", "bytes after the end"])
def test_odd_paddings_move_no_voxel(tmp_path, name):
    synthetic = ct_series((3, 5, 7))
    for dataset in synthetic.datasets:
        dataset.PixelData += {"a padded end": b"\0\0", "bytes after the voxels": b"\7" * 10}.get(name, b"")
    series = written(tmp_path, synthetic)
    if name == "bytes after the end":
        for path in series.paths:
            path.write_bytes(path.read_bytes() + b"\7" * 11)
    check_equal(series, synthetic.hu)


def test_files_need_no_preamble(tmp_path):
    synthetic = ct_series(SHAPE)
    check_equal(written(tmp_path, synthetic, preamble=False), synthetic.hu)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_headers_may_be_long(tmp_path, syntax):
    synthetic = ct_series(SHAPE)
    for index, dataset in enumerate(synthetic.datasets):
        item = Dataset()
        item.TextValue = "long" * 3000
        dataset.ContentSequence = [item] * (8 if index else 5)
        dataset["ContentSequence"].is_undefined_length = item.is_undefined_length_sequence_item = True
    check_equal(written(tmp_path, synthetic, syntax=syntax), synthetic.hu)


@pytest.mark.parametrize(("bits", "stored_type", "dtype"), [(8, np.uint8, np.int16), (32, np.int32, np.int32)])
def test_numbers_of_one_byte_and_of_four_are_read(tmp_path, bits, stored_type, dtype):
    synthetic = ct_series((2, 3, 5), bits_stored=8, intercept=0)
    form = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(bits == 32)}
    for dataset, plane in zip(synthetic.datasets, synthetic.stored, strict=True):
        set_tags(dataset, **form, PixelData=plane.astype(stored_type).tobytes() + bytes(bits == 8))
    check_equal(written(tmp_path, synthetic), synthetic.hu, dtype)


def test_slope_and_intercept_of_each_slice_are_applied_once(tmp_path):
    whole = ct_series(SHAPE, slope=[1, 2, 3, 2], intercept=[-1024, 7, 0, -5])
    check_equal(written(tmp_path / "whole", whole), whole.hu)
    broken = ct_series(SHAPE, slope=[1, 0.3, 1.00001, 2.5], intercept=[-1024, 7.7, 0, -5])
    check_equal(written(tmp_path / "broken", broken), broken.hu, np.float32)
    decoded = written(tmp_path / "decoded", broken, syntax=RLELossless)
    check_equal(decoded, broken.hu, np.float32)
    by_itk = [sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0] for path in decoded.paths]
    np.testing.assert_array_equal(read_series(decoded, READER).voxels, np.array(by_itk, np.float32))


def test_padding_is_rescaled_and_kept(tmp_path):
    stored = ct_series(SHAPE, signed=True, bits_stored=16).stored
    stored[:, :2, :3] = -2000
    synthetic = ct_series(SHAPE, stored=stored, signed=True, bits_stored=16, PixelPaddingValue=-2000)
    for dataset in synthetic.datasets:
        del dataset.PixelPaddingValue
        dataset.add_new("PixelPaddingValue", "SS", -2000)
    series = written(tmp_path, synthetic)
    check_equal(series, synthetic.hu, np.int32)
    assert (read_series(series, READER).voxels[:, :2, :3] == -3024).all()


def by_jpeg_ls(plane: np.ndarray) -> bytes:
    return bytes(jpeg_ls.encode_array(plane.view(np.uint16) & 0x0FFF))


def by_gdcm(plane: np.ndarray, scratch: Path, compressor: str) -> bytes:
    """Compressed as ``JPEG2000``, with the sign in the code stream, or as ``JPEG``, lossless."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetCompressor(compressor)
    writer.UseCompressionOn()
    writer.SetFileName(str(scratch))
    writer.Execute(sitk.GetImageFromArray(plane[None]))
    return next(generate_frames(pydicom.dcmread(scratch).PixelData, number_of_frames=1))


def by_jpeg_2000(plane: np.ndarray, scratch: Path) -> bytes:
    return by_gdcm(plane, scratch, "JPEG2000")


def by_jpeg(plane: np.ndarray, scratch: Path) -> bytes:
    return by_gdcm(plane, scratch, "JPEG")


def put(dataset, value: bytes) -> None:
    """Put encapsulated voxels in the place of uncompressed ones."""
    dataset.add_new("PixelData", "OB", value)
    dataset["PixelData"].is_undefined_length = True


@pytest.mark.parametrize("signed", [False, True])
def test_compressed_slices_are_what_was_stored(tmp_path, capfd, signed):
    synthetic = ct_series((2, 16, 24), signed=signed, intercept=0 if signed else -1024)
    check_equal(written(tmp_path / "rle", synthetic, syntax=RLELossless), synthetic.hu)
    for syntax, encode in (
        (JPEGLSLossless, by_jpeg_ls),
        (JPEG2000Lossless, lambda plane: by_jpeg_2000(plane, tmp_path / "scratch.dcm")),
        (JPEGLosslessSV1, lambda plane: by_jpeg(plane, tmp_path / "scratch.dcm")),
    ):
        for dataset, plane in zip(synthetic.datasets, synthetic.stored, strict=True):
            put(dataset, encapsulate([encode(plane)]))
        check_equal(written(tmp_path / syntax, synthetic, syntax=syntax), synthetic.hu)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("encoded_signed", "told_signed"), [(True, False), (False, True)])
def test_the_header_decides_about_the_sign_of_jpeg_2000(tmp_path, encoded_signed, told_signed):
    synthetic = ct_series((1, 16, 24), signed=told_signed, bits_stored=16, intercept=0)
    plane = synthetic.stored[0].view(np.int16 if encoded_signed else np.uint16)
    put(synthetic.datasets[0], encapsulate([by_jpeg_2000(plane, tmp_path / "scratch.dcm")]))
    series = written(tmp_path / "series", synthetic, syntax=JPEG2000Lossless)
    check_equal(series, synthetic.hu, np.int16 if told_signed else np.int32)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_compressed_numbers_of_more_bits_than_are_stored_are_refused(tmp_path, syntax):
    synthetic = ct_series((2, 16, 24))
    plane = synthetic.stored[1].copy()
    plane[3, 4] = 5000
    encoded = (
        bytes(jpeg_ls.encode_array(plane)) if syntax == JPEGLSLossless else by_jpeg_2000(plane, tmp_path / "s.dcm")
    )
    for dataset in synthetic.datasets:
        put(dataset, encapsulate([encoded]))
    series = written(tmp_path / "series", synthetic, syntax=syntax)
    with pytest.raises(InputError, match=r"slice . of 2 .*expected numbers of 12 bits, found \d+ to 5000: convert"):
        read_series(series, READER)


def test_frames_are_read_by_their_own_number_slope_and_intercept(tmp_path):
    synthetic = ct_series((5, 6, 10), slope=[1, 2, 3, 2, 1], intercept=[-1024, 7, 0, -5, 9])
    order = [3, 0, 4, 1, 2]
    for name, syntax in (("native", ExplicitVRLittleEndian), ("deflated", DeflatedExplicitVRLittleEndian)):
        paths = write_series(tmp_path / name, [enhanced_ct(synthetic, order=order)], syntax=syntax)
        check_equal(series_in(paths), synthetic.hu)


def test_frames_lie_where_highdicom_finds_them(tmp_path):
    scaling = {"slope": [1, 2, 3.5, 2, 1], "intercept": [-1024, 7, 0.25, -5, 9]}
    synthetic = ct_series((5, 6, 10), orientation=OBLIQUE, pixel_spacing_mm=(0.7, 1.1), **scaling)
    paths = write_series(tmp_path, [enhanced_ct(synthetic, order=[3, 0, 4, 1, 2])])
    found, expected = read_series(series_in(paths), READER), imread(paths[0]).get_volume(dtype=np.float64)
    np.testing.assert_array_equal(found.voxels[::-1], expected.array.astype(np.float32))  # its slices run the other way
    z, y, x = np.meshgrid([0, 4], [0, 5], [0, 9], indexing="ij")
    ours = found.geometry.affine_ras @ np.stack([x, y, z, np.ones_like(x)]).reshape(4, -1)
    theirs = expected.affine @ np.stack([4 - z, y, x, np.ones_like(x)]).reshape(4, -1)
    np.testing.assert_allclose(ours[:3], RAS_FROM_LPS @ theirs[:3], atol=1e-9)


@pytest.mark.parametrize("table", ["none", "basic", "extended", "two fragments each"])
def test_compressed_frames_are_found_with_and_without_a_table(tmp_path, table):
    synthetic = ct_series((5, 6, 10), slope=[1, 2, 3, 2, 1])
    order = [3, 0, 4, 1, 2]
    dataset = enhanced_ct(synthetic, order=order)
    encoded = [by_jpeg_ls(synthetic.stored[z]) for z in order]
    encoded = [frame + bytes(len(frame) % 2) for frame in encoded]
    if table == "extended":
        value, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(encoded)
    else:
        value = encapsulate(encoded, has_bot=table == "basic", fragments_per_frame=1 + (table == "two fragments each"))
    put(dataset, value)
    paths = write_series(tmp_path, [dataset], syntax=JPEGLSLossless)
    check_equal(series_in(paths), synthetic.hu)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("orientation", [CORONAL, OBLIQUE])
def test_axes_are_turned_as_those_of_the_nifti_twin(tmp_path, reader, orientation):
    synthetic = ct_series(SHAPE, orientation=orientation, pixel_spacing_mm=(0.7, 1.1), signed=True, intercept=3)
    series = written(tmp_path, synthetic)
    image = sitk.GetImageFromArray(synthetic.hu.astype(np.int16))
    affine_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ synthetic.affine_ras
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    image.SetDirection((affine_lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "twin.nii.gz"))
    found, twin = read_volume([of_series(series)], reader), read_volume([tmp_path / "twin.nii.gz"], reader)
    np.testing.assert_array_equal(found.voxels, twin.voxels)
    assert found.geometry.distance_mm(twin.geometry) < 1e-4
    assert found.spacing_mm == twin.spacing_mm
    assert found.voxels.flags.writeable
    check_header_says(found, [of_series(series)], reader)


def test_spacing_is_that_of_the_headers_as_nifti_holds_it_to_the_last_bit(tmp_path):
    z, y, x = (float(np.float32(side_mm)) for side_mm in (3.27, 0.7, 1.1))
    for name, orientation in (("axial", AXIAL), ("oblique", OBLIQUE)):
        made = ct_series(SHAPE, orientation=orientation, pixel_spacing_mm=(0.7, 1.1), slice_spacing_mm=3.27)
        assert read_series_header(written(tmp_path / name, made), READER).spacing_mm == (z, y, x)


def test_one_slice_is_a_volume(tmp_path):
    synthetic = ct_series((1, 6, 10))
    check_equal(written(tmp_path, synthetic), synthetic.hu)


def test_scans_of_dicom_and_nifti_are_channels_of_one_case(tmp_path):
    synthetic = ct_series(SHAPE)
    series = written(tmp_path, synthetic)
    twin = tmp_path / "twin.nii.gz"
    volume = read_volume([of_series(series)], READER)
    write_on_grid(twin, volume.voxels[0], volume.grid)
    both = read_volume([of_series(series), twin], READER)
    np.testing.assert_array_equal(both.voxels, np.stack([synthetic.hu, synthetic.hu]))


CUT_OFF = "it was cut off, copy the series again"
CHANGED = "the series was changed after its headers were read"


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def cut_in_the_voxels(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def gone(path: Path) -> None:
    path.unlink()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_loose_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("Doe^Jane"))


def with_a_name_for_a_number(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    set_raw(dataset, "RescaleSlope", "DS", b"Doe^Jane")
    dataset.save_as(path)


def with_tags(**tags):
    def change(path: Path) -> None:
        with quiet():
            dataset = pydicom.dcmread(path)
            set_tags(dataset, **tags)
            dataset.save_as(path)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_in_the_header, f"expected voxels, found the end of the file before them: {CUT_OFF}"),
        (cut_in_the_voxels, f"expected at least 120 bytes of voxels, found 111: {CUT_OFF}"),
        (emptied, "found the end of the file before them"),
        (noise, "expected "),
        (gone, f"expected a file, found none: {CHANGED}"),
        (a_pipe, "expected a file, found one that cannot be read (is a named pipe, not a file)"),
        (a_loose_link, f"expected a file, found none: {CHANGED}"),
        (with_tags(SOPInstanceUID="1.2.3.4.5"), f"expected the instance that it was, found another: {CHANGED}"),
        (with_tags(ImagePositionPatient=["1", "2", "3"]), "expected ImagePositionPatient -9.5 -7.25 105, found 1 2 3"),
        (with_tags(RescaleIntercept="-1000"), f"expected RescaleIntercept -1024, found -1000: {CHANGED}"),
        (with_tags(RescaleSlope="2"), "expected RescaleSlope 1, found 2"),
        (with_tags(Rows=5), "expected 6 rows and 10 columns, found 5 and 10"),
        (with_tags(Rows=None), "expected Rows, found none"),
        (with_tags(BitsStored=16, HighBit=15), "expected numbers from 0 to 4095, found 0 to 65535"),
        (with_tags(PixelRepresentation=1), "expected numbers from 0 to 4095, found -2048 to 2047"),
        (with_tags(HighBit=15), "expected BitsStored up to 16 and HighBit one less, found 12 and 15"),
        (with_tags(BitsAllocated=12), "expected BitsAllocated 8 or 16 or 32, found 12"),
        (with_tags(SamplesPerPixel=3), "expected one number per voxel, found 3"),
        (with_tags(PixelData=None), "expected voxels, found the end"),
        (with_a_name_for_a_number, f"expected RescaleSlope 1, found none: {CHANGED}"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_without_its_name(tmp_path, capfd, change, message):
    folder = tmp_path / "Doe^Jane"
    series = written(folder, ct_series(SHAPE))
    change(series.slices[2].path)
    with pytest.raises(InputError) as caught:
        read_series(series, READER)
    text = str(caught.value)
    assert text.startswith(f"{series.label}: slice 3 of 4 (instance ")
    assert message in text
    assert "Doe" not in text
    assert str(tmp_path) not in text
    assert caught.value.__suppress_context__
    assert capfd.readouterr() == ("", "")


EMPTY_TABLE = bytes.fromhex("feff00e000000000")


@pytest.mark.parametrize("damage", ["cut", "noise", "cut in the file", "empty"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_damaged_slice_is_refused(tmp_path, capfd, damage, syntax):
    synthetic = ct_series((2, 16, 24))
    scratch = tmp_path / "scratch.dcm"
    encode = {JPEGLSLossless: by_jpeg_ls, JPEG2000Lossless: lambda plane: by_jpeg_2000(plane, scratch)}.get(syntax)
    if encode is not None:
        for dataset, plane in zip(synthetic.datasets, synthetic.stored, strict=True):
            put(dataset, encapsulate([encode(plane)]))
    series = written(tmp_path / "Doe^Jane", synthetic, syntax=syntax)
    path = series.slices[1].path
    dataset = pydicom.dcmread(path)
    encoded = next(generate_frames(dataset.PixelData, number_of_frames=1))
    half = {"cut": encoded[: len(encoded) // 4 * 2], "noise": bytes.fromhex("55aa") * 300}.get(damage)
    if damage == "cut in the file":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        dataset.PixelData = encapsulate([half]) if half else EMPTY_TABLE + bytes.fromhex("feff00e000000000")
        dataset.save_as(path)
    with pytest.raises(InputError, match=r"slice 2 of 2 .*: expected .*(compressed|cut off|voxels)") as caught:
        read_series(series, READER)
    assert "Doe" not in str(caught.value)
    assert "Doe" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("what", ["fewer rows", "more columns", "80 bits", "three components"])
def test_a_decoder_is_not_given_what_it_would_crash_on(tmp_path, monkeypatch, syntax, what):
    plane = ct_series((1, 16, 24)).stored[0]
    plane = {"fewer rows": plane[:15], "more columns": np.hstack([plane, plane])}.get(what, plane)
    scratch = tmp_path / "scratch.dcm"
    encode = {JPEGLSLossless: by_jpeg_ls, JPEG2000Lossless: lambda plane: by_jpeg_2000(plane, scratch)}
    encoded = bytearray(encode.get(syntax, lambda plane: by_jpeg(plane, scratch))(np.ascontiguousarray(plane)))
    frame = re.search({JPEGLSLossless: rb"\xff\xf7", JPEGLosslessSV1: rb"\xff\xc3"}.get(syntax, rb"\xff\x51"), encoded)
    places = (
        {"80 bits": 4, "three components": 9} if syntax != JPEG2000Lossless else {"80 bits": 40, "three components": 39}
    )
    if what in places:
        encoded[frame.start() + places[what]] = {"80 bits": 80, "three components": 3}[what]
    synthetic = ct_series((2, 16, 24))
    for dataset in synthetic.datasets:
        put(dataset, encapsulate([bytes(encoded)]))
    series = written(tmp_path / "series", synthetic, syntax=syntax)
    monkeypatch.setattr("ctseg.files.dicom.codecs._write_alone", lambda *_: pytest.fail("it was given it"))
    with pytest.raises(InputError, match="expected compressed voxels that SimpleITK decodes, found damaged ones"):
        read_series(series, READER)


@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_no_change_of_a_file_ends_in_anything_but_a_volume_or_a_named_error(tmp_path, capfd, is_multi_frame):
    synthetic = ct_series((2, 6, 10))
    datasets = [enhanced_ct(synthetic)] if is_multi_frame else synthetic.datasets
    paths = write_series(tmp_path, datasets)
    before, whole = series_in(paths), paths[-1].read_bytes()
    random = np.random.default_rng(3)
    read, refused = 0, []
    for _ in range(150):
        changed = bytearray(whole)
        for at in random.integers(132, len(whole) - 120, random.integers(1, 4)):
            changed[at] = random.choice([0, 255, random.integers(256)])
        paths[-1].write_bytes(changed[: random.choice([len(changed), random.integers(len(changed))], p=[0.8, 0.2])])
        for series in (before, *find_series(paths).series):
            try:
                read_series(series, READER)
                read += 1
            except InputError as error:
                refused.append(str(error))
    assert read > 50
    assert len(refused) > 50
    assert not [text for text in refused if str(tmp_path) in text or "Doe" in text]
    assert capfd.readouterr() == ("", "")


PEAK = """
import sys
from pathlib import Path
from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.pixels import read_series, read_series_header
def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))
small, series = (find_series(sorted(Path(folder).iterdir())).series[0] for folder in sys.argv[1:])
read_series(small, "SimpleITKIO")
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
read_series(series, "SimpleITKIO")
print(status("VmHWM") - before, read_series_header(series, "SimpleITKIO").reading_bytes)
"""


@pytest.mark.full
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is measured as Linux shows it")
@pytest.mark.parametrize(
    ("form", "slope"),
    [
        ("uncompressed", 1),
        ("uncompressed", 1.5),
        ("deflated", 1),
        ("JPEG 2000", 1.5),
        ("multi-frame", 1),
        ("multi-frame JPEG-LS", 1),
    ],
)
def test_reading_takes_no_more_memory_than_the_headers_say(tmp_path, form, slope):
    small, large = (ct_series((depth, 512, 512), slope=slope) for depth in (2, 40))
    for name, synthetic in (("small", small), ("large", large)):
        datasets, syntax = synthetic.datasets, ExplicitVRLittleEndian
        if form == "deflated":
            syntax = DeflatedExplicitVRLittleEndian
        elif form == "JPEG 2000":
            syntax, encoded = JPEG2000Lossless, by_jpeg_2000(synthetic.stored[0], tmp_path / "scratch.dcm")
            for dataset in datasets:
                put(dataset, encapsulate([encoded]))
        elif form.startswith("multi-frame"):
            datasets = [enhanced_ct(synthetic)]
            if form.endswith("JPEG-LS"):
                syntax, encoded = JPEGLSLossless, by_jpeg_ls(synthetic.stored[0])
                put(datasets[0], encapsulate([encoded] * len(synthetic.stored)))
        write_series(tmp_path / name, datasets, syntax=syntax)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "small", tmp_path / "large"], capture_output=True, text=True, check=True
    )
    peak, estimated = map(int, done.stdout.split())
    assert 0.3 * estimated < peak <= estimated


def test_a_file_that_deflates_to_too_much_is_refused(tmp_path, monkeypatch):
    series = written(tmp_path, ct_series(SHAPE), syntax=DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("ctseg.files.dicom.stored_numbers.DEFLATED_HEADER_BYTES", 100)
    with pytest.raises(InputError, match=r"slice . of 4 .*expected at most 220 bytes in a deflated file, found more"):
        read_series(series, READER)


def test_a_series_that_cannot_be_read_is_refused_before_its_voxels(tmp_path):
    series = written(tmp_path, ct_series(SHAPE))
    for broken, message in (
        (replace(series, problem="a slice is missing"), "a slice is missing"),
        (
            _with(series, transfer_syntax_uid="1.2.840.10008.1.2.4.201"),
            "expected a transfer syntax that SimpleITK decodes, found another",
        ),
        (_with(series, transfer_syntax_uid="1.2.3"), "expected a transfer syntax that SimpleITK decodes"),
        (_with(series, slope=0.0), "expected a slope other than 0"),
        (_with(series, intercept=float("nan")), "expected a slope other than 0"),
    ):
        for read in (read_series_header, read_series):
            with pytest.raises(InputError, match=message) as caught:
                read(broken, READER)
            assert str(caught.value).startswith(f"{series.label}: ")


def _with(series: CtSeries, **fields) -> CtSeries:
    return replace(series, slices=(*series.slices[:-1], replace(series.slices[-1], **fields)))


def test_without_simpleitk_only_compressed_series_are_refused(tmp_path, monkeypatch):
    synthetic = ct_series(SHAPE)
    native, compressed = written(tmp_path / "n", synthetic), written(tmp_path / "c", synthetic, syntax=RLELossless)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    read_series(native, READER)
    for read in (read_series_header, read_series):
        with pytest.raises(SetupError, match=r"a compressed DICOM series needs SimpleITK.* extra 'dicom'"):
            read(compressed, READER)


def test_a_folder_for_temporary_files_that_is_full_is_told(tmp_path, monkeypatch):
    series = written(tmp_path, ct_series(SHAPE), syntax=RLELossless)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(SetupError, match=r"the folder for temporary files, which cannot be written .*TMPDIR"):
        read_series(series, READER)


@pytest.mark.data
def test_sarcoma_042_equals_its_nifti_twin(shared_data):
    paths = (shared_data / "sts_sarcoma_dicom" / "STS_042").rglob("*")
    found = read_volume([of_series(series_in(paths))], READER)
    twin = read_volume([shared_data / "sts_sarcoma" / "test" / "STS_042_ct.nii.gz"], READER)
    assert found.voxels.dtype == np.int16
    np.testing.assert_array_equal(found.voxels.astype(np.float32), twin.voxels)
    assert found.geometry.distance_mm(twin.geometry) < 2.1e-5


@pytest.mark.data
def test_the_small_chest_equals_its_nrrd_twin(shared_data):
    paths = (shared_data / "chest_small" / "cip_ct64_dicom").iterdir()
    found = read_volume([of_series(series_in(paths))], READER)
    twin = read_volume([shared_data / "chest_small" / "cip_ct64_ct.nrrd"], READER)
    np.testing.assert_array_equal(found.voxels, twin.voxels)
    assert found.geometry.distance_mm(twin.geometry) < 5e-4  # the twin's step is that of the first two slices


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")
def test_every_transfer_syntax_is_read_in_silence(shared_data, capfd):
    folder = shared_data / "odd" / "transfer_syntaxes"
    paths = [*sorted(folder.glob("CTImage*")), shared_data / "odd" / "pydicom_J2K_pixelrep_mismatch_tilt22.dcm"]
    assert len(paths) == 16
    for path in paths:
        series = series_in([path])
        capfd.readouterr()
        voxels = read_series(series, READER).voxels[0]
        assert capfd.readouterr() == ("", "")
        by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
        np.testing.assert_array_equal(voxels, by_itk.astype(np.float32))
        if (syntax := series.slices[0].transfer_syntax_uid)[-2:] in ("51", "53", "55", "57", "70"):
            continue  # of the lossless ones pydicom's decoders need GPL-3 packages for .57 and .70
        header = pydicom.dcmread(path)
        expected = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
        np.testing.assert_array_equal(voxels, expected.astype(np.float32), err_msg=syntax)
    assert (voxels.min(), voxels.max()) == (-2000, 1896)
