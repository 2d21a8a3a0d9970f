"""Segments of DICOM Segmentation objects (SEG), by anybody, on the grid of the series that they are of."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels

from ctseg.errors import CtsegError, InputError
from ctseg.files.dicom.elements import text_of
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.series import CtSeries
from ctseg.files.identity import printable
from ctseg.files.regular import open_regular

SAME_PLACE_MM = 0.05
"""Farthest that a corner of a frame may lie from that of its slice."""
FRACTION_THAT_COUNTS = 0.5
"""Least fraction, of the highest, with which a voxel of a FRACTIONAL segment belongs to it."""
_PADDING_BITS = 128
"""Behind the last frame, that may be there; as many as a frame has are another one."""
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_Segment = npt.NDArray[np.bool_]


def segment_name(segment: Dataset) -> str:
    """Return the SegmentLabel of a segment, on one line."""
    return printable(text_of(segment, "SegmentLabel").strip())


def read_segments(path: Path, series: CtSeries, names: Collection[str] | None = None) -> Mapping[str, _Segment]:
    """Read the segments of a SEG: BINARY, LABELMAP, or FRACTIONAL, of which voxels count from one half on.

    Args:
        path: The SEG.
        series: Whose slices its frames lie on; a slice without frame has nothing.
        names: Segments that are read; None: all.

    Returns:
        (z, y, x) by SegmentLabel, in order of the segments' numbers; segments of one label are joined.

    Raises:
        InputError: It is no SEG, cannot be read, or lies elsewhere than the series, whose label begins the message.
    """
    try:
        with quiet(), open_regular(path) as file:
            return _Read(pydicom.dcmread(file), series).segments(names)
    except CtsegError:
        raise
    except OSError as error:
        raise InputError(f"{series.label}: its SEG cannot be read: {error.strerror or type(error).__name__}") from error
    except Exception as error:  # whatever pydicom and the decoders make of it
        raise InputError(
            f"{series.label}: its SEG cannot be read ({type(error).__name__}): it is cut off, or no valid DICOM"
        ) from error


class _Read:
    """A SEG that is held against a series."""

    def __init__(self, dataset: Dataset, series: CtSeries) -> None:
        self._dataset = dataset
        self._series = series
        if dataset.get("SOPClassUID") not in _SEGMENTATIONS:
            raise self._refused("expected a SEG, found another object")
        frame_of_reference = str(dataset.get("FrameOfReferenceUID", ""))
        if not frame_of_reference:
            raise self._refused("it has no FrameOfReferenceUID")
        if series.frame_of_reference_uid and frame_of_reference != series.frame_of_reference_uid:
            raise self._refused("it has another FrameOfReferenceUID: it was made on another series")
        if (dataset.Rows, dataset.Columns) != (series.rows, series.columns):
            raise self._refused(
                f"expected frames of {series.rows} x {series.columns} voxels as the slices, found {dataset.Rows} x "
                f"{dataset.Columns}"
            )
        self._frames = list(dataset.PerFrameFunctionalGroupsSequence)
        if len(self._frames) != int(dataset.NumberOfFrames):
            raise self._refused(f"it says {int(dataset.NumberOfFrames)} frames and describes {len(self._frames)}")

    def segments(self, names: Collection[str] | None) -> Mapping[str, _Segment]:
        """Return the segments of some names."""
        described = sorted(self._dataset.SegmentSequence, key=lambda item: int(item.SegmentNumber))
        name_of = {int(item.SegmentNumber): segment_name(item) for item in described}
        if len(name_of) < len(described):
            raise self._refused("several of its segments have one SegmentNumber")
        is_labelmap = self._dataset.SegmentationType == "LABELMAP"
        if is_labelmap:
            background = int(self._dataset.get("PixelPaddingValue", 0))
            name_of.pop(background, None)
            known = {0, background, *name_of}
        else:
            known = set(name_of)
        name_of = {number: name for number, name in name_of.items() if names is None or name in names}
        shape = self._series.geometry.shape
        found = {name: np.zeros(shape, np.bool_) for name in name_of.values()}
        slices = self._slices()
        if is_labelmap:
            for z, plane in zip(slices, self._planes(), strict=True):
                for number in np.unique(plane).tolist():
                    self._check_known(number, known)
                    if number in name_of:
                        found[name_of[number]][z] |= plane == number
            return found
        for z, frame, plane in zip(slices, self._frames, self._planes(), strict=True):
            number = int(self._group(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            self._check_known(number, known)
            if number in name_of:
                found[name_of[number]][z] |= self._belongs(plane)
        return found

    def _check_known(self, number: int, known: Collection[int]) -> None:
        if number not in known:
            raise self._refused(f"it has voxels of segment {number}, which it does not describe")

    def _planes(self) -> Iterator[npt.NDArray[Any]]:
        dataset = self._dataset
        if dataset.BitsAllocated != 1 or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            return iter_pixels(dataset, raw=True)
        return self._bits(np.frombuffer(dataset.PixelData, np.uint8))

    def _bits(self, packed: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield frames of single bits; a byte may belong to two of them, which pydicom 3.0 does not read one by one."""
        rows, columns = self._series.rows, self._series.columns
        size = rows * columns
        if 8 * len(packed) < size * len(self._frames):
            raise self._refused("it is cut off: its frames are not all there")
        if 8 * len(packed) >= size * (len(self._frames) + 1) + _PADDING_BITS:
            raise self._refused("it has voxels of more frames than it describes")
        for first in range(0, size * len(self._frames), size):
            bits = np.unpackbits(packed[first // 8 : -(-(first + size) // 8)], bitorder="little")
            yield bits[first % 8 :][:size].reshape(rows, columns)

    def _belongs(self, plane: npt.NDArray[Any]) -> _Segment:
        if self._dataset.SegmentationType == "BINARY" or self._dataset.BitsAllocated == 1:
            return np.asarray(plane != 0)
        return np.asarray(plane >= FRACTION_THAT_COUNTS * int(self._dataset.MaximumFractionalValue))

    def _slices(self) -> list[int]:
        """Return the slice of each frame, from 0."""
        series = self._series
        positions = np.array([item.position_lps_mm for item in series.slices])
        expected = self._corners(series.orientation_lps, series.pixel_spacing_mm)
        known: dict[tuple[float, ...], int] = {}
        found = []
        for frame in self._frames:
            position = _numbers(self._group(frame, "PlanePositionSequence").ImagePositionPatient, 3)
            orientation = _numbers(self._group(frame, "PlaneOrientationSequence").ImageOrientationPatient, 6)
            spacing = _numbers(self._group(frame, "PixelMeasuresSequence").PixelSpacing, 2)
            place = (*position, *orientation, *spacing)
            if place not in known:
                known[place] = z = int(np.argmin(np.linalg.norm(positions - position, axis=1)))
                shift = self._corners(orientation, spacing) + position - (expected + positions[z])
                if not (far := float(np.linalg.norm(shift, axis=1).max())) <= SAME_PLACE_MM:
                    raise self._refused(
                        f"a frame lies {far:.3g} mm from the nearest slice, {SAME_PLACE_MM} mm are allowed: make it "
                        "anew on this series"
                    )
            found.append(known[place])
        return found

    def _corners(self, orientation: Collection[float], spacing_mm: Collection[float]) -> npt.NDArray[np.float64]:
        """Return the corners of a slice, (4, 3), from the first one on."""
        axes = np.array(tuple(orientation)).reshape(2, 3)
        between_rows, between_columns = spacing_mm
        along_x = axes[0] * between_columns * (self._series.columns - 1)
        along_y = axes[1] * between_rows * (self._series.rows - 1)
        return np.array([np.zeros(3), along_x, along_y, along_x + along_y])

    def _group(self, frame: Dataset, keyword: str) -> Dataset:
        """Return a functional group of a frame, its own or the shared one."""
        for groups in (frame, self._dataset.SharedFunctionalGroupsSequence[0]):
            if keyword in groups:
                group: Dataset = groups[keyword].value[0]
                return group
        raise self._refused(f"its frames have no {keyword}")

    def _refused(self, why: str) -> InputError:
        return InputError(f"{self._series.label}: its SEG is refused: {why}")


def _numbers(values: Collection[Any], count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} numbers")
    return numbers
