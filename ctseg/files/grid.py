"""What a file says about where its voxels lie, and how a reader turns them."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from ctseg.arrays import Spacing
from ctseg.files.dicom.series import CtSeries
from ctseg.files.geometry import (
    IDENTITY,
    Geometry,
    Reorientation,
    closest_ras_by_itk,
    reorientation_from_nibabel,
)


@dataclass(frozen=True, eq=False)
class NiftiSource:
    """A NIfTI file's own words.

    Attributes:
        header: As it stands in the file.
    """

    header: nibabel.Nifti1Header

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The type of the numbers in the file, before scaling."""
        dtype: np.dtype[Any] = self.header.get_data_dtype().newbyteorder("=")
        return dtype


@dataclass(frozen=True)
class ItkSource:
    """What SimpleITK said of a file, beside its grid.

    Attributes:
        dtype: The type of the numbers in the file.
    """

    dtype: "np.dtype[Any]"


@dataclass(frozen=True)
class DicomSource:
    """The headers of a DICOM series, in whose terms results are written.

    Attributes:
        series: What they say.
        dtype: The type of the numbers in the files.
    """

    series: CtSeries
    dtype: "np.dtype[Any]"


Source: TypeAlias = NiftiSource | ItkSource | DicomSource
"""What a format keeps of a file: what it needs to write the same again, and the type of its numbers."""


@dataclass(frozen=True, eq=False)
class FileGrid:
    """The grid of a file, and how the voxels as a reader yields them lie on it.

    Attributes:
        geometry: Of the file's own axes.
        spacing_mm: Along the file's own (z, y, x), in millimetres, to the last bit as the reader has it.
        reorientation: From the file's axes to the reader's.
        source: The file's own words; None for voxels that never were in a file.
    """

    geometry: Geometry
    spacing_mm: Spacing
    reorientation: Reorientation = IDENTITY
    source: Source | None = None


@dataclass(frozen=True, eq=False)
class ChannelHeader:
    """What the files of one channel say of it, before its voxels are read.

    Attributes:
        dtype: Of the voxels as the reader yields them.
        spacing_mm: Along the axes of the voxels as the reader yields them, in millimetres.
        grid: The files' own.
        reading_bytes: Memory that reading takes at most, the voxels that it yields included.
    """

    dtype: "np.dtype[Any]"
    spacing_mm: Spacing
    grid: FileGrid
    reading_bytes: int

    @property
    def geometry(self) -> Geometry:
        """Where the voxels lie, on the axes that the reader yields."""
        return self.grid.geometry.reoriented(self.grid.reorientation)


@dataclass(frozen=True, eq=False)
class ChannelVolume:
    """One channel of a scan, as a reader yields it.

    Attributes:
        voxels: (z, y, x): integers of at most 4 bytes where the files hold such without scaling, or of DICOM with
            whole slopes and intercepts, else float32; NaN and infinity are what they are in the files.
        spacing_mm: Along the axes of ``voxels``, in millimetres.
        grid: The files' own.
    """

    voxels: npt.NDArray[Any]
    spacing_mm: Spacing
    grid: FileGrid

    @property
    def geometry(self) -> Geometry:
        """Where the voxels lie, on their own axes."""
        return self.grid.geometry.reoriented(self.grid.reorientation)

    @property
    def stored_dtype(self) -> "np.dtype[Any]":
        """The type of the numbers in the files; that of ``voxels`` where the files scale small integers."""
        stored = self.voxels.dtype if self.grid.source is None else self.grid.source.dtype
        is_scaled = self.voxels.dtype.kind == "f" and stored.kind in "iu" and stored.itemsize <= 4
        return self.voxels.dtype if is_scaled else stored


def reorientation_of(
    geometry: Geometry, reader: str, direction_ras: npt.NDArray[np.float64] | None = None
) -> Reorientation:
    """Return how one of nnU-Net's readers turns the axes of a file.

    Args:
        geometry: Of the file's own axes.
        reader: nnU-Net's name; those that end in ``WithReorient`` turn to RAS, each in its library's way.
        direction_ras: (3, 3), the unit vectors of the axes as the file says them. From the affine they
            come with a rounding that would decide between axes at exactly 45 degrees.
    """
    if not reader.endswith("WithReorient"):
        return IDENTITY
    if "ITK" in reader:
        return closest_ras_by_itk(geometry.direction_ras if direction_ras is None else direction_ras)
    return reorientation_from_nibabel(io_orientation(geometry.affine_ras))
