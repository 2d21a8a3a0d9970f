"""What one case of a data set is like: measured in one reading of its files, with a picture."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from ctseg.errors import CtsegError
from ctseg.evaluate.pages.colours import RGB
from ctseg.evaluate.pages.pictures import SOFT_TISSUE_HU, largest_section, radiological_turn, thumbnail
from ctseg.files.dataset_cases import LabelledCase
from ctseg.files.formats import read_channel
from ctseg.files.geometry import Geometry
from ctseg.files.grid import ChannelVolume
from ctseg.numerics.warnings import why_no_hu
from ctseg.train.intensities import CT_RANGE_HU, Spread, spread_of
from ctseg.train.overview_document import CaseOverview, ChannelOverview, LabelOverview
from ctseg.train.scans import READER, image_problems, label_problems

LUNG_HU = (-1350.0, 150.0)
_FACES = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class DatasetContent:
    """What ``dataset.json`` says, as far as an overview needs it.

    Attributes:
        channel_names: In order.
        labels: Values by name, the background left out, ``ignore`` included.
    """

    channel_names: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]

    @property
    def ignored(self) -> set[int]:
        """The value of ``ignore``, which is no label."""
        return set(self.labels.get("ignore", ()))


@dataclass(frozen=True)
class MeasuredCase:
    """A case and how it looks.

    Attributes:
        overview: What was measured.
        picture: The axial plane through the largest section of the labels, as a data URI; None where there is none.
    """

    overview: CaseOverview
    picture: str | None = None


def measure_case(
    case: LabelledCase,
    content: DatasetContent,
    colours: Mapping[int, RGB],
    *,
    told: Sequence[str] = (),
    size: int = 160,
) -> MeasuredCase:
    """Measure a case; whatever is wrong with its files is told in what comes back.

    One channel is in memory at a time, beside the label map.

    Args:
        case: Its files.
        content: Of the data set.
        colours: Of labels, by value.
        told: Problems of the case that are known already.
        size: Pixels of the longer side of the picture.
    """
    problems = list(told)
    label = _read(case, case.label, problems)
    values = _label_values(label, problems, case.name, content)
    found: dict[str, Any] = {}
    channels: dict[str, ChannelOverview] = {}
    picture = None
    for place, files in enumerate(case.channels):
        image = _read(case, files, problems)
        if image is None or files is None:
            continue
        what = "image" if len(case.channels) == 1 else f"channel {place}"
        wrong = image_problems(image, label, case=case.name, file=files.name, what=what)
        problems += [problem.message for problem in wrong]
        name = content.channel_names[place]
        fits = values is not None and values.shape == image.voxels.shape
        measured = _channel(image.voxels, values if fits else None, content.ignored, is_ct=is_ct(name))
        if measured is not None:
            channels[name] = measured
        if not found:
            found = _of_grid(image)
            found["voxels_sha256"] = hashlib.sha256(np.ascontiguousarray(image.voxels).data).hexdigest()
            window = _window(measured, is_ct=is_ct(name))
            picture = _picture(image.voxels, values if fits else None, colours, image.geometry, window, size)
    if not found and label is not None:
        found = _of_grid(label)
    labels = {} if values is None or label is None else _labels(values, label, content)
    return MeasuredCase(
        CaseOverview(case=case.name, channels=channels, labels=labels, problems=tuple(problems), **found), picture
    )


def is_ct(channel_name: str) -> bool:
    """Whether nnU-Net normalises a channel of this name as CT."""
    return channel_name.casefold() == "ct"


def _read(case: LabelledCase, files: Any, problems: list[str]) -> ChannelVolume | None:
    if files is None:
        return None
    try:
        return read_channel(files, READER)
    except (CtsegError, OSError, MemoryError) as error:
        problems.append(f"case {case.name}: {error or type(error).__name__}")
        return None


def _label_values(
    label: ChannelVolume | None, problems: list[str], case: str, content: DatasetContent
) -> NDArray[Any] | None:
    """Return the label map as integers; None where it has values that cannot be labels."""
    if label is None:
        return None
    declared = {0, *(value for values in content.labels.values() for value in values)}
    wrong = label_problems(label.voxels, declared, case=case, stored=label.stored_dtype)
    problems += [problem.message for problem in wrong]
    voxels = label.voxels
    if voxels.dtype.kind == "f":
        if not np.isfinite(voxels).all():
            return None
        voxels = voxels.astype(np.int64)
    if voxels.min() < 0 or voxels.max() >= 1 << 16:
        return None
    return voxels.astype(np.uint8 if voxels.max() < 256 else np.uint16, copy=False)


def _of_grid(image: ChannelVolume) -> dict[str, Any]:
    geometry = image.grid.geometry
    return {
        "shape": geometry.shape,
        "spacing_mm": image.grid.spacing_mm,
        "orientation": "".join(_codes(geometry)),
        "left_handed": bool(np.linalg.det(geometry.affine_ras[:3, :3]) < 0),
    }


def _codes(geometry: Geometry) -> tuple[str, str, str]:
    """Return the letters of where the grid's x, y and z run to."""
    x, y, z = aff2axcodes(geometry.affine_ras)
    return str(x), str(y), str(z)


def _channel(
    voxels: NDArray[Any], labels: NDArray[Any] | None, ignored: set[int], *, is_ct: bool
) -> ChannelOverview | None:
    whole = spread_of(voxels)
    if whole is None:
        return None
    foreground = None
    if labels is not None:
        mask = labels > 0
        for value in ignored:
            mask &= labels != value
        foreground = spread_of(voxels, mask)
    low, high = CT_RANGE_HU if is_ct else (whole.at(0.005), whole.at(0.995))

    def percentiles_and_histogram(spread: Spread) -> tuple[Any, Any]:
        return spread.percentiles, spread.histogram(low, high)

    foreground_said = (None, None) if foreground is None else percentiles_and_histogram(foreground)
    whole_said = percentiles_and_histogram(whole)
    return ChannelOverview(
        whole=whole_said[0],
        foreground=foreground_said[0],
        whole_histogram=whole_said[1],
        foreground_histogram=foreground_said[1],
        no_hu=why_no_hu(voxels) if is_ct and np.isfinite(voxels).all() else "",
    )


def _labels(values: NDArray[Any], label: ChannelVolume, content: DatasetContent) -> dict[str, LabelOverview]:
    counts = np.zeros(1 << 16, np.int64)
    for plane in values:
        found = np.bincount(plane.ravel())
        counts[: len(found)] += found
    x, y, z = _codes(label.geometry)
    at_faces: dict[str, set[int]] = {}
    for axis, code in enumerate((z, y, x)):
        if values.shape[axis] == 1:  # a picture of one slice: all of it would be cut off
            continue
        at_faces[_FACES[_OPPOSITE[code]]] = set(np.unique(values.take(0, axis=axis)).tolist())
        at_faces[_FACES[code]] = set(np.unique(values.take(-1, axis=axis)).tolist())
    voxel_ml = float(np.prod(label.spacing_mm)) / 1000
    return {
        name: LabelOverview(
            voxels=(voxels := int(counts[list(which)].sum())),
            volume_ml=voxels * voxel_ml,
            at_border_of=tuple(face for face, there in sorted(at_faces.items()) if there & set(which)),
        )
        for name, which in content.labels.items()
    }


def _window(channel: ChannelOverview | None, *, is_ct: bool) -> tuple[float, float]:
    """Return what is black and what is white in the picture."""
    if channel is None:
        return SOFT_TISSUE_HU
    if is_ct:
        in_lung = channel.foreground is not None and channel.foreground.median < -300
        return LUNG_HU if in_lung else SOFT_TISSUE_HU
    low, high = channel.whole.percentile_00_5, channel.whole.percentile_99_5
    return (low, high) if high > low else (low, low + 1)


def _picture(
    voxels: NDArray[Any],
    labels: NDArray[Any] | None,
    colours: Mapping[int, RGB],
    geometry: Geometry,
    window: tuple[float, float],
    size: int,
) -> str:
    turn = radiological_turn(geometry)
    turned = turn.apply(voxels)
    outline = None if labels is None else turn.apply(labels)
    z = len(turned) // 2 if outline is None else largest_section(outline)[0]
    _, *spacing_mm = turn.apply_to_spacing(geometry.spacing_mm)
    plane = turned[z]
    return thumbnail(
        np.nan_to_num(plane) if plane.dtype.kind == "f" else plane,
        None,
        colours,
        spacing_mm=(spacing_mm[0], spacing_mm[1]),
        window_hu=window,
        outline=None if outline is None else outline[z],
        size=size,
    )
