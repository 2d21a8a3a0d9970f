"""Voxels of a DICOM series, on the one grid that its headers describe."""

from ctseg.files.dicom.series import CtSeries
from ctseg.files.grid import ChannelHeader, ChannelVolume


def read_series(series: CtSeries, reader: str) -> ChannelVolume:
    """Read the voxels of a series in Hounsfield units.

    Args:
        series: As its headers were read.
        reader: By whose rules its axes are turned, see :func:`ctseg.files.volume.read_volume`.

    Returns:
        Integers where every slope and intercept is a whole number, else float32 rounded from float64.

    Raises:
        InputError: The series has a problem, or a file is cut off, cannot be decoded, or has changed.
        SetupError: A package is missing.
    """
    raise NotImplementedError


def read_series_header(series: CtSeries, reader: str) -> ChannelHeader:
    """Say what :func:`read_series` would yield, without reading the voxels.

    Raises:
        InputError: The series has a problem.
    """
    raise NotImplementedError
