"""What the headers say of DICOM series: plain data, which needs no pydicom and travels to workers.

``repr`` tells no path, no UID and no text of a tag: it stands in traces and in other programs' logs.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.files.geometry import RAS_FROM_LPS, Geometry

_DIGEST_LENGTH = 8


def uid_digest(uid: str) -> str:
    """Return a short digest of a UID, for names and messages: UIDs themselves can lead to a patient."""
    return hashlib.sha256(uid.encode()).hexdigest()[:_DIGEST_LENGTH]


def series_label(number: int | None, series_uid: str, study_uid: str) -> str:
    """Return what messages call a series: no patient, no path."""
    shown = "without number" if number is None else str(number)
    return f"series {shown} ({uid_digest(series_uid)}) of study {uid_digest(study_uid)}"


@dataclass(frozen=True)
class CtSlice:
    """One slice: a file of its own, or a frame of a multi-frame file.

    Attributes:
        path: The file.
        frame: Of the file, from 0.
        sop_instance_uid: Of the file.
        position_lps_mm: Centre of the first voxel, ImagePositionPatient.
        slope: RescaleSlope of this slice.
        intercept: RescaleIntercept of this slice.
        transfer_syntax_uid: How the file's voxels are encoded.
    """

    path: Path = field(repr=False)
    frame: int
    sop_instance_uid: str = field(repr=False)
    position_lps_mm: tuple[float, float, float]
    slope: float
    intercept: float
    transfer_syntax_uid: str


@dataclass(frozen=True)
class CtSeries:
    """A CT series: one volume, or why it cannot be read as one.

    Attributes:
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        sop_class_uid: CT Image Storage, or Enhanced CT Image Storage.
        study_id: StudyID; empty where there is none.
        series_number: SeriesNumber.
        description: SeriesDescription; free text, which may name a patient: it stands in no message and no log.
        kernel: ConvolutionKernel, its values joined by a backslash.
        frame_of_reference_uid: Empty where there is none.
        slices: In order along the third axis, which runs along the normal of the slices; as found where there is a
            problem.
        rows: Voxels along a column.
        columns: Voxels along a row.
        orientation_lps: ImageOrientationPatient: unit vectors along a row (the x axis) and along a column (y).
        pixel_spacing_mm: PixelSpacing: between rows (y), between columns (x).
        step_lps_mm: From each slice to the next, ``(last - first) / (n - 1)``, as the headers say; not yet made
            orthogonal.
        stored_dtype: Name of the type of the stored numbers, such as ``int16``.
        tags: What else was asked for by keyword (to name cases), as text; see :func:`find_series`.
        stored_range: Lowest and highest number that a slice may store, by BitsStored and PixelRepresentation of all
            slices; None: all that ``stored_dtype`` holds. The type of the voxels in HU follows from it.
        problem: Why it is refused, for people, with figures and what to do; None: it is one volume.
        warnings: What people are to know of a series that is read.
        rows_up: Whether rows are read from the last to the first, as dcm2niix writes them; the grid stays the files'.
    """

    study_uid: str
    series_uid: str
    sop_class_uid: str
    study_id: str
    series_number: int | None
    description: str
    kernel: str
    frame_of_reference_uid: str
    slices: tuple[CtSlice, ...]
    rows: int
    columns: int
    orientation_lps: tuple[float, float, float, float, float, float]
    pixel_spacing_mm: tuple[float, float]
    step_lps_mm: tuple[float, float, float]
    stored_dtype: str
    tags: tuple[tuple[str, str], ...] = ()
    stored_range: tuple[int, int] | None = None
    problem: str | None = None
    warnings: tuple[str, ...] = ()
    rows_up: bool = False

    def __repr__(self) -> str:
        return f"<{self.label}>"

    @property
    def label(self) -> str:
        """What messages call it: no patient, no path."""
        return series_label(self.series_number, self.series_uid, self.study_uid)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files, each once, in order of the slices."""
        return tuple(dict.fromkeys(slice_.path for slice_ in self.slices))

    @property
    def geometry(self) -> Geometry:
        """The grid of its voxels, (z, y, x) = (slice, row, column), the third axis at right angles to the slices.

        A step that is not quite along the normal is made orthogonal about the middle slice, so that the first and the
        last one move by half of the displacement each, in opposite directions.

        Raises:
            ValueError: The series has a problem.
        """
        if self.problem is not None:
            raise ValueError(f"{self.label} has no grid: {self.problem}")
        along_x, along_y = np.array(self.orientation_lps[:3]), np.array(self.orientation_lps[3:])
        normal = np.cross(along_x, along_y)
        step = np.array(self.step_lps_mm)
        orthogonal = normal * (step @ normal) / (normal @ normal)
        middle = (len(self.slices) - 1) / 2
        first = np.array(self.slices[0].position_lps_mm) + middle * (step - orthogonal)
        affine = np.eye(4)
        affine[:3, 0] = along_x * self.pixel_spacing_mm[1]
        affine[:3, 1] = along_y * self.pixel_spacing_mm[0]
        affine[:3, 2] = orthogonal
        affine[:3, 3] = first
        affine[:3] = RAS_FROM_LPS @ affine[:3]
        return Geometry((len(self.slices), self.rows, self.columns), affine)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Type of the stored numbers."""
        return np.dtype(self.stored_dtype)


@dataclass(frozen=True)
class LeftOut:
    """Files that are no slices of a CT series.

    Attributes:
        what: In words, such as ``localizer``, ``dose report`` or ``RTSTRUCT``; a noun that is counted.
        study_uid: StudyInstanceUID; empty where it cannot be told.
        series_uid: SeriesInstanceUID; likewise.
        series_number: SeriesNumber.
        description: SeriesDescription.
        files: How many.
    """

    what: str
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    series_number: int | None
    description: str = field(repr=False)
    files: int


@dataclass(frozen=True)
class FoundDicom:
    """What a set of files holds.

    Attributes:
        series: CT series, refused ones too, in order of study, number and UID.
        left_out: What is no CT, doubled, or cannot be read, in the same order.
        others: Files that are no DICOM.
    """

    series: tuple[CtSeries, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    others: tuple[Path, ...] = ()

    @property
    def told(self) -> str:
        """What was left out, counted by kind, for one line of a log; empty: nothing was."""
        counts: Counter[str] = Counter()
        for item in self.left_out:
            counts[item.what] += item.files
        return ", ".join(f"{count} × {what}" for what, count in sorted(counts.items()))
