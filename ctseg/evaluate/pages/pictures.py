"""Small pictures of planes of a scan with labels over them, made from full resolution, as data URIs."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ctseg.arrays import Shape3, Spacing
from ctseg.errors import missing_package
from ctseg.evaluate.pages.colours import RGB, lighter
from ctseg.files.geometry import Geometry, Reorientation, closest_ras_by_itk

if TYPE_CHECKING:
    from types import ModuleType

Bytes = npt.NDArray[np.uint8]

SOFT_TISSUE_HU = (-160.0, 240.0)
"""Least and most HU that a picture tells apart, unless another window is asked for."""
_FILL = 0.45
_SMALL = 4
"""Pixels of a label that get all of its colour, else nobody would see them."""
_DARKER = 0.3
"""What is left of the light beside an outline, so that it is seen on bright bone and on a veil of its own colour."""
_QUALITIES = (88, 70, 50, 30, 10)
_SMALL_FILE_BYTES = 3000
"""A JPEG of no more is written at the best quality."""
_MOST_BYTES_PER_PIXEL = 0.43
"""Of a larger one: three pictures of each of 200 cases then stay under 9 MB. Most CTs with labels take less at the best
quality."""


@dataclass(frozen=True)
class Planes:
    """Pictures of three planes through one voxel, as data URIs, in radiological order.

    Attributes:
        axial: The patient's right is on the left, front is up.
        coronal: The patient's right is on the left, the head is up.
        sagittal: Front is on the left, the head is up.
    """

    axial: str
    coronal: str
    sagittal: str


def thumbnail(
    plane: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    colours: Mapping[int, RGB],
    *,
    spacing_mm: tuple[float, float],
    window_hu: tuple[float, float] = SOFT_TISSUE_HU,
    outline: npt.NDArray[Any] | None = None,
    outline_colour: RGB | None = None,
    size: int = 160,
) -> str:
    """Return a picture of one plane, as wide and high as the patient is.

    A label keeps at least one pixel, in all of its colour, however small it is.

    Args:
        plane: (y, x), the first row is shown on top; HU.
        labels: Likewise: values that are shown as a veil; None: none are.
        colours: By value; what has none is not shown.
        spacing_mm: Distance between voxel centres along (y, x), in millimetres.
        window_hu: What is black and what is white.
        outline: As ``labels``: values whose outlines are shown, such as those of a reference.
        outline_colour: Of all outlines; None: a lighter one of their values.
        size: Pixels of the longer side.

    Returns:
        A data URI of a JPEG.

    Raises:
        SetupError: Pillow is not installed.
    """
    image = _pillow()
    height, width = _pixels(plane.shape, spacing_mm, size)
    low, high = window_hu
    grey = np.clip((plane.astype(np.float32) - low) * np.float32(255 / (high - low)), 0, 255).astype(np.uint8)
    resized = image.fromarray(grey).resize((width, height), image.Resampling.BICUBIC)
    picture = np.repeat(np.asarray(resized, dtype=np.float32)[:, :, None], 3, axis=2)
    if labels is not None:
        shown = _resized_labels(labels, colours, (height, width))
        for value, colour in colours.items():
            where = shown == value
            picture[where] += (_FILL if np.count_nonzero(where) > _SMALL else 1.0) * (
                np.array(colour, dtype=np.float32) - picture[where]
            )
    if outline is not None:
        shown = _resized_labels(outline, colours, (height, width))
        picture[_beside(np.isin(shown, list(colours)))] *= _DARKER
        for value, colour in colours.items():
            picture[_edge(shown == value)] = outline_colour or lighter(colour)
    return _data_uri(picture.round().astype(np.uint8))


def largest_section(labels: npt.NDArray[Any]) -> Shape3:
    """Return which plane along each of (z, y, x) cuts most labelled voxels; the middle ones where none is labelled.

    Args:
        labels: (z, y, x); 0 is background.
    """
    along_z = np.zeros(labels.shape[0], dtype=np.int64)
    along_y = np.zeros(labels.shape[1], dtype=np.int64)
    along_x = np.zeros(labels.shape[2], dtype=np.int64)
    for z, plane in enumerate(labels):
        along_z[z] = np.count_nonzero(plane)
        if along_z[z]:
            along_y += np.count_nonzero(plane, axis=1)
            along_x += np.count_nonzero(plane, axis=0)
    if not along_z.any():
        z, y, x = labels.shape
        return z // 2, y // 2, x // 2
    return int(along_z.argmax()), int(along_y.argmax()), int(along_x.argmax())


def three_planes(
    voxels: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None,
    colours: Mapping[int, RGB],
    geometry: Geometry,
    *,
    at: Shape3 | None = None,
    window_hu: tuple[float, float] = SOFT_TISSUE_HU,
    outline: npt.NDArray[Any] | None = None,
    outline_colour: RGB | None = None,
    size: int = 160,
) -> Planes:
    """Return pictures of the three planes through one voxel, along the axes of the grid, turned as radiologists look.

    Args:
        voxels: (z, y, x), HU.
        labels: Likewise, see :func:`thumbnail`.
        colours: Likewise.
        geometry: Where the voxels lie.
        at: The voxel; None: where :func:`largest_section` of the labels, or of the outlined ones, says.
        window_hu: See :func:`thumbnail`.
        outline: Likewise.
        outline_colour: Likewise.
        size: Likewise.
    """
    if at is None:
        counted = labels if labels is not None and labels.any() else outline
        z, y, x = voxels.shape
        at = largest_section(counted) if counted is not None else (z // 2, y // 2, x // 2)
    turn = radiological_turn(geometry)
    spacing_mm = turn.apply_to_spacing(geometry.spacing_mm)
    cut_at = _turned_index(at, turn, geometry.shape)

    def shown(axis: int) -> str:
        def cut(values: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
            return None if values is None else turn.apply(values).take(cut_at[axis], axis=axis)

        return thumbnail(
            turn.apply(voxels).take(cut_at[axis], axis=axis),
            cut(labels),
            colours,
            spacing_mm=_without(spacing_mm, axis),
            window_hu=window_hu,
            outline=cut(outline),
            outline_colour=outline_colour,
            size=size,
        )

    return Planes(axial=shown(0), coronal=shown(1), sagittal=shown(2))


def radiological_turn(geometry: Geometry) -> Reorientation:
    """Return what turns voxels so that planes along their axes read as radiologists look at them.

    Args:
        geometry: Of the voxels.

    Returns:
        To axes (z, y, x) that run nearest to (down, back, the patient's left).
    """
    to_ras = closest_ras_by_itk(geometry.direction_ras)
    z, y, x = (not flipped for flipped in to_ras.flipped)
    return Reorientation(to_ras.axes, (z, y, x))


def _turned_index(index: Shape3, turn: Reorientation, shape: Shape3) -> Shape3:
    """Return where a voxel lies along new axes."""
    z, y, x = (
        shape[axis] - 1 - index[axis] if flipped else index[axis]
        for axis, flipped in zip(turn.axes, turn.flipped, strict=True)
    )
    return z, y, x


def _without(spacing_mm: Spacing, axis: int) -> tuple[float, float]:
    first, second = (spacing for place, spacing in enumerate(spacing_mm) if place != axis)
    return first, second


def _pixels(shape: tuple[int, ...], spacing_mm: tuple[float, float], size: int) -> tuple[int, int]:
    height_mm, width_mm = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    longest_mm = max(height_mm, width_mm)
    return max(1, round(size * height_mm / longest_mm)), max(1, round(size * width_mm / longest_mm))


def _resized_labels(labels: npt.NDArray[Any], colours: Mapping[int, RGB], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Return for each pixel the value that covers most of it; each value that is there and shown has one at least."""
    image = _pillow()
    values = [int(value) for value in np.unique(labels) if int(value) in colours]

    def cover_of(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        return np.asarray(image.fromarray(mask.astype(np.float32)).resize(shape[::-1], image.Resampling.BOX))

    covers = {value: cover_of(labels == value) for value in values}
    best = cover_of(~np.isin(labels, values))  # what is not shown wins where nothing covers more
    shown = np.zeros(shape, dtype=np.int64)
    for value, cover in covers.items():
        wins = cover > best
        shown[wins] = value
        best = np.where(wins, cover, best)
    for value, cover in covers.items():
        if not (shown == value).any():
            shown[np.unravel_index(int(cover.argmax()), shape)] = value
    return shown


def _edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask beside one that is none; the picture's border counts as such."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _beside(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels outside of a mask that touch it."""
    padded = np.pad(mask, 1)
    return (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]) & ~mask


def _data_uri(picture: Bytes) -> str:
    image = _pillow().fromarray(picture)
    content = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
        content = file.getvalue()
        if len(content) <= max(_MOST_BYTES_PER_PIXEL * picture.shape[0] * picture.shape[1], _SMALL_FILE_BYTES):
            break
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")


def _pillow() -> "ModuleType":
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("Pillow", needed_for="a picture", extra="pages") from error
    return Image
