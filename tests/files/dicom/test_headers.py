"""Which series a set of files holds: right, or refused by name with the measured figure."""

import copy
import os
import pickle
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ctseg.errors import InputError
from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.series import CtSeries, FoundDicom
from ctseg.files.formats import of_series
from ctseg.files.geometry import Geometry
from ctseg.files.volume import read_volume, read_volume_header
from tests.support.dicom_series import OBLIQUE, ct_series, enhanced_ct, other_object, set_tags, uid, write_series
from tests.support.dicom_traps import REFUSED, RIGHT


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def found_in(folder: Path, keywords: Sequence[str] = ()) -> FoundDicom:
    return find_series(files_in(folder), keywords=keywords)


def one_series(folder: Path) -> CtSeries:
    (series,) = found_in(folder).series
    return series


PROBLEMS = {
    "two reconstructions": "its 16 slices lie at 8 places, .* which differ in ConvolutionKernel: give each a series",
    "time points": "its 24 slices lie at 8 places, .* TemporalPositionIdentifier and AcquisitionNumber: give each",
    "missing slice": r"2.5 mm apart, but 5 mm from 107.5 to 112.5 mm .*: 1 slice is missing: copy the whole series",
    "changing step": r"2.5 mm apart, but 5 mm from 110 to 115 mm, 5 mm from 115 to 120 mm, .*: export it with equal",
    "gantry tilt": r"sheared by 14 degrees, .* 4.23 mm beside the normal .* 0.1 mm are allowed: have the series",
    "gantry tilt without the tag": r"sheared by 15 degrees, .* 4.53 mm beside .* 0.1 mm are allowed: have the series",
    "sheared by 0.6 degrees": r"sheared by 0.6 degrees, .* 0.183 mm beside .* 0.1 mm are allowed: have the series",
    "no positions": r"positions \(ImagePositionPatient\) are missing in 8 of 8 slices: export",
    "truncated file": r"1 of 8 files: cut off \(660 of 960 bytes of voxels are there\): copy them again",
    "slice of another size": r"2 sizes \(7 of 24 x 20, 1 of 24 x 18 voxels\): give each size",
    "slice of another orientation": r"another orientation .* in 1 of 8 slices, turned by up to 1 degrees: give each",
    "slice of another spacing": r"voxels of 0.8 to 0.82 mm \(PixelSpacing\): give each spacing",
    "colour": r"colour in 8 of 8 files \(SamplesPerPixel 3, .*: give the scan itself",
    "one slice without thickness": r"it has one slice, .* \(SpacingBetweenSlices, SliceThickness\): add",
    "names for positions": r"positions \(ImagePositionPatient\) are missing in 8 of 8 slices: export",
}


@pytest.mark.parametrize("name", REFUSED)
def test_series_that_is_no_volume_is_refused_with_the_measured_figure(name: str, tmp_path: Path) -> None:
    REFUSED[name](tmp_path)
    series = one_series(tmp_path)
    assert series.problem is not None
    assert re.search(PROBLEMS[name], series.problem), series.problem
    assert "Doe" not in series.problem + series.label
    with pytest.raises(ValueError, match="has no grid"):
        series.geometry  # noqa: B018


@pytest.mark.parametrize("name", RIGHT)
def test_series_that_readers_get_wrong_lies_where_its_headers_say(name: str, tmp_path: Path) -> None:
    true = RIGHT[name](tmp_path)
    series = one_series(tmp_path)
    assert series.problem is None
    assert series.geometry.shape == true.hu.shape
    off_mm = series.geometry.distance_mm(Geometry(true.hu.shape, true.affine_ras))
    assert off_mm == pytest.approx(17.5 * np.tan(np.deg2rad(0.05)) / 2 if "sheared" in name else 0, abs=1e-9)
    assert len({slice_.sop_instance_uid for slice_ in series.slices}) in (1, len(series.slices))


def test_slices_keep_the_slopes_and_frames_of_their_own_places(tmp_path: Path) -> None:
    RIGHT["multi-frame"](tmp_path)
    series = one_series(tmp_path)
    assert [slice_.slope for slice_ in series.slices] == [1.0, 2.0, 0.5, 1.25, 1.5, 1.0, 0.75, 3.0]
    assert [slice_.intercept for slice_ in series.slices] == [-1024.0 - index for index in range(8)]
    assert [slice_.frame for slice_ in series.slices] == [1, 3, 5, 0, 7, 6, 2, 4]


def test_pipes_and_what_is_no_dicom_are_neither_waited_for_nor_lost(tmp_path: Path) -> None:
    write_series(tmp_path, ct_series().datasets)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.txt").write_text("Doe, Jane" * 100)
    found = found_in(tmp_path)
    assert [len(series.slices) for series in found.series] == [8]
    assert [path.name for path in found.others] == ["pipe", "text.txt"]


@pytest.mark.parametrize("degrees", [0.05, 0.3])
def test_grid_of_a_sheared_series_lies_within_half_a_tenth_of_where_its_slices_are(
    degrees: float, tmp_path: Path
) -> None:
    true = ct_series(shear_degrees=degrees, orientation=OBLIQUE)
    write_series(tmp_path, true.datasets)
    geometry = one_series(tmp_path).geometry
    assert not geometry.is_sheared
    off_mm = geometry.distance_mm(Geometry(true.hu.shape, true.affine_ras))
    assert off_mm == pytest.approx(17.5 * np.tan(np.deg2rad(degrees)) / 2, abs=1e-6)
    assert off_mm < 0.05


@given(st.permutations(range(13)))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_in_which_files_are_given_changes_nothing(tmp_path: Path, order: list[int]) -> None:
    if not any(tmp_path.iterdir()):
        RIGHT["the same file twice"](tmp_path)
    files = files_in(tmp_path)
    assert find_series([files[index] for index in order]) == find_series(files)


def test_tree_of_several_patients_holds_a_series_each(tmp_path: Path) -> None:
    for study, name in ((1, "Doe^Jane"), (2, "Roe^Richard")):
        for number in (7, 3):
            series = ct_series(
                (3, 4, 5), study=study, series=number, patient_name=name, SeriesDescription=f"{study}.{number}"
            )
            write_series(tmp_path / name / f"{number}", series.datasets, names=["a", "b.dcm", "c (1).tmp"])
    found = found_in(tmp_path, keywords=("PatientName", "AccessionNumber", "NoSuchKeyword"))
    assert {series.study_uid for series in found.series} == {uid(1), uid(2)}
    numbers = [series.series_number for series in found.series]
    assert numbers == [3, 7, 3, 7]
    for series in found.series:
        study = series.description[0]
        assert series.tags == (
            ("PatientName", {"1": "Doe^Jane", "2": "Roe^Richard"}[study]),
            ("AccessionNumber", f"A{study}"),
            ("NoSuchKeyword", ""),
        )
        assert (series.study_id, series.kernel) == (study, "B30f")
        assert pickle.loads(pickle.dumps(series)) == series


def test_one_series_uid_in_two_studies_is_two_series(tmp_path: Path) -> None:
    for study in (1, 2):
        slices = ct_series((3, 4, 5), study=study, SeriesInstanceUID="1.2.3").datasets
        write_series(tmp_path / f"{study}", slices)
    found = found_in(tmp_path)
    assert {(series.study_uid, series.series_uid, series.problem) for series in found.series} == {
        (uid(1), "1.2.3", None), (uid(2), "1.2.3", None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sop_class_uid", "what"),
    [
        ("1.2.840.10008.5.1.4.1.1.7", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.88.67", "dose report"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "SEG"),
        ("1.2.840.10008.5.1.4.1.1.4", "MR image"),
        ("1.2.840.10008.5.1.4.1.1.128", "PET image"),
        ("1.2.840.10008.1.3.10", "DICOMDIR"),
        ("1.2.3.4", "other DICOM object"),
    ],
)
def test_what_is_no_ct_is_left_out_and_told(sop_class_uid: str, what: str, tmp_path: Path) -> None:
    series = ct_series((3, 4, 5))
    write_series(tmp_path, series.datasets)
    write_series(tmp_path / "other", [other_object(series.datasets[0], sop_class_uid, "OT", SeriesDescription="Doe")])
    found = found_in(tmp_path)
    assert [len(series.slices) for series in found.series] == [3]
    assert [(item.what, item.files) for item in found.left_out] == [(what, 1)]
    assert found.told == f"1 × {what}"
    assert found.left_out[0].series_number == (900 if what != "DICOMDIR" else None)


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
)
def test_every_encoding_of_headers_says_the_same_and_shows_what_is_cut_off(syntax: str, tmp_path: Path) -> None:
    true = ct_series(slope=[1.0, 2.0, 3.0], shape=(3, 20, 24))
    paths = write_series(tmp_path, true.datasets, syntax=syntax)
    series = one_series(tmp_path)
    assert series.problem is None
    assert {slice_.transfer_syntax_uid for slice_ in series.slices} == {syntax}
    assert [slice_.slope for slice_ in series.slices] == [1.0, 2.0, 3.0]
    assert series.geometry.distance_mm(Geometry(true.hu.shape, true.affine_ras)) < 1e-9
    paths[0].write_bytes(paths[0].read_bytes()[:-200])
    problem = one_series(tmp_path).problem
    assert problem is not None
    assert problem.startswith("1 of 3 files: cut off ")
    assert problem.endswith(": copy them again")


def test_file_without_preamble_is_a_slice_like_any_other(tmp_path: Path) -> None:
    true = ct_series((3, 4, 5))
    write_series(tmp_path, true.datasets[:1], preamble=False)
    write_series(tmp_path / "others", true.datasets[1:], syntax=ImplicitVRLittleEndian)
    report = other_object(true.datasets[0], "1.2.840.10008.5.1.4.1.1.88.67", "SR")
    write_series(tmp_path / "report", [report], preamble=False)
    found = found_in(tmp_path)
    assert [(len(series.slices), series.problem) for series in found.series] == [(3, None)]
    assert (found.told, found.others) == ("1 × dose report", ())


def test_classes_that_contradict_each_other_are_told(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, ct_series((1, 4, 5)).datasets)
    there = path.read_bytes()
    at = there.index(b"1.2.840.10008.5.1.4.1.1.2\0")
    path.write_bytes(there[:at] + b"1.2.840.10008.5.1.4.1.1.7\0" + there[at + 26 :])
    assert found_in(tmp_path).told == "1 × DICOM file that cannot be read"


def test_what_is_cut_off_before_it_says_to_which_series_it_belongs_is_told_beside_the_others(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ct_series().datasets)
    paths[-1].write_bytes(paths[-1].read_bytes()[:600])
    paths[0].write_bytes(b"")
    found = found_in(tmp_path)
    assert found.told == "1 × CT image that does not say to which series it belongs, 1 × empty file"
    assert found.series[0].warnings == ("2 files beside its own cannot be read: slices at its ends may be missing",)


def test_header_that_ends_before_its_voxels_refuses_its_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ct_series().datasets)
    paths[3].write_bytes(paths[3].read_bytes()[:-1100])
    assert one_series(tmp_path).problem == "1 of 8 files: ended before the voxels: copy again what was cut off"


def test_copy_whose_patient_was_renamed_is_the_same_slice(tmp_path: Path) -> None:
    series = ct_series((3, 4, 5))
    write_series(tmp_path, series.datasets)
    renamed = ct_series((3, 4, 5), patient_name="Anonymous")
    write_series(tmp_path / "again", renamed.datasets)
    found = found_in(tmp_path, keywords=["PatientName"])
    assert found.series[0].tags == (("PatientName", "Doe^Jane"),)
    assert [len(series.slices) for series in found.series] == [3]
    assert found.told == "3 × doubled file"


@pytest.mark.parametrize("change", [{"PixelData": bytes(40)}, {"RescaleSlope": "2"}])
def test_two_contents_under_one_instance_uid_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    series = ct_series((3, 4, 5))
    write_series(tmp_path, series.datasets)
    set_tags(series.datasets[1], **change)
    write_series(tmp_path / "again", series.datasets[:2])
    found = found_in(tmp_path)
    assert found.told == "1 × doubled file"
    assert found.series[0].problem == (
        "different contents under one SOPInstanceUID for 1 of 3 slices: keep the right file of each"
    )


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"PatientID": "0043"}, r"slices of 2 patients \(PatientID\): give each a series of its own"),
        ({"FrameOfReferenceUID": "1.2.3"}, "slices of 2 frames of reference"),
        ({"FrameOfReferenceUID": None}, "slices of 2 frames of reference"),
        ({"PixelRepresentation": 1}, "numbers of 2 types"),
        ({"BitsAllocated": 12}, "expected numbers of 8, 16 or 32 bits.* found 12 bits"),
        ({"HighBit": 15}, "lowest of 16, found 12 of them up to bit 15"),
        ({"Rows": None}, r"2 sizes \(2 of 5 x 4, 1 of 5 x 0 voxels\)"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "what makes numbers HU .* is missing in 1 of 3 slices"),
        ({"ImagePositionPatient": ["1", "2", "nan"]}, "positions .* are missing in 1 of 3 slices"),
        ({"ImagePositionPatient": ["1", "2"]}, "positions .* are missing in 1 of 3 slices"),
        ({"ModalityLUTSequence": []}, "1 of 3 files: a table"),
        ({"NumberOfFrames": 2}, "1 of 3 files: 2 frames, of which nothing says where they lie"),
        ({"PixelData": bytes(20)}, r"1 of 3 files: cut off \(20 of 40 bytes"),
        ({"PixelData": bytes(80)}, "1 of 3 files: 80 bytes of voxels, where Rows, Columns and BitsAllocated say 40"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "1 of 3 files: 40 bytes of voxels, where .* say 20"),
        ({"PixelData": None}, "1 of 3 files: ended before the voxels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour in 1 of 3 files"),
    ],
)
def test_one_slice_that_differs_refuses_its_series(tags: dict[str, object], match: str, tmp_path: Path) -> None:
    series = ct_series((3, 4, 5))
    with quiet():
        set_tags(series.datasets[1], **tags)
    write_series(tmp_path, series.datasets)
    problem = one_series(tmp_path).problem
    assert problem is not None
    assert re.search(match, problem), problem


def test_series_in_an_encoding_that_is_not_read_is_refused_at_its_headers(tmp_path: Path) -> None:
    paths = write_series(tmp_path, ct_series((3, 4, 5)).datasets)
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    assert one_series(tmp_path).problem == (
        "an encoding that cannot be read (TransferSyntaxUID) in 3 of 3 files: export the series uncompressed"
    )


@pytest.mark.parametrize(
    ("unit", "told"), [("HU", None), (None, None), ("US", "US"), ("DOE^JANE", "another unit")], ids=str
)
def test_unit_that_is_not_hu_is_told(unit: str | None, told: str | None, tmp_path: Path) -> None:
    write_series(tmp_path, ct_series((3, 4, 5), RescaleType=unit).datasets)
    expected = () if told is None else (f"its numbers are said to be {told}, not HU (RescaleType): taken as they are",)
    assert one_series(tmp_path).warnings == expected


@pytest.mark.parametrize(
    ("signed", "bits", "dtype", "ends"),
    [
        (False, 12, "uint16", (0, 4095)),
        (True, 12, "int16", (-2048, 2047)),
        (True, 16, "int16", (-32768, 32767)),
    ],
)
def test_numbers_that_slices_may_store_follow_from_their_bits(
    signed: bool, bits: int, dtype: str, ends: tuple[int, int], tmp_path: Path
) -> None:
    write_series(tmp_path, ct_series((2, 4, 5), signed=signed, bits_stored=bits).datasets)
    series = one_series(tmp_path)
    assert (series.stored_dtype, series.stored_range) == (dtype, ends)


def test_slices_of_several_bits_are_read_by_their_own(tmp_path: Path) -> None:
    true = ct_series((3, 4, 5), bits_stored=16)
    true.datasets[0].PixelData = (true.stored[0] % 4096).tobytes()
    set_tags(true.datasets[0], BitsStored=12, HighBit=11)
    write_series(tmp_path, true.datasets)
    series = one_series(tmp_path)
    assert series.stored_range == (0, 65535)
    expected = np.concatenate([true.stored[:1] % 4096, true.stored[1:]]) - 1024.0
    assert (read_volume([of_series(series)], "SimpleITKIO").voxels[0] == expected).all()


def test_fewer_compressed_slices_than_frames_are_told_at_the_headers(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, [enhanced_ct(ct_series((3, 4, 6)))], syntax=RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([bytes(64)] * 2)
    dataset.save_as(path)
    told = "1 of 1 files: cut off in the middle of the compressed voxels: copy them again"
    assert one_series(tmp_path).problem == told


def test_single_slice_takes_the_spacing_between_slices_before_its_thickness(tmp_path: Path) -> None:
    write_series(tmp_path, ct_series((1, 4, 5), SpacingBetweenSlices="3", SliceThickness="5").datasets)
    series = one_series(tmp_path)
    assert series.geometry.spacing_mm == (3, 0.8, 0.8)
    assert series.warnings == ("one slice only, taken to be 3 mm thick (SpacingBetweenSlices)",)


def test_lossy_compression_is_told(tmp_path: Path) -> None:
    RIGHT["lossy"](tmp_path)
    assert one_series(tmp_path).warnings == (
        "compressed with loss (8 of 8 files): its numbers are not quite the scanner's",
    )


@pytest.mark.parametrize(
    ("syntax", "said", "is_told"),
    [
        (JPEGExtended12Bit, None, True), (JPEGLSNearLossless, None, True), (JPEG2000, "01", True),
        (JPEG2000, "00", False), (JPEGLSLossless, None, False), (JPEGLSLossless, "01", True),
    ],
)  # fmt: skip
def test_an_encoding_that_loses_is_told_unless_it_is_said_to_have_lost_nothing(
    syntax: str, said: str | None, is_told: bool, tmp_path: Path
) -> None:
    (path,) = write_series(tmp_path, ct_series((1, 4, 6), LossyImageCompression=said).datasets)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([bytes(64)])
    dataset.save_as(path)
    assert (
        any(told.startswith("compressed with loss (1 of 1 files)") for told in one_series(tmp_path).warnings) == is_told
    )


def test_tilt_that_the_slices_do_not_show_is_told(tmp_path: Path) -> None:
    write_series(tmp_path, ct_series((3, 4, 5), GantryDetectorTilt="14").datasets)
    assert one_series(tmp_path).warnings == (
        "its gantry is said to be tilted by 14 degrees (GantryDetectorTilt), and its slices lie straight",
    )


def test_header_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    series = ct_series((3, 4, 5))
    write_series(tmp_path, series.datasets[:2])
    set_tags(series.datasets[2], SeriesDescription="Doe^Jane " * 600_000)
    write_series(tmp_path / "long", series.datasets[2:], syntax=ImplicitVRLittleEndian)
    assert found_in(tmp_path / "long").told == "1 × CT image that does not say to which series it belongs"
    assert one_series(tmp_path).problem is None


def test_malformed_tags_are_none_and_stop_nothing(tmp_path: Path) -> None:
    RIGHT["malformed tags"](tmp_path)
    series = one_series(tmp_path)
    assert series.series_number is None
    assert series.label.startswith("series without number (")
    assert series.study_id == "a StudyID longer than sixteen characters"


@pytest.mark.parametrize("shared", [True, False])
def test_frames_say_their_places_in_groups_of_their_own_or_shared_ones(shared: bool, tmp_path: Path) -> None:
    true = ct_series(orientation=OBLIQUE, pixel_spacing_mm=(0.7, 0.9))
    write_series(tmp_path, [enhanced_ct(true, order=[2, 0, 1, 7, 6, 5, 4, 3], shared=shared)])
    series = one_series(tmp_path)
    assert series.geometry.distance_mm(Geometry(true.hu.shape, true.affine_ras)) < 1e-9
    assert series.kernel == "B30f"


def test_what_a_frame_says_itself_counts_before_what_all_share(tmp_path: Path) -> None:
    true = ct_series(slope=[1.0 + 0.25 * number for number in range(8)])
    dataset = enhanced_ct(true)
    dataset.SharedFunctionalGroupsSequence = [copy.deepcopy(dataset.PerFrameFunctionalGroupsSequence[5])]
    write_series(tmp_path, [dataset])
    series = one_series(tmp_path)
    assert (read_volume([of_series(series)], "SimpleITKIO").voxels[0] == true.hu).all()


def test_volume_may_lie_in_several_multi_frame_files_of_either_class(tmp_path: Path) -> None:
    true = ct_series(slope=[1.0, 2.0, 0.5, 1.25, 1.5, 1.0, 0.75, 3.0])
    halves = [enhanced_ct(true, order=order) for order in ([6, 4, 2, 0], [1, 3, 5, 7])]
    for number, half in enumerate(halves):
        set_tags(half, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.2", SOPInstanceUID=uid("half", number))
    write_series(tmp_path, halves)
    series = one_series(tmp_path)
    assert [slice_.frame for slice_ in series.slices] == [3, 0, 2, 1, 1, 2, 0, 3]
    assert (read_volume([of_series(series)], "SimpleITKIO").voxels[0] == true.hu).all()


def test_an_instance_may_be_named_in_the_meta_information_alone(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, ct_series((1, 4, 6)).datasets)
    dataset = pydicom.dcmread(path)
    instance = str(dataset.SOPInstanceUID)
    del dataset.SOPInstanceUID
    dataset.save_as(path)
    assert [slice_.sop_instance_uid for slice_ in one_series(tmp_path).slices] == [instance]


def test_slices_and_frames_make_no_series_together(tmp_path: Path) -> None:
    true = ct_series()
    write_series(tmp_path, [enhanced_ct(true, order=[0, 1, 2, 3]), *true.datasets[4:]])
    assert one_series(tmp_path).problem == ("it holds slices of 2 kinds (SOPClassUID): give each a series of its own")


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"StackID": "2"}, "frames differ in StackID"),
        ({"TemporalPositionIndex": 2}, "frames differ in TemporalPositionIndex"),
    ],
)
def test_frames_of_several_stacks_or_times_are_refused(tags: dict[str, object], match: str, tmp_path: Path) -> None:
    frame_tags = [{} if number < 4 else tags for number in range(8)]
    write_series(tmp_path, [enhanced_ct(ct_series(), frame_tags=frame_tags)])
    problem = one_series(tmp_path).problem
    assert problem is not None
    assert re.search(match, problem), problem


def test_frames_without_groups_are_refused(tmp_path: Path) -> None:
    dataset = enhanced_ct(ct_series())
    dataset.NumberOfFrames = 9
    paths = write_series(tmp_path, [dataset])
    series = one_series(tmp_path)
    assert series.problem == "1 of 1 files: 9 frames, of which 8 say where they lie: export the series again"
    assert series.paths == tuple(paths)


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "twin", "reader", "within_mm"),
    [
        ("sts_sarcoma_dicom", "sts_sarcoma/test/STS_042_ct.nii.gz", "NibabelIO", 2e-5),  # NIfTI: single precision
        ("chest_small/cip_ct64_dicom", "chest_small/cip_ct64_ct.nrrd", "SimpleITKIO", 5e-4),  # positions: 6 digits
    ],
)
def test_real_series_lie_where_their_twins_do(
    folder: str, twin: str, reader: str, within_mm: float, shared_data: Path
) -> None:
    found = found_in(shared_data / folder)
    (series,) = found.series
    expected = read_volume_header([shared_data / twin], reader).geometry
    assert series.geometry.shape == expected.shape
    assert np.abs(series.geometry.affine_ras - expected.affine_ras).max() < within_mm
    assert found.told in ("", "1 × RTSTRUCT")


@pytest.mark.data
@pytest.mark.parametrize(
    ("archive", "problem"),
    [
        ("d2n_gantry_tilt_scrubbed", "sheared by 14 degrees, .* 3.63 mm beside the normal of the first"),
        ("d2n_missing_slice_scrubbed", "5 mm apart, but 10 mm from .*: 1 slice is missing"),
        ("dcmqi_3slice/ct_3slice_dicom", None),
    ],
)
def test_real_odd_series_are_right_or_refused(
    archive: str, problem: str | None, shared_data: Path, tmp_path: Path
) -> None:
    with tarfile.open(shared_data / "odd" / f"{archive}.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    series = one_series(tmp_path)
    assert re.search(problem or "^None$", str(series.problem)), series.problem


@pytest.mark.data
def test_real_odd_files_are_right_or_refused(shared_data: Path) -> None:
    found = found_in(shared_data / "odd")
    assert found.told == "1 × SEG, 1 × localizer"
    assert [len(series.slices) for series in found.series if series.problem is None] == [1, 1, 2]
    (refused,) = [series.problem for series in found.series if series.problem is not None]
    assert refused.startswith("different contents under one SOPInstanceUID for 1 of 7 slices")


def test_no_change_of_a_header_ends_in_anything_but_a_volume_or_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    true = ct_series((3, 4, 5), SeriesDescription="Doe^Jane")
    whole = [
        [path.read_bytes() for path in write_series(tmp_path / str(number), datasets, syntax=syntax)]
        for number, (datasets, syntax) in enumerate(
            [
                (true.datasets, ExplicitVRLittleEndian),
                (true.datasets, ImplicitVRLittleEndian),
                (true.datasets, DeflatedExplicitVRLittleEndian),
                ([enhanced_ct(true)], ExplicitVRLittleEndian),
            ]
        )
    ]
    read, told = 0, set()
    for turn in range(160):
        files = [bytearray(data) for data in whole[turn % len(whole)]]
        changed = files[0]
        for place in rng.integers(0, len(changed), rng.choice((1, 3, 9))):
            changed[place] = rng.choice((0, 255, 10, 32, 45, 48, 57, 92, rng.integers(256)))
        paths = [tmp_path / f"changed{number}" for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        for series in find_series(paths).series:
            try:
                read_volume([of_series(series)], "SimpleITKIO")
                read += 1
            except InputError as error:
                told.add("Doe" in str(error) or str(tmp_path) in str(error))
    assert told == {False}
    assert 20 < read < 150


@pytest.mark.data
def test_real_slices_of_every_transfer_syntax_are_whole(shared_data: Path) -> None:
    files = files_in(shared_data / "odd" / "transfer_syntaxes")
    found = [find_series([file]).series[0] for file in files]
    assert [series.problem for series in found] == [None] * 16
    assert len({slice_.transfer_syntax_uid for series in found for slice_ in series.slices}) == 15
    assert sum("with loss" in str(series.warnings) for series in found) == 7
