"""What the writers of DICOM objects are given in tests: a series as its headers say, segments, and a maker."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from ctseg.files.dicom.results import DicomResult, Maker, Segment
from ctseg.files.dicom.series import CtSeries, CtSlice
from ctseg.presentation import Code, LabelPresentation
from tests.support.dicom_series import SyntheticSeries, enhanced_ct, write_series

ANATOMICAL = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
LIVER = LabelPresentation(
    category=ANATOMICAL, type=Code(value="10200004", scheme="SCT", meaning="Liver"), colour=(40, 140, 40)
)
KIDNEY = LabelPresentation(
    category=ANATOMICAL,
    type=Code(value="64033007", scheme="SCT", meaning="Kidney"),
    modifier=Code(value="7771000", scheme="SCT", meaning="Left"),
)
TUMOUR = LabelPresentation(
    category=Code(value="49755003", scheme="SCT", meaning="Morphologically Altered Structure"),
    type=Code(value="108369006", scheme="SCT", meaning="Neoplasm"),
    region=Code(value="10200004", scheme="SCT", meaning="Liver"),
    region_modifier=Code(value="24028007", scheme="SCT", meaning="Right"),
)
SEGMENTS = (
    Segment(1, "liver", (1,), LIVER),
    Segment(2, "kidney_left", (2,), KIDNEY),
    Segment(3, "liver_tumor", (5,), TUMOUR),
)
OVERLAPPING = (
    Segment(1, "liver", (1, 2, 5), LIVER),
    Segment(2, "tumour", (2, 5), TUMOUR),
    Segment(3, "core", (5,), TUMOUR),
)
MAKER = Maker("abdomen", "3", "0123456789abcdef" * 4, (("tile_step_size", 0.5), ("mirroring", True)))


def write_ct(folder: Path, made: SyntheticSeries) -> CtSeries:
    """Write a series in single slices whose names are in no order, and return what its headers say."""
    names = [f"{(index * 7) % 1009:04d}" for index in range(len(made.datasets))]
    paths = write_series(folder, made.datasets, names=names)
    slices = [_slice(path, 0, dataset, dataset) for path, dataset in zip(paths, made.datasets, strict=True)]
    return _series(made, made.datasets[0], slices)


def write_enhanced_ct(folder: Path, made: SyntheticSeries, order: list[int]) -> CtSeries:
    """Write a series as one multi-frame file with its frames in an order, and return what its headers say."""
    whole = enhanced_ct(made, order=order)
    (path,) = write_series(folder, [whole])
    slices = [_slice(path, order.index(index), whole, dataset) for index, dataset in enumerate(made.datasets)]
    return _series(made, whole, slices)


def result_of(series: CtSeries, **changed: Any) -> DicomResult:
    """Return what an object of a series says."""
    return DicomResult(**{"series": series, "segments": SEGMENTS, "maker": MAKER} | changed)


def some_labels(shape: tuple[int, ...], values: tuple[int, ...] = (1, 2, 5)) -> "np.ndarray[Any, Any]":
    """Return labels in no order that a mistake could keep, without any in the first slice."""
    labels = np.random.default_rng(7).choice(np.array((0, *values), np.uint8), shape)
    labels[0] = 0
    return labels


def _slice(path: Path, frame: int, of_file: Dataset, of_slice: Dataset) -> CtSlice:
    position = tuple(float(part) for part in of_slice.ImagePositionPatient)
    return CtSlice(path, frame, str(of_file.SOPInstanceUID), position, 1.0, -1024.0, "1.2.840.10008.1.2.1")


def _series(made: SyntheticSeries, of_file: Dataset, slices: list[CtSlice]) -> CtSeries:
    first = made.datasets[0]
    step = (np.array(slices[-1].position_lps_mm) - slices[0].position_lps_mm) / max(len(slices) - 1, 1)
    if len(slices) == 1:
        orientation = np.array(first.ImageOrientationPatient, float)
        step = np.cross(orientation[:3], orientation[3:]) * float(first.SliceThickness)
    return CtSeries(
        study_uid=str(first.StudyInstanceUID),
        series_uid=str(first.SeriesInstanceUID),
        sop_class_uid=str(of_file.SOPClassUID),
        study_id="1",
        series_number=3,
        description="Thorax 1.0",
        kernel="B30f",
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID", "")),
        slices=tuple(slices),
        rows=int(first.Rows),
        columns=int(first.Columns),
        orientation_lps=tuple(float(part) for part in first.ImageOrientationPatient),
        pixel_spacing_mm=tuple(float(part) for part in first.PixelSpacing),
        step_lps_mm=tuple(step.tolist()),
        stored_dtype="uint16",
        stored_range=(0, 4095),
    )
