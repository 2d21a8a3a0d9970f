"""What the header of one CT file says of it and of each of its slices: a file of its own, or a frame of many."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pydicom.dataset import Dataset

from ctseg.files.dicom.elements import (
    holds,
    items_of,
    number_of,
    numbers_of,
    plain_of,
    text_of,
    uid_of,
    unsigned_of,
    whole_number_of,
    words_of,
)
from ctseg.files.dicom.kinds import LOSSY, MAYBE_LOSSY, MULTI_FRAME_CT


@dataclass(frozen=True)
class Frame:
    """One slice, as the header says it; None where it does not.

    Attributes:
        number: Of the file, from 0.
        position_lps_mm: ImagePositionPatient.
        orientation_lps: ImageOrientationPatient.
        pixel_spacing_mm: PixelSpacing: between rows, between columns.
        thickness_mm: SpacingBetweenSlices, else SliceThickness, where it is above 0.
        thickness_from: Which of the two.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        unit: RescaleType, in upper case; empty where there is none.
        told_apart: What tells the volumes of a series apart, by keyword.
    """

    number: int
    position_lps_mm: tuple[float, float, float] | None
    orientation_lps: tuple[float, float, float, float, float, float] | None
    pixel_spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    thickness_from: str
    slope: float | None
    intercept: float | None
    unit: str
    told_apart: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CtFile:
    """A file with CT voxels, as its header says it.

    Attributes:
        path: The file.
        sop_class_uid: CT, or one of those with many frames.
        sop_instance_uid: Empty where there is none, as with all that follow.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        frame_of_reference_uid: FrameOfReferenceUID.
        patient: PatientID; compared, never told.
        study_id: StudyID.
        series_number: SeriesNumber; None where it is none.
        description: SeriesDescription.
        kernel: ConvolutionKernel.
        transfer_syntax_uid: How its voxels are encoded.
        rows: Of a slice.
        columns: Of a slice.
        samples: SamplesPerPixel.
        photometric: PhotometricInterpretation.
        bits: BitsAllocated, BitsStored, HighBit, PixelRepresentation.
        lossy: Whether it was compressed with loss, ever.
        tilt_degrees: GantryDetectorTilt; None where there is none.
        frames: Its slices; one of which nothing is known where ``damage`` says why.
        tags: What else was asked for.
        damage: Why the file cannot be used, in words; None: nothing is known to be wrong.
        voxels_at: Where its voxels begin in the file; 0 where that cannot be told.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    patient: str
    study_id: str
    series_number: int | None
    description: str
    kernel: str
    transfer_syntax_uid: str
    rows: int
    columns: int
    samples: int
    photometric: str
    bits: tuple[int | None, int | None, int | None, int | None]
    lossy: bool
    tilt_degrees: float | None
    frames: tuple[Frame, ...]
    tags: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    damage: str | None = None
    voxels_at: int = field(default=0, compare=False)

    @property
    def is_multi_frame(self) -> bool:
        """Whether its slices are frames with functional groups."""
        return self.sop_class_uid in MULTI_FRAME_CT


TAGS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID",
    "SeriesInstanceUID", "StudyID", "SeriesNumber", "SeriesDescription", "ConvolutionKernel", "FrameOfReferenceUID",
    "PatientID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "SamplesPerPixel", "PhotometricInterpretation", "GantryDetectorTilt", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "NumberOfFrames", "LossyImageCompression", "AcquisitionNumber", "AcquisitionTime",
    "TemporalPositionIdentifier", "ModalityLUTSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
"""Of a header, by keyword, all that is looked at."""
_OF_FILE = ("TemporalPositionIdentifier", "AcquisitionNumber", "ConvolutionKernel", "ImageType", "AcquisitionTime")
_OF_FRAME_CONTENT = ("StackID", "TemporalPositionIndex", "FrameAcquisitionNumber")
_OF_FRAME_TYPE = ("FrameType",)
_OF_RECONSTRUCTION = ("ConvolutionKernel",)


def file_of(path: Path, dataset: Dataset, meta: Dataset, syntax_uid: str, keywords: Sequence[str] = ()) -> CtFile:
    """Return what the header of a CT file says.

    Args:
        path: The file.
        dataset: Its header, with :data:`TAGS` and ``keywords``.
        meta: The file's meta information.
        syntax_uid: Its transfer syntax.
        keywords: What else is kept as text.
    """
    sop_class_uid = uid_of(dataset, "SOPClassUID") or uid_of(meta, "MediaStorageSOPClassUID")
    frames: tuple[Frame, ...] = ()
    damage: str | None = None
    if sop_class_uid in MULTI_FRAME_CT:
        frames, damage = _frames_of(dataset)
    else:
        frames = (_frame(0, dataset, dataset, dataset, dataset, _told_apart(dataset, _OF_FILE)),)
        if holds(dataset, "ModalityLUTSequence"):
            damage = "a table (ModalityLUTSequence) in place of slope and intercept, which is not read"
        if (count := whole_number_of(dataset, "NumberOfFrames") or 1) != 1:
            damage = f"{count} frames, of which nothing says where they lie: export them as single slices"
    bits = tuple(unsigned_of(dataset, name) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    return CtFile(
        path,
        sop_class_uid,
        uid_of(dataset, "SOPInstanceUID") or uid_of(meta, "MediaStorageSOPInstanceUID"),
        uid_of(dataset, "StudyInstanceUID"),
        uid_of(dataset, "SeriesInstanceUID"),
        uid_of(dataset, "FrameOfReferenceUID"),
        plain_of(dataset, "PatientID"),
        text_of(dataset, "StudyID"),
        whole_number_of(dataset, "SeriesNumber"),
        text_of(dataset, "SeriesDescription"),
        text_of(dataset, "ConvolutionKernel") or _kernel_of_frames(dataset),
        syntax_uid,
        unsigned_of(dataset, "Rows") or 0,
        unsigned_of(dataset, "Columns") or 0,
        unsigned_of(dataset, "SamplesPerPixel") or 1,
        words_of(dataset, "PhotometricInterpretation")[0],
        (bits[0], bits[1], bits[2], unsigned_of(dataset, "PixelRepresentation")),
        _is_lossy(dataset, syntax_uid),
        number_of(dataset, "GantryDetectorTilt"),
        frames,
        tuple((keyword, text_of(dataset, keyword)) for keyword in keywords),
        damage,
    )


def _is_lossy(dataset: Dataset, syntax_uid: str) -> bool:
    said = words_of(dataset, "LossyImageCompression")[0]
    return syntax_uid in LOSSY or said in ("01", "1") or (syntax_uid in MAYBE_LOSSY and said not in ("00", "0"))


def _frames_of(dataset: Dataset) -> tuple[tuple[Frame, ...], str | None]:
    """Return the frames of a multi-frame object, and what is missing."""
    shared = next(iter(items_of(dataset, "SharedFunctionalGroupsSequence")), Dataset())
    per_frame = items_of(dataset, "PerFrameFunctionalGroupsSequence")
    count = whole_number_of(dataset, "NumberOfFrames")
    if not per_frame or count != len(per_frame):
        nothing = Dataset()
        unknown = _frame(0, nothing, nothing, nothing, nothing, ())
        return (unknown,), f"{count or 0} frames, of which {len(per_frame)} say where they lie: export the series again"
    of_file = _told_apart(dataset, _OF_FILE)
    return tuple(_frame_of_many(number, frame, shared, of_file) for number, frame in enumerate(per_frame)), None


def _frame_of_many(number: int, frame: Dataset, shared: Dataset, of_file: tuple[tuple[str, str], ...]) -> Frame:
    def group(keyword: str) -> Dataset:
        items = items_of(frame, keyword) or items_of(shared, keyword)
        return items[0] if items else Dataset()

    told_apart = (
        *_told_apart(group("FrameContentSequence"), _OF_FRAME_CONTENT),
        *_told_apart(group("CTImageFrameTypeSequence"), _OF_FRAME_TYPE),
        *_told_apart(group("CTReconstructionSequence"), _OF_RECONSTRUCTION),
        *of_file,
    )
    return _frame(
        number,
        group("PlanePositionSequence"),
        group("PlaneOrientationSequence"),
        group("PixelMeasuresSequence"),
        group("PixelValueTransformationSequence"),
        told_apart,
    )


def _frame(
    number: int,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    rescale: Dataset,
    told_apart: tuple[tuple[str, str], ...],
) -> Frame:
    thickness, thickness_from = _thickness_of(measures)
    return Frame(
        number,
        cast("tuple[float, float, float] | None", numbers_of(position, "ImagePositionPatient", 3)),
        cast(
            "tuple[float, float, float, float, float, float] | None",
            numbers_of(orientation, "ImageOrientationPatient", 6),
        ),
        cast("tuple[float, float] | None", numbers_of(measures, "PixelSpacing", 2)),
        thickness,
        thickness_from,
        number_of(rescale, "RescaleSlope"),
        number_of(rescale, "RescaleIntercept"),
        words_of(rescale, "RescaleType")[0],
        told_apart,
    )


def _kernel_of_frames(dataset: Dataset) -> str:
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in items_of(dataset, keyword)[:1]:
            for item in items_of(group, "CTReconstructionSequence"):
                if kernel := text_of(item, "ConvolutionKernel"):
                    return kernel
    return ""


def _thickness_of(measures: Dataset) -> tuple[float | None, str]:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        thickness = number_of(measures, keyword)
        if thickness is not None and thickness > 0:
            return thickness, keyword
    return None, ""


def _told_apart(dataset: Dataset, keywords: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((keyword, plain_of(dataset, keyword)) for keyword in keywords)
