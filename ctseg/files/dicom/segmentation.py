"""DICOM Segmentation objects (SEG)."""

from pathlib import Path
from typing import Any

import numpy.typing as npt

from ctseg.files.dicom.results import DicomResult


def segmentation_problem(result: DicomResult) -> str | None:
    """Return why no segmentation can be written of a case, as far as headers tell; None: nothing is wrong."""
    raise NotImplementedError


def write_segmentation(path: Path, labels: npt.NDArray[Any], result: DicomResult) -> None:
    """Write a label map as a DICOM Segmentation.

    Args:
        path: Not there yet.
        labels: (z, y, x) in order of the source's slices.
        result: What the object says.

    Raises:
        InputError: It cannot be written of this case.
        OSError: The file cannot be written.
    """
    raise NotImplementedError
