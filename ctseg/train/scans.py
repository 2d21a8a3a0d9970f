"""Comparing the scans of a data set and their label maps, read by the rules of nnU-Net's default reader; no torch."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError
from ctseg.files.dataset_cases import DatasetProblem
from ctseg.files.formats import ChannelFiles, read_channel, read_channel_header
from ctseg.files.grid import ChannelHeader, ChannelVolume

READER = "SimpleITKIO"
"""nnU-Net's default reader, whose rules decide where the voxels of a file lie; NaN, its 0 in NIfTI, stays NaN here."""
ORIGIN_TOLERANCE_MM = 0.01
_LABELS_TOLD = 12
"""Values of labels that a message lists."""
DIRECTION_TOLERANCE = 1e-4
"""Largest difference of a direction cosine that files of one grid may have by rounding."""


def read_or_tell(files: ChannelFiles, *, case: str) -> tuple[ChannelVolume | None, list[DatasetProblem]]:
    """Read a channel or a label map of a case; None and the problem, if it cannot be used.

    Raises:
        SetupError: The file needs a package that is not installed.
    """
    try:
        return read_channel(files, READER), []
    except InputError as error:
        return None, [DatasetProblem(case, "unreadable", f"case {case}: {error}")]


def read_header_or_tell(files: ChannelFiles, *, case: str) -> tuple[ChannelHeader | None, list[DatasetProblem]]:
    """Read the header of a channel or a label map; None and the problem, if it cannot be used.

    Raises:
        SetupError: The file needs a package that is not installed.
    """
    try:
        return read_channel_header(files, READER), []
    except InputError as error:
        return None, [DatasetProblem(case, "unreadable", f"case {case}: {error}")]


def image_problems(
    image: ChannelVolume, label: ChannelVolume | None, *, case: str, file: str, what: str
) -> list[DatasetProblem]:
    """Return what is wrong with the voxels and the grid of one channel.

    Args:
        image: The channel.
        label: The label map that it has to lie on, if there is one.
        case: Name of the case.
        file: What messages call the file.
        what: What they call the channel.
    """
    problems = []
    # integers need no look
    if image.stored_dtype.kind not in "iub" and (bad := int((~np.isfinite(image.voxels)).sum())):
        problems.append(DatasetProblem(case, "nan", f"case {case}: {bad} voxels of {file} are NaN or infinite"))
    if label is not None:
        problems += geometry_problems(image, label, case=case, what=what)
    return problems


def geometry_problems(
    image: ChannelVolume | ChannelHeader,
    label: ChannelVolume | ChannelHeader,
    *,
    case: str,
    what: str = "image",
    against: str = "the labels",
) -> list[DatasetProblem]:
    """Return how the grid of a label map, or of another channel, differs from that of its image, and by how much."""
    problems = []

    def tell(kind: str, message: str) -> None:
        problems.append(DatasetProblem(case, kind, f"case {case}: {message}"))

    one, other = image.geometry, label.geometry
    if one.shape != other.shape:
        tell("shape", f"{what} has shape {one.shape} (z, y, x), {against} {other.shape}")
    # nnU-Net's own tolerance
    if not np.allclose(label.spacing_mm, image.spacing_mm):
        worst = np.abs(np.subtract(label.spacing_mm, image.spacing_mm)).max()
        tell(
            "spacing",
            f"{what} has spacing {_mm(image.spacing_mm)} mm (z, y, x), {against} {_mm(label.spacing_mm)}: "
            f"{worst:.4g} mm apart",
        )
    first = (0.0, 0.0, 0.0)
    shift = float(np.linalg.norm(np.subtract(other.position_mm(first), one.position_mm(first))))
    if shift > ORIGIN_TOLERANCE_MM:
        tell(
            "origin",
            f"{what} has its first voxel at {_mm(one.position_mm(first))} mm (right, anterior, superior), "
            f"{against} at {_mm(other.position_mm(first))}: {shift:.4g} mm apart",
        )
    a, b = one.direction_ras, other.direction_ras
    if np.abs(a - b).max() > DIRECTION_TOLERANCE:
        angle = np.degrees(np.arccos(np.clip(np.einsum("ij,ij->j", a, b), -1, 1))).max()
        tell(
            "direction",
            f"the axes of {what} and of {against} are turned against each other by up to {angle:.3g} degrees",
        )
    return problems


def label_problems(
    labels: NDArray[Any], declared: Iterable[int], *, case: str, stored: "np.dtype[Any] | None" = None
) -> list[DatasetProblem]:
    """Return what is wrong with the voxels of a label map.

    Args:
        labels: Axes (z, y, x).
        declared: The values that ``dataset.json`` has.
        case: Name of the case.
        stored: The type in the file; None takes that of ``labels``.
    """
    problems = []
    dtype = stored or labels.dtype
    if dtype.kind == "f":
        problems.append(
            DatasetProblem(case, "float_labels", f"case {case}: labels are stored as {dtype}: write integers (uint8)")
        )
        if bad := int((~np.isfinite(labels)).sum()):
            problems.append(DatasetProblem(case, "nan", f"case {case}: {bad} voxels of the labels are NaN or infinite"))
    elif dtype.kind not in "iub":
        return [DatasetProblem(case, "float_labels", f"case {case}: labels are stored as {dtype}: write integers")]
    allowed = set(declared)
    surplus = [(value, n) for value, n in label_counts(labels).items() if value not in allowed]
    if surplus:
        many = len(allowed) > _LABELS_TOLD
        known = f"{len(allowed)} from 0 to {max(allowed)}" if many else ", ".join(map(str, sorted(allowed)))
        shown = ", ".join(f"{value:g} ({n} voxels)" for value, n in surplus[:10])
        more = f" and {len(surplus) - 10} more" if len(surplus) > 10 else ""
        problems.append(
            DatasetProblem(
                case,
                "unexpected_label",
                f"case {case}: labels {shown}{more} are none of the data set's, which are {known}",
            )
        )
    return problems


def label_counts(labels: NDArray[Any]) -> dict[float, int]:
    """Return how many voxels have each value, in order of the values; NaN and infinity are left out."""
    if labels.dtype in (np.uint8, np.uint16):  # several times faster than sorting
        counts = np.bincount(labels.ravel())
        return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    values, found = np.unique(labels[np.isfinite(labels)], return_counts=True)
    return dict(zip(values.tolist(), found.tolist(), strict=True))


def _mm(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
