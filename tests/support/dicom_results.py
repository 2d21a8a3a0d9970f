"""What the writers of DICOM objects are given in tests: a series as its headers say, segments, and a maker."""

from pathlib import Path
from typing import Any

import numpy as np

from ctseg.files.dicom.headers import find_series
from ctseg.files.dicom.results import DicomResult, Maker, Segment
from ctseg.files.dicom.series import CtSeries
from ctseg.presentation import Code, LabelPresentation
from tests.support.dicom_series import SyntheticSeries, enhanced_ct, write_series

ANATOMICAL = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
LIVER = LabelPresentation(
    category=ANATOMICAL, type=Code(value="10200004", scheme="SCT", meaning="Liver"), colour=(40, 140, 60)
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
    return _found(write_series(folder, made.datasets, names=names))


def write_enhanced_ct(folder: Path, made: SyntheticSeries, order: list[int]) -> CtSeries:
    """Write a series as one multi-frame file with its frames in an order, and return what its headers say."""
    return _found(write_series(folder, [enhanced_ct(made, order=order)]))


def _found(paths: list[Path]) -> CtSeries:
    (series,) = find_series(paths).series
    assert series.problem is None
    return series


def result_of(series: CtSeries, **changed: Any) -> DicomResult:
    """Return what an object of a series says."""
    return DicomResult(**{"series": series, "segments": SEGMENTS, "maker": MAKER} | changed)


def some_labels(shape: tuple[int, ...], values: tuple[int, ...] = (1, 2, 5)) -> "np.ndarray[Any, Any]":
    """Return labels in no order that a mistake could keep, without any in the first slice."""
    labels = np.random.default_rng(7).choice(np.array((0, *values), np.uint8), shape)
    labels[0] = 0
    return labels
