"""DICOM RT Structure Sets (RTSTRUCT)."""

from pathlib import Path
from typing import Any

import numpy.typing as npt

from ctseg.files.dicom.results import DicomResult


def structure_set_problem(result: DicomResult) -> str | None:
    """Return why no structure set can be written of a case, as far as headers tell; None: nothing is wrong."""
    raise NotImplementedError


def write_structure_set(path: Path, labels: npt.NDArray[Any], result: DicomResult) -> tuple[str, ...]:
    """Write a label map as a DICOM RT Structure Set, whose contours give back the very voxels.

    Args:
        path: Not there yet.
        labels: (z, y, x) in order of the source's slices.
        result: What the object says.

    Returns:
        Warnings for people.

    Raises:
        InputError: It cannot be written of this case.
        OSError: The file cannot be written.
    """
    raise NotImplementedError
