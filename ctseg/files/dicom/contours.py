"""Contours along the edges of pixels, which give back the very voxels, by the even-odd rule and as a union.

A contour is one part of a label in one slice, in which pixels are connected by their edges. Its corners lie at
half-integer rows and columns, half a pixel from the nearest centre. A hole is joined to what is around it by a channel
of no width (DICOM's keyhole), so that no contour lies within another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.compiled.loading import load_kernels

KERNELS = "ctseg.files.dicom.contour_kernels"
MAX_TEXT_BYTES = 65_534
"""Of a contour's points: what explicit VR holds in a decimal string, which many archives store and send."""
_MAX_BYTES_PER_POINT = 3 * 17


@dataclass(frozen=True)
class Contour:
    """One closed contour in one slice.

    Attributes:
        colour: Whose it is.
        points: How many.
        text: Their coordinates in millimetres as DICOM's decimal strings, as ContourData holds them; of even length.
    """

    colour: int
    points: int
    text: bytes


@dataclass(frozen=True, eq=False)
class Plane:
    """Where the pixels of a slice lie, in the frame of the files.

    Attributes:
        origin_mm: (3,) centre of the first pixel.
        row_step_mm: (3,) from a pixel to that of the next row.
        column_step_mm: (3,) from a pixel to that of the next column.
    """

    origin_mm: npt.NDArray[np.float64]
    row_step_mm: npt.NDArray[np.float64]
    column_step_mm: npt.NDArray[np.float64]


def contours_of(colours: npt.NDArray[np.uint16], plane: Plane) -> Iterator[Contour]:
    """Yield the contours of a slice.

    The time grows with the pixels of the slice, whatever is in it. A part whose points would need more than
    :data:`MAX_TEXT_BYTES` is cut along rows.

    Args:
        colours: (rows, columns); 0 is none.
        plane: Where the pixels lie.
    """
    rows = np.flatnonzero(colours.any(axis=1))
    if not rows.size:
        return
    columns = np.flatnonzero(colours.any(axis=0))
    first_row, first_column = int(rows[0]), int(columns[0])
    colours = colours[first_row : rows[-1] + 1, first_column : columns[-1] + 1]
    corner_mm = plane.origin_mm + (first_row - 0.5) * plane.row_step_mm + (first_column - 0.5) * plane.column_step_mm
    found = _traced(colours, Plane(corner_mm, plane.row_step_mm, plane.column_step_mm))
    long = {contour.colour for contour in found if len(contour.text) > MAX_TEXT_BYTES}
    yield from (contour for contour in found if contour.colour not in long)
    if long:
        kept = np.where(np.isin(colours, list(long)), colours, np.uint16(0))
        middle = len(kept) // 2
        for half, row in ((kept[:middle], 0), (kept[middle:], middle)):
            origin = plane.origin_mm + (first_row + row) * plane.row_step_mm + first_column * plane.column_step_mm
            yield from contours_of(half, Plane(origin, plane.row_step_mm, plane.column_step_mm))


def _traced(colours: npt.NDArray[np.uint16], vertices: Plane) -> list[Contour]:
    kernels = load_kernels(KERNELS)
    padded = np.pad(np.ascontiguousarray(colours), 1)
    shape = (padded.shape[0] - 1, padded.shape[1] - 1)
    seen, channels, counts = np.zeros(shape, np.uint8), np.zeros(shape, np.int32), np.zeros(2, np.int64)
    kernels.join_holes(padded, seen, channels, counts)
    number, most = (int(count) for count in counts)
    points, ends, owners = np.empty((most, 2), np.int32), np.empty(number, np.int64), np.empty(number, np.uint16)
    kernels.write_contours(padded, seen, channels, points, ends, owners)
    text, text_ends = np.empty(most * _MAX_BYTES_PER_POINT, np.uint8), np.empty(number, np.int64)
    kernels.write_texts(
        points, ends, vertices.origin_mm, vertices.row_step_mm, vertices.column_step_mm, text, text_ends
    )
    counted = np.diff(ends, prepend=0).tolist()
    begins = [0, *text_ends.tolist()]
    return [
        Contour(int(owner), counted[index], text[begins[index] : begins[index + 1]].tobytes())
        for index, owner in enumerate(owners.tolist())
    ]


def mask_of(contours: "list[npt.NDArray[np.float64]]", shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels of a slice whose centres lie within an odd number of its contours.

    A centre on a contour belongs to the inside that begins there along rows and columns, not to that which ends there.

    Args:
        contours: Each (points, 2): row and column, where pixel centres are whole numbers; finite.
        shape: Rows and columns of the slice.
    """
    kernels = load_kernels(KERNELS)
    plane: npt.NDArray[Any] = np.zeros(shape, np.uint8)
    for points in contours:
        kernels.toggle_contour(np.ascontiguousarray(points), plane)
    kernels.fill_toggled(plane)
    return plane.view(np.bool_)


def cross(contours: "Sequence[npt.NDArray[np.float64]]", shape: tuple[int, int]) -> bool:
    """Whether a pixel's centre lies in two contours of a slice neither of which lies in the other.

    Args:
        contours: See :func:`mask_of`.
        shape: Rows and columns of the slice.
    """
    depth = np.zeros(shape, np.uint16)
    parts = [_inside(points, shape) for points in contours]
    for window, mask in sorted(parts, key=lambda part: np.count_nonzero(part[1]), reverse=True):
        depths = depth[window][mask]
        if depths.size and depths.min() != depths.max():
            return True
        depth[window] += mask
    return False


def _inside(
    points: npt.NDArray[np.float64], shape: tuple[int, int]
) -> tuple[tuple[slice, slice], npt.NDArray[np.bool_]]:
    """Return the rows and columns that a contour reaches, and the pixels of them that lie within it."""
    first = np.clip(np.floor(points.min(axis=0)), 0, np.array(shape) - 1).astype(int)
    last = np.clip(np.ceil(points.max(axis=0)), first, np.array(shape) - 1).astype(int)
    rows, columns = (last - first + 1).tolist()
    window = (slice(first[0], first[0] + rows), slice(first[1], first[1] + columns))
    return window, mask_of([points - first], (rows, columns))
