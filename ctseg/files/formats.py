"""The formats that scans are read from and label maps are written to: one entry each.

A new format is a module that reads one channel and writes one label map, and an entry in :data:`FORMATS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from ctseg.errors import InputError
from ctseg.files.dicom.series import CtSeries
from ctseg.files.grid import ChannelHeader, ChannelVolume, FileGrid
from ctseg.files.identity import ScanPart
from ctseg.files.itk import data_files_of, read_itk_file, read_itk_header, require_simpleitk, write_itk_file
from ctseg.files.nifti import read_nifti, read_nifti_header, write_nifti_file

Read = TypeVar("Read")


@dataclass(frozen=True)
class ChannelFiles:
    """Where one channel of a case lies.

    Attributes:
        paths: One file, or the many over which a format spreads a volume.
        series: What the headers said of a DICOM series, whose files have any names; None: a format by its ending.
    """

    paths: tuple[Path, ...]
    series: CtSeries | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("expected at least one file for a channel, found none")

    def __repr__(self) -> str:
        return f"<channel {self.name}>"

    @property
    def name(self) -> str:
        """What messages call it: the file's name, or that of the first of many; of a series, no path."""
        return self.paths[0].name if self.series is None else self.series.label


@dataclass(frozen=True)
class Format:
    """One way in which voxels lie in files.

    Attributes:
        name: What people call it.
        endings: Of its files' names, in lower case; case does not matter.
        read: Reads one channel by the rules of one of nnU-Net's readers; raises an ``InputError`` for files that
            cannot be used, and a ``SetupError`` where a package is missing.
        read_header: Says by the same rules what ``read`` would yield, without reading the voxels.
        write_labels: Writes voxels (z, y, x), which lie along the axes of a grid's own files, in the type that
            they have, to a path that is not there yet; raises ``OSError``. None: the format is only read.
        require: Raises a ``SetupError`` where a package is missing that a file of such a name needs.
        companions: Returns the files beside one that hold its voxels, those that are there; raises ``OSError``.
    """

    name: str
    endings: tuple[str, ...]
    read: Callable[[ChannelFiles, str], ChannelVolume]
    read_header: Callable[[ChannelFiles, str], ChannelHeader]
    write_labels: Callable[[Path, npt.NDArray[Any], FileGrid], None] | None = None
    companions: Callable[[Path], tuple[Path, ...]] = lambda _: ()
    require: Callable[[Path], object] = lambda _: None


def _of_one_file(read: Callable[[Path, str], Read]) -> Callable[[ChannelFiles, str], Read]:
    """Return the reader of a format that keeps a volume in one file."""

    def read_channel(files: ChannelFiles, reader: str) -> Read:
        if len(files.paths) != 1:
            names = ", ".join(path.name for path in files.paths)
            raise InputError(f"{files.name}: expected one file for a channel, found {len(files.paths)} ({names})")
        return read(files.paths[0], reader)

    return read_channel


_read_nifti = (_of_one_file(read_nifti), _of_one_file(read_nifti_header))
_read_itk = (_of_one_file(read_itk_file), _of_one_file(read_itk_header))

FORMATS = (
    Format("NIfTI", (".nii.gz", ".nii"), *_read_nifti, write_nifti_file),
    Format("NRRD and MetaImage", (".nrrd", ".mha"), *_read_itk, write_itk_file, data_files_of, require_simpleitk),
    # header and voxels in two files cannot be put in place at once; GIPL has no direction
    Format(
        "NRRD, MetaImage in two files; GIPL",
        (".nhdr", ".mhd", ".gipl"),
        *_read_itk,
        companions=data_files_of,
        require=require_simpleitk,
    ),
)
"""Every format there is."""
READ_ENDINGS = tuple(ending for entry in FORMATS for ending in entry.endings)
"""Of files that can be read; case does not matter."""
WRITE_ENDINGS = tuple(ending for entry in FORMATS if entry.write_labels is not None for ending in entry.endings)
"""Of files that can be written."""


def ending_of(path: Path) -> str | None:
    """Return which of :data:`READ_ENDINGS` a file's name has, whatever its case; None: none of them."""
    name = path.name.lower()
    return next((ending for ending in READ_ENDINGS if name.endswith(ending)), None)


def stem_of(path: Path) -> str:
    """Return a file's name without its ending."""
    return path.name[: len(path.name) - len(ending_of(path) or "")]


def format_of(path: Path) -> Format | None:
    """Return the format of a file by its name; None: no format has this ending."""
    ending = ending_of(path)
    return next((entry for entry in FORMATS if ending in entry.endings), None)


def with_companions(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return files, each followed by those that hold its voxels: all whose bytes a reader looks at.

    Raises:
        OSError: A header cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        entry = format_of(path)
        found += (path, *(entry.companions(path) if entry is not None else ()))
    return tuple(found)


def scan_parts(files: ChannelFiles) -> tuple[ScanPart, ...]:
    """Return what a reader looks at of one channel: each file and those beside it; a DICOM series as one.

    The files of a series come in order of their SOP instances, so that renamed files are the same scan.

    Raises:
        OSError: A header cannot be read.
    """
    if files.series is None:
        return tuple(ScanPart((path,)) for path in with_companions(files.paths))
    by_instance = {slice_.sop_instance_uid: slice_.path for slice_ in files.series.slices}
    return (ScanPart(tuple(path for _, path in sorted(by_instance.items())), files.series.label),)


def require_packages(path: Path) -> None:
    """Refuse a file whose format needs a package that is not installed; nothing is opened.

    Args:
        path: By its ending; one of no known format needs none.

    Raises:
        SetupError: A package is missing.
    """
    if entry := format_of(path):
        entry.require(path)


def read_channel(files: ChannelFiles, reader: str) -> ChannelVolume:
    """Read one channel as one of nnU-Net's readers does.

    Args:
        files: Where it lies.
        reader: ``SimpleITKIO``, ``SimpleITKIOWithReorient``, ``NibabelIO`` or ``NibabelIOWithReorient``.

    Raises:
        InputError: The files cannot be used.
        SetupError: They need a package that is not installed.
    """
    return _known_format_of(files).read(files, reader)


def read_channel_header(files: ChannelFiles, reader: str) -> ChannelHeader:
    """Read what the files of one channel say of it, without its voxels.

    Args:
        files: Where it lies.
        reader: See :func:`read_channel`.

    Raises:
        InputError: The files cannot be used.
        SetupError: They need a package that is not installed.
    """
    return _known_format_of(files).read_header(files, reader)


def of_series(series: CtSeries) -> ChannelFiles:
    """Return where a DICOM series lies."""
    return ChannelFiles(series.paths, series)


def _read_series(files: ChannelFiles, reader: str) -> ChannelVolume:
    from ctseg.files.dicom.pixels import read_series

    return read_series(_series_of(files), reader)


def _read_series_header(files: ChannelFiles, reader: str) -> ChannelHeader:
    from ctseg.files.dicom.pixels import read_series_header

    return read_series_header(_series_of(files), reader)


def _series_of(files: ChannelFiles) -> CtSeries:
    if files.series is None:
        raise ValueError(f"{files.name} is no DICOM series")
    return files.series


_DICOM = Format("DICOM", (), _read_series, _read_series_header)


def _known_format_of(files: ChannelFiles) -> Format:
    if files.series is not None:
        return _DICOM
    entry = format_of(files.paths[0])
    if entry is None:
        raise InputError(f"{files.name}: expected a scan in one of {', '.join(READ_ENDINGS)}: convert it")
    return entry
