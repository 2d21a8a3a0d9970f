"""DICOM Structured Reports with the volume of each label (TID 1500)."""

from collections.abc import Mapping
from pathlib import Path

from ctseg.files.dicom.results import DicomResult


def write_measurement_report(
    path: Path, volumes_ml: Mapping[str, float], result: DicomResult, segmentation: Path
) -> None:
    """Write the volume of each label as a structured report that refers to a segmentation.

    Args:
        path: Not there yet.
        volumes_ml: By the name of the label.
        result: What the object says.
        segmentation: The segmentation of the same case, written before.

    Raises:
        InputError: It cannot be written of this case.
        OSError: The file cannot be written.
    """
    raise NotImplementedError
