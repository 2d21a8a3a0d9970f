"""Series that readers get wrong in silence, by name: each is to be right, or refused by name."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.uid import SecondaryCaptureImageStorage

from tests.support.dicom_series import (
    CORONAL,
    OBLIQUE,
    PRONE,
    SHAPE,
    SyntheticSeries,
    ct_series,
    enhanced_ct,
    place,
    set_raw,
    set_tags,
    uid,
    write_series,
)

Trap = Callable[[Path], SyntheticSeries]
"""Writes a series into a folder; returns what a right reader would find, if there is anything right to be found."""


def _plain(**options: object) -> Trap:
    def trap(folder: Path) -> SyntheticSeries:
        series = ct_series(**options)  # type: ignore[arg-type]
        write_series(folder, series.datasets)
        return series

    return trap


def shuffled(folder: Path) -> SyntheticSeries:
    """The names of the files say nothing of the order."""
    series = ct_series()
    order = np.random.default_rng(1).permutation(len(series.datasets))
    write_series(folder, series.datasets, names=[f"{place:02d} of the scan.ima" for place in order])
    return series


def reversed_names(folder: Path) -> SyntheticSeries:
    """The last slice comes first."""
    series = ct_series()
    write_series(folder, series.datasets[::-1])
    return series


def padding(folder: Path) -> SyntheticSeries:
    """A padding value outside the field of view, below what is air."""
    stored = ct_series(signed=True, bits_stored=16).stored.copy()
    stored[:, :3, :3] = -2000
    series = ct_series(stored=stored, signed=True, bits_stored=16, intercept=0.0)
    for dataset in series.datasets:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
    write_series(folder, series.datasets)
    return series


def same_file_twice(folder: Path) -> SyntheticSeries:
    """Five of the files lie there a second time."""
    series = ct_series()
    write_series(folder, series.datasets)
    write_series(folder / "copy", series.datasets[:5])
    return series


def two_reconstructions(folder: Path) -> SyntheticSeries:
    """Two volumes at the same places, under one SeriesInstanceUID."""
    series = ct_series()
    again = [copy.deepcopy(dataset) for dataset in series.datasets]
    for dataset in again:
        set_tags(dataset, SOPInstanceUID=uid("again", dataset.SOPInstanceUID), ConvolutionKernel="B70f")
    write_series(folder, [*series.datasets, *again])
    return series


def time_points(folder: Path) -> SyntheticSeries:
    """Three time points of one volume, under one SeriesInstanceUID."""
    series = ct_series()
    datasets = []
    for number in range(3):
        for dataset in map(copy.deepcopy, series.datasets):
            set_tags(
                dataset,
                SOPInstanceUID=uid(number, dataset.SOPInstanceUID),
                AcquisitionNumber=number + 1,
                TemporalPositionIdentifier=number + 1,
            )
            datasets.append(dataset)
    write_series(folder, datasets)
    return series


def missing_slice(folder: Path) -> SyntheticSeries:
    """The fifth slice is not there."""
    series = ct_series()
    write_series(folder, series.datasets[:4] + series.datasets[5:])
    return series


def changing_step(folder: Path) -> SyntheticSeries:
    """The second half lies 5 mm apart, the first one 2.5 mm."""
    series = ct_series()
    for index, dataset in enumerate(series.datasets[5:]):
        place(dataset, np.array([-9.5, -7.25, 100 + 4 * 2.5 + 5 * (index + 1)]))
    write_series(folder, series.datasets)
    return series


def gantry_tilt(*, degrees: float = 14.0, with_tag: bool = True) -> Trap:
    """The gantry is tilted, the table moves along the patient."""

    def trap(folder: Path) -> SyntheticSeries:
        angle = np.deg2rad(degrees)
        tilted = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
        tag = {"GantryDetectorTilt": f"{degrees:g}"} if with_tag else {}
        series = ct_series(orientation=tilted, step_lps_mm=(0.0, 0.0, 2.5), **tag)
        write_series(folder, series.datasets)
        return series

    return trap


def scout_in_series(folder: Path) -> SyntheticSeries:
    """A localizer with the same SeriesInstanceUID, of another size and orientation."""
    series = ct_series()
    scout = ct_series((1, 30, 40), orientation=CORONAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]).datasets[0]
    set_tags(scout, SOPInstanceUID=uid("scout"), InstanceNumber=0)
    write_series(folder, [scout, *series.datasets])
    return series


def no_positions(folder: Path) -> SyntheticSeries:
    """Nothing says where the slices lie."""
    series = ct_series(ImagePositionPatient=None, ImageOrientationPatient=None)
    write_series(folder, series.datasets)
    return series


def truncated_file(folder: Path) -> SyntheticSeries:
    """One file ends in the middle of its voxels."""
    series = ct_series()
    path = write_series(folder, series.datasets)[3]
    path.write_bytes(path.read_bytes()[:-300])
    return series


def slice_of_another_size(folder: Path) -> SyntheticSeries:
    """One slice has two rows less."""
    series = ct_series()
    other = series.datasets[3]
    set_tags(other, Rows=SHAPE[1] - 2, PixelData=series.stored[3, :-2].tobytes())
    write_series(folder, series.datasets)
    return series


def slice_of_another_orientation(folder: Path) -> SyntheticSeries:
    """One slice is turned by 1 degree."""
    series = ct_series()
    angle = np.deg2rad(1.0)
    cosine, sine = f"{np.cos(angle):.10f}", f"{np.sin(angle):.10f}"
    series.datasets[3].ImageOrientationPatient = [cosine, sine, "0", f"-{sine}", cosine, "0"]
    write_series(folder, series.datasets)
    return series


def slice_of_another_spacing(folder: Path) -> SyntheticSeries:
    """One slice has larger voxels."""
    series = ct_series()
    series.datasets[3].PixelSpacing = ["0.82", "0.82"]
    write_series(folder, series.datasets)
    return series


def colour(folder: Path) -> SyntheticSeries:
    """Three samples a voxel."""
    series = ct_series(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    for dataset, plane in zip(series.datasets, series.stored, strict=True):
        dataset.PixelData = np.repeat(plane[..., None], 3, axis=-1).tobytes()
    write_series(folder, series.datasets)
    return series


def malformed_tags(folder: Path) -> SyntheticSeries:
    """Names where numbers stand, a number that is none, an identifier that is too long: geometry is right."""
    series = ct_series(StudyID="a StudyID longer than sixteen characters")
    for dataset in series.datasets:
        set_raw(dataset, "SeriesNumber", "IS", b"Doe^Jane")
        set_raw(dataset, "PatientWeight", "DS", b"Doe^Jane")
        set_raw(dataset, "SliceThickness", "DS", b"Doe^Jane")
        set_raw(dataset, "AcquisitionNumber", "IS", b"1.5 ")
        set_raw(dataset, "PatientBirthDate", "DA", b"Doe^Jane")
    write_series(folder, series.datasets)
    return series


def names_for_positions(folder: Path) -> SyntheticSeries:
    """A patient's name where positions stand."""
    series = ct_series()
    for dataset in series.datasets:
        set_raw(dataset, "ImagePositionPatient", "DS", b"Doe^Jane\\0\\0 ")
    write_series(folder, series.datasets)
    return series


def shuffled_frames(folder: Path) -> SyntheticSeries:
    """One multi-frame object; its frames are in no order, and have slopes of their own."""
    slopes = [1.0, 2.0, 0.5, 1.25, 1.5, 1.0, 0.75, 3.0]
    series = ct_series(slope=slopes, intercept=[-1024.0 - index for index in range(8)])
    write_series(folder, [enhanced_ct(series, order=[3, 0, 6, 1, 7, 2, 5, 4])])
    return series


def secondary_capture(folder: Path) -> SyntheticSeries:
    """A series and a picture of a screen in a series of its own."""
    series = ct_series()
    capture = ct_series((1, 20, 24), series=77, SOPClassUID=SecondaryCaptureImageStorage).datasets
    write_series(folder, series.datasets)
    write_series(folder / "captures", capture)
    return series


RIGHT: dict[str, Trap] = {
    "clean": _plain(),
    "shuffled": shuffled,
    "reversed": reversed_names,
    "prone": _plain(orientation=PRONE),
    "coronal": _plain(orientation=CORONAL),
    "oblique": _plain(orientation=OBLIQUE),
    "non-square": _plain(pixel_spacing_mm=(0.7, 0.9)),
    "signed": _plain(signed=True, bits_stored=16, intercept=0.0),
    "signed 12 bit": _plain(signed=True, bits_stored=12),
    "padding": padding,
    "slope per slice": _plain(slope=[1.0, 2.0, 0.5, 1.25, 1.5, 1.0, 0.75, 3.0], intercept=list(range(-1030, -1022))),
    "slopes that are no whole numbers": _plain(slope=0.12345678, intercept=-1000.25),
    "the same file twice": same_file_twice,
    "scout in the series": scout_in_series,
    "no frame of reference": _plain(FrameOfReferenceUID=None),
    "lossy": _plain(LossyImageCompression="01", LossyImageCompressionRatio="12.5"),
    "sheared by 0.05 degrees": _plain(shear_degrees=0.05),
    "one slice": _plain(shape=(1, 20, 24)),
    "malformed tags": malformed_tags,
    "multi-frame": shuffled_frames,
    "secondary capture beside it": secondary_capture,
}
"""Are read, and give back their voxels and places."""
REFUSED: dict[str, Trap] = {
    "two reconstructions": two_reconstructions,
    "time points": time_points,
    "missing slice": missing_slice,
    "changing step": changing_step,
    "gantry tilt": gantry_tilt(),
    "gantry tilt without the tag": gantry_tilt(degrees=15.0, with_tag=False),
    "sheared by 0.6 degrees": _plain(shear_degrees=0.6),
    "no positions": no_positions,
    "truncated file": truncated_file,
    "slice of another size": slice_of_another_size,
    "slice of another orientation": slice_of_another_orientation,
    "slice of another spacing": slice_of_another_spacing,
    "colour": colour,
    "one slice without thickness": _plain(shape=(1, 20, 24), SliceThickness=None),
    "names for positions": names_for_positions,
}
"""Are refused by name."""
