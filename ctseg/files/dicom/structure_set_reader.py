"""Regions of RT Structure Sets (RTSTRUCT), by anybody, as voxels of the series that they are of."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from ctseg.errors import CtsegError, InputError
from ctseg.files.dicom.contours import cross, mask_of
from ctseg.files.dicom.elements import items_of, text_of, uid_of, whole_number_of, words_of
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.series import CtSeries
from ctseg.files.identity import printable
from ctseg.files.regular import open_regular

OFF_SLICE = 0.1
"""Farthest that a point may lie from the nearest slice, as a share of the step between slices."""
_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_CONTOUR_DATA = 0x30060050
_UNDEFINED_LENGTH = 0xFFFFFFFF

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]


def region_names(dataset: Dataset) -> Mapping[int, str]:
    """Return the names of a structure set's regions by their numbers, each on one line."""
    rois = items_of(dataset, "StructureSetROISequence")
    numbered = ((whole_number_of(roi, "ROINumber"), printable(text_of(roi, "ROIName"))) for roi in rois)
    return {number: name for number, name in numbered if number is not None and name}


def read_structure_set(path: Path, series: CtSeries, names: Collection[str] | None = None) -> Mapping[str, Mask]:
    """Read the regions of a structure set.

    A voxel belongs to a region if its centre lies within an odd number of the region's contours in its slice, so that
    keyholes and contours within contours are holes. A centre on a contour counts where the inside begins there along
    rows and columns. Where the contours lie is what counts, not which images they name.

    Args:
        path: The structure set.
        series: On whose slices its contours lie.
        names: Regions that are read; None: all.

    Returns:
        (z, y, x) by ROIName; regions of one name are joined. One without contours has no voxels. Points and open
        contours are passed over, and so are contours that repeat another one; a warning tells it.

    Raises:
        InputError: It is no structure set, cannot be read, or its contours lie elsewhere than the slices of the series,
            whose label begins the message.
    """
    try:
        with quiet(), open_regular(path) as file:
            return _Read(pydicom.dcmread(file), series).regions(names)
    except CtsegError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{series.label}: its structure set cannot be read: {reason}") from error
    except Exception as error:  # whatever pydicom makes of it
        raise InputError(
            f"{series.label}: its structure set cannot be read ({type(error).__name__}): it is cut off, or no valid "
            "DICOM"
        ) from error


def is_whole(dataset: Dataset) -> bool:
    """Whether a file holds its regions to their ends; pydicom takes what is there of an element for all of it."""
    elements: list[Any] = [dataset.get_item(tag) for tag in dataset.keys()]  # noqa: SIM118 (values are converted)
    raw = [element for element in elements if isinstance(element, RawDataElement)]
    is_there = all(keyword in dataset for keyword in ("StructureSetROISequence", "ROIContourSequence"))
    return is_there and all(element.length in (len(element.value or b""), _UNDEFINED_LENGTH) for element in raw)


def _edges(points: npt.NDArray[np.float64]) -> bytes:
    """Return what contours have in common that enclose the same, wherever they begin and whichever way they go."""
    others = np.roll(points, -1, axis=0)
    order = np.lexsort(points.T[::-1]).argsort()
    is_later = order > np.roll(order, -1)
    edges = np.where(is_later[:, None], np.hstack([others, points]), np.hstack([points, others]))
    edges = edges[(points != others).any(axis=1)]
    content: bytes = edges[np.lexsort(edges.T)].tobytes()
    return content


def _reaches_out(points: npt.NDArray[np.float64], shape: tuple[int, int]) -> bool:
    """Whether a contour, in rows and columns, leaves the slice by more than its outermost pixels."""
    return bool((points.min(axis=0) < -1).any() or (points.max(axis=0) > shape).any())


class _Read:
    """A structure set that is held against a series."""

    def __init__(self, dataset: Dataset, series: CtSeries) -> None:
        self._dataset = dataset
        self._series = series
        if uid_of(dataset, "SOPClassUID") != _STRUCTURE_SET:
            raise self._refused("expected an RT Structure Set, found another object")
        if not is_whole(dataset):
            raise self._refused("it is cut off: copy it again")
        self._names = region_names(dataset)
        numbers = [whole_number_of(roi, "ROINumber") for roi in items_of(dataset, "StructureSetROISequence")]
        if doubled := len(numbers) - len(set(numbers)):
            raise self._refused(
                f"{doubled} of its {len(numbers)} regions have the ROINumber of another one: export it again"
            )
        along_x, along_y = np.array(series.orientation_lps).reshape(2, 3)
        self._axes = np.stack([np.cross(along_x, along_y), along_y / series.pixel_spacing_mm[0],
                               along_x / series.pixel_spacing_mm[1]], axis=1)  # fmt: skip
        self._positions = np.array([slice_.position_lps_mm for slice_ in series.slices])
        self._step_mm = float(series.step_lps_mm @ self._axes[:, 0])

    def regions(self, names: Collection[str] | None) -> Mapping[str, Mask]:
        """Return the regions of some names."""
        frames = {
            whole_number_of(roi, "ROINumber"): uid_of(roi, "ReferencedFrameOfReferenceUID")
            for roi in items_of(self._dataset, "StructureSetROISequence")
        }
        shape = (len(self._series.slices), self._series.rows, self._series.columns)
        found = {name: np.zeros(shape, np.bool_) for name in self._names.values() if names is None or name in names}
        for roi in items_of(self._dataset, "ROIContourSequence"):
            number = whole_number_of(roi, "ReferencedROINumber")
            name = self._names.get(number) if number is not None else None
            if name in found:
                self._same_frame_of_reference(name, frames[number])
                by_slice = self._by_slice(name, roi)
                for z, contours in by_slice.items():
                    found[name][z] |= mask_of(contours, shape[1:])
                self._tell_of_places(name, by_slice, shape[1:])
        return found

    def _tell_of_places(
        self, name: str, by_slice: Mapping[int, list[npt.NDArray[np.float64]]], shape: tuple[int, int]
    ) -> None:
        """Tell of contours that nobody draws on purpose."""
        outside = sum(_reaches_out(points, shape) for contours in by_slice.values() for points in contours)
        crossing = sum(len(contours) > 1 and cross(contours, shape) for contours in by_slice.values())
        told = [
            f"{outside} of its contours reach beyond the slices, and end there" if outside else "",
            f"contours cross in {crossing} slices, and what lies in two of them is taken as a hole" if crossing else "",
        ]
        if any(told):
            text = "; ".join(filter(None, told))
            logger.warning("%s: region %s of its structure set: %s", self._series.label, name, text)

    def _same_frame_of_reference(self, name: str, uid: str) -> None:
        expected = self._series.frame_of_reference_uid
        uid = uid or uid_of(self._dataset, "FrameOfReferenceUID")
        if uid and expected and uid != expected:
            raise self._refused(f"region {name} has another FrameOfReferenceUID: it was drawn on another series")

    def _by_slice(self, name: str, roi: Dataset) -> Mapping[int, list[npt.NDArray[np.float64]]]:
        """Return a region's closed contours by the index of their slice: (points, 2), row and column."""
        by_slice: dict[int, list[npt.NDArray[np.float64]]] = {}
        seen: set[bytes] = set()
        passed_over: Counter[str] = Counter()
        for kind, points in self._contours(name, roi):
            if kind not in _CLOSED:
                passed_over["points" if kind == "POINT" else "open contours"] += 1
            elif (content := _edges(points)) in seen:
                passed_over["contours that repeat another one"] += 1
            else:
                seen.add(content)
                z, in_slice = self._on_slice(name, points)
                by_slice.setdefault(z, []).append(in_slice)
        if passed_over:
            told = ", ".join(f"{count} {what}" for what, count in sorted(passed_over.items()))
            logger.warning("%s: region %s of its structure set: passed over %s", self._series.label, name, told)
        return by_slice

    def _contours(self, name: str, roi: Dataset) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
        for contour in items_of(roi, "ContourSequence"):
            (kind,) = words_of(contour, "ContourGeometricType")[:1]
            raw = contour.get_item(_CONTOUR_DATA)
            text = raw.value if isinstance(raw, RawDataElement) else None
            values = np.array((text or b"").strip(b" \0").split(b"\\")).astype(np.float64)
            count = whole_number_of(contour, "NumberOfContourPoints")
            if len(values) % 3 or not np.isfinite(values).all() or (count is not None and 3 * count != len(values)):
                raise self._refused(
                    f"region {name}: expected x, y and z for each of {count} points, found {len(values)} values, or "
                    "values that are no numbers"
                )
            yield kind, values.reshape(-1, 3)

    def _on_slice(self, name: str, points: npt.NDArray[np.float64]) -> tuple[int, npt.NDArray[np.float64]]:
        heights = (points - self._positions[0]) @ self._axes[:, 0]
        z = round(float(np.clip(np.median(heights) / self._step_mm, -1, len(self._positions))))
        nearest = min(max(z, 0), len(self._positions) - 1)
        placed = (points - self._positions[nearest]) @ self._axes
        off_mm = float(np.abs(placed[:, 0]).max())
        if not off_mm <= OFF_SLICE * self._step_mm:
            raise self._refused(
                f"region {name}: a contour lies {off_mm:.3g} mm off the nearest slice, "
                f"{OFF_SLICE * self._step_mm:.3g} mm are allowed (a tenth of the step between slices): draw it on the "
                "slices of this series"
            )
        return nearest, placed[:, 1:]

    def _refused(self, why: str) -> InputError:
        return InputError(f"{self._series.label}: its structure set is refused: {why}")
