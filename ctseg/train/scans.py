"""Reading the scans of a data set as nnU-Net's default reader does, and comparing them; no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError, SetupError

SCAN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl")
ORIGIN_TOLERANCE_MM = 0.01
DIRECTION_TOLERANCE = 1e-4
"""Largest difference of a direction cosine that files of one grid may have by rounding."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
        case: The case; None where it concerns the data set as a whole.
        kind: A word for programs, such as ``shape`` or ``unexpected_label``.
        message: A sentence for people, which names the case.
    """

    case: str | None
    kind: str
    message: str


@dataclass(frozen=True)
class Scan:
    """A scan and its grid in ITK's terms.

    Attributes:
        voxels: Axes (z, y, x).
        spacing_mm: Along (x, y, z).
        origin_lps_mm: Centre of the first voxel.
        direction_lps: Nine direction cosines, row by row.
    """

    voxels: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    origin_lps_mm: tuple[float, float, float]
    direction_lps: tuple[float, ...]

    def with_voxels(self, voxels: NDArray[Any]) -> "Scan":
        """Return other voxels on the same grid."""
        return replace(self, voxels=voxels)


def read_scan(path: Path) -> Scan:
    """Read a scan through SimpleITK, as nnU-Net's default reader does.

    Raises:
        InputError: The file cannot be read, or is no volume of single numbers.
    """
    sitk = _simpleitk()
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path.name} is unreadable: {reason}") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path.name}: expected a 3-D volume of one number per voxel, found size {image.GetSize()} with "
            f"{image.GetNumberOfComponentsPerPixel()} numbers per voxel"
        )
    return Scan(sitk.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def count_non_finite(path: Path, scan: Scan) -> int:
    """Count voxels that are NaN or infinite in the file.

    ITK reads such voxels of a NIfTI file as 0 without a word, so there nibabel is asked.

    Args:
        path: The file that ``scan`` was read from.
        scan: As :func:`read_scan` returned it.
    """
    if not np.issubdtype(scan.voxels.dtype, np.floating):
        return 0
    voxels = scan.voxels
    if path.name.lower().endswith((".nii", ".nii.gz")):
        voxels = np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    return int((~np.isfinite(voxels)).sum())


def write_scan(path: Path, scan: Scan) -> None:
    """Write a scan, compressed."""
    sitk = _simpleitk()
    image = sitk.GetImageFromArray(scan.voxels)
    image.SetSpacing(scan.spacing_mm)
    image.SetOrigin(scan.origin_lps_mm)
    image.SetDirection(scan.direction_lps)
    sitk.WriteImage(image, str(path), True)


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise SetupError("reading a data set needs SimpleITK: `pip install ctseg[itk]`") from error
    return SimpleITK


def geometry_problems(image: Scan, label: Scan, *, case: str, what: str = "image") -> list[Problem]:
    """Return how the grid of a label map differs from that of its image, and by how much."""
    problems = []

    def tell(kind: str, message: str) -> None:
        problems.append(Problem(case, kind, f"case {case}: {message}"))

    if image.voxels.shape != label.voxels.shape:
        tell("shape", f"{what} has shape {image.voxels.shape} (z, y, x), the labels {label.voxels.shape}")
    # nnU-Net's own tolerance
    if not np.allclose(label.spacing_mm, image.spacing_mm):
        worst = np.abs(np.subtract(label.spacing_mm, image.spacing_mm)).max()
        tell(
            "spacing",
            f"{what} has spacing {_mm(image.spacing_mm)} mm (x, y, z), the labels {_mm(label.spacing_mm)}: "
            f"{worst:.4g} mm apart",
        )
    shift = float(np.linalg.norm(np.subtract(label.origin_lps_mm, image.origin_lps_mm)))
    if shift > ORIGIN_TOLERANCE_MM:
        tell(
            "origin",
            f"{what} has its origin at {_mm(image.origin_lps_mm)} mm, the labels at {_mm(label.origin_lps_mm)}: "
            f"{shift:.4g} mm apart",
        )
    if np.abs(np.subtract(label.direction_lps, image.direction_lps)).max() > DIRECTION_TOLERANCE:
        a, b = (np.reshape(scan.direction_lps, (3, 3)) for scan in (image, label))
        angle = np.degrees(np.arccos(np.clip(np.einsum("ij,ij->j", a, b), -1, 1))).max()
        tell("direction", f"the axes of {what} and labels are turned against each other by up to {angle:.3g} degrees")
    return problems


def label_problems(labels: NDArray[Any], declared: Iterable[int], *, case: str) -> list[Problem]:
    """Return what is wrong with the voxels of a label map."""
    problems = []
    if np.issubdtype(labels.dtype, np.floating):
        problems.append(
            Problem(case, "float_labels", f"case {case}: labels are stored as {labels.dtype}: write integers (uint8)")
        )
        if bad := int((~np.isfinite(labels)).sum()):
            problems.append(Problem(case, "nan", f"case {case}: {bad} voxels of the labels are NaN or infinite"))
    elif not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
        return [Problem(case, "float_labels", f"case {case}: labels are stored as {labels.dtype}: write integers")]
    values, counts = np.unique(labels[np.isfinite(labels)], return_counts=True)
    allowed = set(declared)
    surplus = [(value, n) for value, n in zip(values.tolist(), counts.tolist(), strict=True) if value not in allowed]
    if surplus:
        shown = ", ".join(f"{value:g} ({n} voxels)" for value, n in surplus[:10])
        more = f" and {len(surplus) - 10} more" if len(surplus) > 10 else ""
        problems.append(
            Problem(
                case,
                "unexpected_label",
                f"case {case}: labels {shown}{more} are not in dataset.json, which has {sorted(allowed)}",
            )
        )
    return problems


def _mm(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
