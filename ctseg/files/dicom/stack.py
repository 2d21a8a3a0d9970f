"""The rules by which slices make one volume; what does not is refused, with the measured figure and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ctseg.files.dicom.frames import Frame

Vectors: TypeAlias = npt.NDArray[np.float64]

_ORIENTATION_TOLERANCE = 1e-3
"""Largest difference between the direction cosines of two slices."""
_SPACING_TOLERANCE_MM = 1e-4
"""Largest difference between the spacings of two slices."""
_SAME_PLACE_MM = 1e-3
"""Slices that lie closer together are two of the same place."""
_OFF_THE_LINE_MM, _OFF_THE_LINE_STEPS = 0.05, 0.02
"""How far a slice may lie from its place at equal steps, whichever is more."""
_MOST_OFF_STEPS = 0.2
"""How far at most, where steps are small: one slice that is missing moves another one by 0.25 of a step at least."""
_LOST_STEPS = 0.1
"""How far a gap may be from a whole number of steps to look like slices that are missing."""
_SHEAR_MM, _SHEAR_VOXELS = 0.1, 0.05
"""How far slices, or rows, may be displaced over the whole of them, whichever is more."""
_GAP_STEPS = 1.5
"""From how many times the thickness of a slice on a step is told."""
_TOLD_MM = 0.01
"""Displacements below are not told."""
_FARTHEST_MM = 1e5
_SMALLEST_MM, _LARGEST_MM = 1e-3, 1e3
"""Of a voxel."""
_SMALLEST_SLOPE, _LARGEST_RESCALE = 1e-7, 1e6
_OF_ONE_VOLUME = ("StackID", "TemporalPositionIndex", "FrameType")
"""What all frames of a volume have in common."""
_NOT_IN_TURN = (
    "TemporalPositionIdentifier", "AcquisitionNumber", "AcquisitionTime", "FrameAcquisitionNumber", "ConvolutionKernel",
    "ImageType",
)  # fmt: skip
"""What may change along a volume, such as from one rotation to the next, but not back and forth."""
_SHOWN = 3


class StackError(Exception):
    """Why slices make no volume, for people: the measured figure, and what to do."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that make a volume, in order along their normal.

    Attributes:
        order: Which of the slices is the first, the second, and so on.
        along_x: Unit vector along a row, in LPS.
        along_y: Unit vector along a column, at right angles to it.
        pixel_spacing_mm: Between rows, between columns.
        step_mm: From slice to slice, in LPS, as the headers say; nearly along the normal.
        warnings: For people.
    """

    order: tuple[int, ...]
    along_x: Vectors
    along_y: Vectors
    pixel_spacing_mm: tuple[float, float]
    step_mm: Vectors
    warnings: tuple[str, ...] = ()


def stack_of(frames: Sequence[Frame], rows: int) -> Stack:
    """Put slices in order.

    Args:
        frames: At least one.
        rows: Of each.

    Raises:
        StackError: They make no volume.
    """
    _check_rescale(frames)
    positions = _positions_of(frames)
    spacing = _pixel_spacing_of(frames)
    orientation = _orientation_of(frames)
    along_x, along_y, told_of_axes = _axes_of(orientation, rows * spacing[0], _most_displaced_mm(spacing))
    normal = np.cross(along_x, along_y)
    order = tuple(np.argsort(positions @ normal, kind="stable").tolist())
    if len(order) == 1:
        length, told_of_step = _step_of_one(frames[0])
        step, told_of_gaps = length * normal, ""
    else:
        positions = positions[list(order)]
        _check_one_volume([frames[index] for index in order], positions @ normal)
        step = (positions[-1] - positions[0]) / (len(order) - 1)
        _check_steps(positions, step, normal)
        told_of_step = _check_shear(step, normal, len(order), _most_displaced_mm(spacing))
        told_of_gaps = _gaps_told(frames, float(np.linalg.norm(step)))
    warnings = tuple(told for told in (told_of_axes, told_of_step, told_of_gaps) if told)
    return Stack(order, along_x, along_y, spacing, step, warnings)


def _check_rescale(frames: Sequence[Frame]) -> None:
    missing = sum(frame.slope is None or frame.intercept is None for frame in frames)
    if missing:
        raise StackError(
            f"what makes numbers HU (RescaleSlope, RescaleIntercept) is missing in {missing} of {len(frames)} slices: "
            "export the series again"
        )
    for frame in frames:
        slope, intercept = frame.slope or 0.0, frame.intercept or 0.0
        if not _SMALLEST_SLOPE <= abs(slope) <= _LARGEST_RESCALE or abs(intercept) > _LARGEST_RESCALE:
            raise StackError(
                f"a slice has the slope {slope:g} and the intercept {intercept:g} (RescaleSlope, RescaleIntercept), "
                "which give no HU: export the series again"
            )


def _positions_of(frames: Sequence[Frame]) -> Vectors:
    """Return the positions, (slice, xyz)."""
    found = [frame.position_lps_mm for frame in frames if frame.position_lps_mm is not None]
    if missing := len(frames) - len(found):
        raise StackError(
            f"positions (ImagePositionPatient) are missing in {missing} of {len(frames)} slices: export the series "
            "with positions"
        )
    positions = np.array(found, dtype=np.float64)
    if (farthest := np.abs(positions).max()) > _FARTHEST_MM:
        raise StackError(
            f"a slice lies {farthest:.3g} mm from the origin (ImagePositionPatient), which cannot be: export the "
            "series again"
        )
    return positions


def _pixel_spacing_of(frames: Sequence[Frame]) -> tuple[float, float]:
    """Return the spacing between rows and between columns."""
    found = [frame.pixel_spacing_mm for frame in frames if frame.pixel_spacing_mm is not None]
    if missing := len(frames) - len(found):
        raise StackError(
            f"sizes of voxels (PixelSpacing) are missing in {missing} of {len(frames)} slices: export the series again"
        )
    spacings = np.array(found, dtype=np.float64)
    lowest, highest = spacings.min(axis=0), spacings.max(axis=0)
    for length in (lowest.min(), highest.max()):
        if not _SMALLEST_MM <= length <= _LARGEST_MM:
            raise StackError(f"a voxel is {length:g} mm large (PixelSpacing), which cannot be: export the series again")
    if (highest - lowest).max() > _SPACING_TOLERANCE_MM:
        axis = int((highest - lowest).argmax())
        raise StackError(
            f"its slices have voxels of {lowest[axis]:.6g} to {highest[axis]:.6g} mm (PixelSpacing): give each spacing "
            "a series of its own"
        )
    rows, columns = np.median(spacings, axis=0).tolist()
    return rows, columns


def _orientation_of(frames: Sequence[Frame]) -> Vectors:
    """Return the orientation of all slices, (6,)."""
    found = [frame.orientation_lps for frame in frames if frame.orientation_lps is not None]
    if missing := len(frames) - len(found):
        raise StackError(
            f"orientations (ImageOrientationPatient) are missing in {missing} of {len(frames)} slices: export the "
            "series with orientations"
        )
    orientations = np.array(found, dtype=np.float64)
    middle: Vectors = orientations[np.lexsort(orientations.T)[len(frames) // 2]]
    others = np.abs(orientations - middle).max(axis=1) > _ORIENTATION_TOLERANCE
    if others.any():
        degrees = max(_degrees_between(orientation, middle) for orientation in orientations[others])
        raise StackError(
            f"another orientation (ImageOrientationPatient) in {others.sum()} of {len(frames)} slices, turned by up to "
            f"{degrees:.3g} degrees: give each orientation a series of its own"
        )
    return middle


def _axes_of(orientation: Vectors, height_mm: float, limit_mm: float) -> tuple[Vectors, Vectors, str]:
    """Return unit vectors along rows and columns, at right angles, and what is told of them."""
    along_x, along_y = orientation[:3], orientation[3:]
    lengths = (float(np.linalg.norm(along_x)), float(np.linalg.norm(along_y)))
    if max(abs(length - 1) for length in lengths) > _ORIENTATION_TOLERANCE:
        raise StackError(
            f"expected unit vectors along rows and columns (ImageOrientationPatient), found lengths of "
            f"{lengths[0]:.4g} and {lengths[1]:.4g}: export the series again"
        )
    along_x, along_y = along_x / lengths[0], along_y / lengths[1]
    skew = float(along_x @ along_y)
    displaced = abs(skew) * height_mm
    if displaced > limit_mm:
        raise StackError(
            f"its rows and columns are not at right angles (ImageOrientationPatient): off by "
            f"{abs(np.degrees(np.arcsin(np.clip(skew, -1, 1)))):.3g} degrees, {displaced:.3g} mm over a slice, where "
            f"{limit_mm:.2g} mm are allowed: export the series again"
        )
    along_y = along_y - skew * along_x
    told = f"rows and columns off a right angle by {displaced:.2g} mm over a slice: made orthogonal"
    return along_x, along_y / np.linalg.norm(along_y), told if displaced > _TOLD_MM else ""


def _most_displaced_mm(spacing_mm: tuple[float, float]) -> float:
    return max(_SHEAR_MM, _SHEAR_VOXELS * min(spacing_mm))


def _step_of_one(frame: Frame) -> tuple[float, str]:
    """Return the length of the step of a single slice, and what is told of it."""
    if frame.thickness_mm is None or not _SMALLEST_MM <= frame.thickness_mm <= _LARGEST_MM:
        raise StackError(
            "it has one slice, which does not say how thick it is (SpacingBetweenSlices, SliceThickness): add its "
            "neighbours or its thickness"
        )
    return frame.thickness_mm, f"one slice only, taken to be {frame.thickness_mm:g} mm thick ({frame.thickness_from})"


def _check_one_volume(frames: Sequence[Frame], places_mm: Vectors) -> None:
    """Refuse slices of several volumes.

    Args:
        frames: In order of their places.
        places_mm: Where they lie along the normal.
    """
    apart = _what_differs(frames)
    places = 1 + int((np.diff(places_mm) >= _SAME_PLACE_MM).sum())
    if places < len(frames):
        told = f", which differ in {' and '.join(apart)}" if apart else ""
        raise StackError(
            f"its {len(frames)} slices lie at {places} places, so it holds several volumes, reconstructions or points "
            f"in time{told}: give each a series of its own"
        )
    of_frames = [keyword for keyword in _OF_ONE_VOLUME if len(_values(frames, keyword)) > 1]
    if of_frames:
        raise StackError(
            f"its frames differ in {' and '.join(of_frames)}, so it holds several volumes: give each a "
            "series of its own"
        )
    if in_turn := [keyword for keyword in _NOT_IN_TURN if _take_turns([_value(frame, keyword) for frame in frames])]:
        raise StackError(
            f"its slices alternate in {' and '.join(in_turn)}, so it holds several volumes between whose slices those "
            "of the others lie: give each a series of its own"
        )


def _take_turns(values: Sequence[str]) -> bool:
    """Whether values come back more often than by one part of a volume, for each, that was taken once more."""
    changes = sum(one != other for one, other in pairwise(values))
    return changes > 2 * (len(set(values)) - 1)


def _what_differs(frames: Sequence[Frame]) -> list[str]:
    """Return the keywords of what tells the volumes of a series apart: few values, each of several slices."""
    keywords = dict.fromkeys(keyword for frame in frames for keyword, _ in frame.told_apart)
    return [keyword for keyword in keywords if 1 < len(_values(frames, keyword)) <= len(frames) // 2]


def _values(frames: Sequence[Frame], keyword: str) -> set[str]:
    return {value for frame in frames for key, value in frame.told_apart if key == keyword}


def _value(frame: Frame, keyword: str) -> str:
    return next((value for key, value in frame.told_apart if key == keyword), "")


def _check_steps(positions: Vectors, step: Vectors, normal: Vectors) -> None:
    """Refuse slices that do not follow each other at equal steps."""
    length = float(np.linalg.norm(step))
    limit = _most_off_mm(length)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    if off.max() <= limit:
        return
    places = positions @ normal
    gaps = np.diff(places)
    usual = float(np.sort(gaps)[(gaps.size - 1) // 2])
    odd = np.flatnonzero(np.abs(gaps - usual) > _most_off_mm(usual))
    if not odd.size:
        worst = int(off.argmax())
        raise StackError(
            f"slice {worst + 1} of {len(positions)}, at {places[worst]:.6g} mm along the normal, lies {off[worst]:.3g} "
            f"mm beside its place at equal steps of {length:.4g} mm, where {limit:.2g} mm are allowed: export it again"
        )
    steps = ", ".join(f"{gaps[at]:.4g} mm from {places[at]:.6g} to {places[at + 1]:.6g} mm" for at in odd[:_SHOWN])
    more = f" and at {odd.size - _SHOWN} more places" if odd.size > _SHOWN else ""
    found = f"its slices lie {usual:.4g} mm apart, but {steps}{more} (along their normal)"
    multiples = gaps[odd] / usual
    are_whole = bool((np.abs(multiples - multiples.round()) < _LOST_STEPS).all() and (multiples > 1.5).all())
    if are_whole and not (np.diff(odd) == 1).any():
        lost = int((multiples.round() - 1).sum())
        raise StackError(f"{found}: {lost} slice{'s are' if lost > 1 else ' is'} missing: copy the whole series again")
    raise StackError(f"{found}: export it with equal steps, or each part as a series of its own")


def _most_off_mm(step_mm: float) -> float:
    return min(max(_OFF_THE_LINE_MM, _OFF_THE_LINE_STEPS * step_mm), _MOST_OFF_STEPS * step_mm)


def _check_shear(step: Vectors, normal: Vectors, count: int, limit_mm: float) -> str:
    """Refuse a step that is not along the normal, and return what is told of one that nearly is."""
    along = float(step @ normal)
    beside = float(np.linalg.norm(step - along * normal))
    displaced, degrees = beside * (count - 1), float(np.degrees(np.arctan2(beside, along)))
    if displaced > limit_mm:
        raise StackError(
            f"its slices are sheared by {degrees:.3g} degrees, as by a tilted gantry: the last one lies "
            f"{displaced:.3g} mm beside the normal of the first, where {limit_mm:.2g} mm are allowed: have the series "
            "reconstructed or resampled without tilt"
        )
    told = f"sheared by {degrees:.2g} degrees, {displaced:.2g} mm from the first slice to the last: made orthogonal"
    return told if displaced > _TOLD_MM else ""


def _gaps_told(frames: Sequence[Frame], step_mm: float) -> str:
    """Return what is told of slices that are much thinner than the step from one to the next."""
    for frame in frames:
        if frame.thickness_mm is not None and step_mm > _GAP_STEPS * frame.thickness_mm:
            return (
                f"its slices lie {step_mm:.4g} mm apart, where {frame.thickness_mm:g} mm are said "
                f"({frame.thickness_from}): what lies between them is not seen, or every other slice is missing"
            )
    return ""


def _degrees_between(one: Vectors, other: Vectors) -> float:
    """Return the angle between two orientations: the larger one of rows and columns."""
    distances = [float(np.linalg.norm(one[part] - other[part])) for part in (slice(0, 3), slice(3, 6))]
    return float(np.degrees(2 * np.arcsin(min(1.0, max(distances) / 2))))
