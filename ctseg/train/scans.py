"""Reading the scans of a data set by the rules of nnU-Net's default reader, and comparing them; no torch."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.arrays import Spacing
from ctseg.errors import OutputError
from ctseg.files.geometry import Geometry
from ctseg.files.grid import FileGrid, Scan
from ctseg.files.itk import read_itk_file
from ctseg.files.nifti import NIFTI_ENDINGS, read_nifti, write_nifti
from ctseg.files.volume import READ_ENDINGS, ending_of

SCAN_ENDINGS = (*READ_ENDINGS, ".gipl")
READER = "SimpleITKIO"
"""nnU-Net's default reader, whose rules decide where the voxels of a file lie."""
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


@dataclass(frozen=True, eq=False)
class StoredScan:
    """A scan, and how its file holds it.

    Attributes:
        scan: Voxels (z, y, x) and grid; other types than integers of at most 4 bytes are float32 there.
        dtype: The type in the file; that of ``scan`` where the file scales its numbers.
    """

    scan: Scan
    dtype: "np.dtype[Any]"

    @property
    def voxels(self) -> NDArray[Any]:
        """The voxels, axes (z, y, x); NaN and infinity are what they are in the file."""
        return self.scan.voxels

    @property
    def geometry(self) -> Geometry:
        """Where the voxels lie."""
        return self.scan.geometry

    @property
    def spacing_mm(self) -> Spacing:
        """Along (z, y, x), as nnU-Net's reader has it."""
        return self.scan.spacing_mm

    @property
    def non_finite(self) -> int:
        """Voxels that are NaN or infinite."""
        return 0 if self.dtype.kind in "iub" else int((~np.isfinite(self.voxels)).sum())


def read_scan(path: Path) -> StoredScan:
    """Read a scan as nnU-Net's default reader does.

    Unlike that one, it does not take NaN in a NIfTI file for 0.

    Raises:
        InputError: The file cannot be read, or is no volume of single numbers.
        SetupError: The file needs SimpleITK, which is not installed.
    """
    if ending_of(path, NIFTI_ENDINGS) is not None:
        scan = read_nifti(path, READER)
        stored = scan.grid.nifti_header.get_data_dtype().newbyteorder("=")
    else:
        scan = read_itk_file(path, READER)
        stored = scan.voxels.dtype if scan.voxels.dtype.kind != "f" else _itk_dtype(path)
    is_scaled = scan.voxels.dtype.kind == "f" and stored.kind in "iu" and stored.itemsize <= 4
    return StoredScan(scan, scan.voxels.dtype if is_scaled else stored)


def _itk_dtype(path: Path) -> "np.dtype[Any]":
    """The type of numbers in a file that ITK has read already."""
    sitk: Any = importlib.import_module("SimpleITK")
    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    file.ReadImageInformation()
    dtype: np.dtype[Any] = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], file.GetPixelID())).dtype
    return dtype


def write_scan(path: Path, voxels: NDArray[Any], grid: FileGrid) -> None:
    """Write voxels (z, y, x) on the grid of a file, to the last bit, as gzipped NIfTI in the type they have.

    Raises:
        OutputError: The folder is not writable, or the disk is full; a former file is intact.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write_nifti(file, voxels, grid, compress=True)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def geometry_problems(image: StoredScan, label: StoredScan, *, case: str, what: str = "image") -> list[Problem]:
    """Return how the grid of a label map differs from that of its image, and by how much."""
    problems = []

    def tell(kind: str, message: str) -> None:
        problems.append(Problem(case, kind, f"case {case}: {message}"))

    one, other = image.geometry, label.geometry
    if one.shape != other.shape:
        tell("shape", f"{what} has shape {one.shape} (z, y, x), the labels {other.shape}")
    # nnU-Net's own tolerance
    if not np.allclose(label.spacing_mm, image.spacing_mm):
        worst = np.abs(np.subtract(label.spacing_mm, image.spacing_mm)).max()
        tell(
            "spacing",
            f"{what} has spacing {_mm(image.spacing_mm)} mm (z, y, x), the labels {_mm(label.spacing_mm)}: "
            f"{worst:.4g} mm apart",
        )
    first = (0.0, 0.0, 0.0)
    shift = float(np.linalg.norm(np.subtract(other.position_mm(first), one.position_mm(first))))
    if shift > ORIGIN_TOLERANCE_MM:
        tell(
            "origin",
            f"{what} has its first voxel at {_mm(one.position_mm(first))} mm (right, anterior, superior), "
            f"the labels at {_mm(other.position_mm(first))}: {shift:.4g} mm apart",
        )
    a, b = one.direction_ras, other.direction_ras
    if np.abs(a - b).max() > DIRECTION_TOLERANCE:
        angle = np.degrees(np.arccos(np.clip(np.einsum("ij,ij->j", a, b), -1, 1))).max()
        tell("direction", f"the axes of {what} and labels are turned against each other by up to {angle:.3g} degrees")
    return problems


def label_problems(
    labels: NDArray[Any], declared: Iterable[int], *, case: str, stored: "np.dtype[Any] | None" = None
) -> list[Problem]:
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
            Problem(case, "float_labels", f"case {case}: labels are stored as {dtype}: write integers (uint8)")
        )
        if bad := int((~np.isfinite(labels)).sum()):
            problems.append(Problem(case, "nan", f"case {case}: {bad} voxels of the labels are NaN or infinite"))
    elif dtype.kind not in "iub":
        return [Problem(case, "float_labels", f"case {case}: labels are stored as {dtype}: write integers")]
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
