"""CT series in DICOM, made as tests need them: tiny, with a value of its own in every voxel, right or wrong on purpose.

:func:`ct_series` makes the slices of one series as pydicom's data sets, which a test may change as it likes;
:func:`write_series` writes them under any names. :func:`enhanced_ct` puts them into one multi-frame object.
``tests/support/dicom_traps.py`` has the series that readers get wrong, by name.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from ctseg.files.dicom.quiet import quiet

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.936, 0.28, 0.2144, -0.352, 0.744, 0.5680)
"""Near unit vectors; :func:`ct_series` makes them so."""
SHAPE = (8, 20, 24)
"""(z, y, x)."""
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SyntheticSeries:
    """A series, and what a right reader finds in it.

    Attributes:
        datasets: One for each slice, along the normal.
        stored: (z, y, x): the numbers in the files.
        hu: (z, y, x), float64: in Hounsfield units.
        affine_ras: (4, 4), voxel index (x, y, z, 1) to RAS+ in millimetres, the true step as its third axis.
    """

    datasets: list[Dataset]
    stored: npt.NDArray[Any]
    hu: npt.NDArray[np.float64]
    affine_ras: npt.NDArray[np.float64]


def uid(*what: object) -> str:
    """Return a UID that belongs to words and numbers, the same in every run."""
    return str(generate_uid(entropy_srcs=["ctseg tests", *map(str, what)]))


def distinct_voxels(shape: tuple[int, int, int], *, signed: bool = False, bits_stored: int = 12) -> npt.NDArray[Any]:
    """Return voxels with a value of their own, as far as the bits reach, in no order that a mistake could keep."""
    count = 2**bits_stored
    values = np.arange(np.prod(shape)) % count - (count // 2 if signed else 0)
    mixed = np.random.default_rng(0).permutation(values).reshape(shape)
    return mixed.astype(np.int16 if signed else np.uint16)


def ct_series(
    shape: tuple[int, int, int] = SHAPE,
    *,
    orientation: Sequence[float] = AXIAL,
    pixel_spacing_mm: tuple[float, float] = (0.8, 0.8),
    slice_spacing_mm: float = 2.5,
    origin_lps_mm: Sequence[float] = (-9.5, -7.25, 100.0),
    shear_degrees: float = 0.0,
    step_lps_mm: Sequence[float] | None = None,
    stored: npt.NDArray[Any] | None = None,
    signed: bool = False,
    bits_stored: int = 12,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = -1024.0,
    patient_name: str = "Doe^Jane",
    study: int = 1,
    series: int = 3,
    **tags: Any,
) -> SyntheticSeries:
    """Make a series whose slices follow each other along their normal.

    Args:
        shape: Voxels along (z, y, x).
        orientation: Along a row, along a column, in LPS.
        pixel_spacing_mm: Between rows, between columns.
        slice_spacing_mm: Along the normal.
        origin_lps_mm: Of the first slice.
        shear_degrees: Angle between the step and the normal, towards the column.
        step_lps_mm: From slice to slice, in place of the three before.
        stored: (z, y, x) in place of distinct ones; integers of 2 bytes.
        signed: Whether PixelRepresentation is 1.
        bits_stored: Of 16.
        slope: RescaleSlope, of all slices or of each.
        intercept: RescaleIntercept, likewise.
        patient_name: PatientName.
        study: Decides the StudyInstanceUID.
        series: SeriesNumber; decides the SeriesInstanceUID, and with the rest those of the instances.
        tags: By keyword, set on every slice; None takes one away.
    """
    stored = distinct_voxels(shape, signed=signed, bits_stored=bits_stored) if stored is None else stored
    along_x, along_y, normal = _axes(orientation)
    if step_lps_mm is None:
        step = slice_spacing_mm * (normal + np.tan(np.deg2rad(shear_degrees)) * along_y)
    else:
        step = np.array(step_lps_mm, dtype=float)
    slopes, intercepts = np.broadcast_to(slope, shape[0]), np.broadcast_to(intercept, shape[0])
    datasets = []
    for index, plane in enumerate(stored):
        dataset = _slice_of(plane, patient_name, study, series, index)
        dataset.PixelRepresentation = int(signed)
        dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
        dataset.PixelSpacing = _ds(*pixel_spacing_mm)
        dataset.SliceThickness = _ds(float(step @ normal))[0]
        dataset.ImageOrientationPatient = _ds(*along_x, *along_y)
        place(dataset, np.array(origin_lps_mm) + index * step)
        dataset.RescaleSlope, dataset.RescaleIntercept = _ds(slopes[index], intercepts[index])
        set_tags(dataset, **tags)
        datasets.append(dataset)
    hu = stored * slopes[:, None, None] + intercepts[:, None, None]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_x * pixel_spacing_mm[1], along_y * pixel_spacing_mm[0]
    affine[:3, 2], affine[:3, 3] = step, origin_lps_mm
    return SyntheticSeries(datasets, stored, hu, RAS_FROM_LPS @ affine)


def place(dataset: Dataset, position_lps_mm: npt.NDArray[np.float64]) -> None:
    """Move a slice."""
    dataset.ImagePositionPatient = _ds(*position_lps_mm)


def set_tags(dataset: Dataset, **tags: Any) -> None:
    """Set tags by keyword, to values that their VR does not allow, too; None takes one away."""
    with quiet():
        for keyword, value in tags.items():
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)


def set_raw(dataset: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Set a tag to bytes that its VR does not allow."""
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def other_object(like: Dataset, sop_class_uid: str, modality: str, number: int = 900, **tags: Any) -> Dataset:
    """Return an object of the same study that is no CT slice: a report, a structure set, an MR image."""
    dataset = copy.deepcopy(like)
    set_tags(
        dataset,
        SOPClassUID=sop_class_uid,
        SOPInstanceUID=uid("other", like.SOPInstanceUID, number),
        SeriesInstanceUID=uid("other", like.SeriesInstanceUID, number),
        SeriesNumber=number,
        Modality=modality,
        **tags,
    )
    return dataset


def write_series(
    folder: Path,
    datasets: Sequence[Dataset],
    *,
    names: Sequence[str] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    preamble: bool = True,
) -> list[Path]:
    """Write data sets as files, and return their paths.

    Args:
        folder: Made if it is not there.
        datasets: As they are to stand on disk; they are not changed.
        names: Of the files; ``IM0001`` and so on where none are given.
        syntax: Transfer syntax: implicit, explicit, big endian, deflated, or RLE lossless.
        preamble: Whether files begin with it and the file meta information; without, the syntax is implicit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (names[index] if names else f"IM{index + 1:04d}") for index in range(len(datasets))]
    with quiet():
        for path, dataset in zip(paths, datasets, strict=True):
            _write(path, dataset, syntax, preamble=preamble)
    return paths


def enhanced_ct(
    series: SyntheticSeries,
    *,
    order: Sequence[int] | None = None,
    shared: bool = False,
    frame_tags: Sequence[dict[str, Any]] = (),
) -> Dataset:
    """Return a series as one Enhanced CT object.

    Args:
        series: Its slices become frames.
        order: Of the frames: for each, which slice it is.
        shared: Whether what is equal for all frames stands in the shared functional groups.
        frame_tags: For each frame, what its FrameContentSequence says too, such as ``StackID``.
    """
    order = range(len(series.datasets)) if order is None else order
    first = series.datasets[0]
    dataset = copy.deepcopy(first)
    moved = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
             "RescaleIntercept", "RescaleType", "InstanceNumber", "PixelPaddingValue")  # fmt: skip
    set_tags(dataset, **dict.fromkeys(moved))
    set_tags(
        dataset,
        SOPClassUID=EnhancedCTImageStorage,
        SOPInstanceUID=uid("enhanced", first.SOPInstanceUID),
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        NumberOfFrames=len(order),
        InstanceNumber=1,
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
        ContentDate="20260102",
        ContentTime="101500",
        PixelData=np.ascontiguousarray(series.stored[list(order)]).tobytes(),
    )
    _add_dimensions(dataset)
    per_frame = []
    for number, index in enumerate(order):
        content = Dataset()
        content.StackID, content.InStackPositionNumber = "1", index + 1
        content.DimensionIndexValues = [1, index + 1]
        set_tags(content, **(frame_tags[number] if frame_tags else {}))
        frame = Dataset()
        frame.FrameContentSequence = Items([content])
        frame.PlanePositionSequence = _items(series.datasets[index], "ImagePositionPatient")
        if not shared:
            _add_groups(frame, series.datasets[index])
        per_frame.append(frame)
    common = Dataset()
    if shared:
        _add_groups(common, first)
    dataset.SharedFunctionalGroupsSequence = Items([common])
    dataset.PerFrameFunctionalGroupsSequence = Items(per_frame)
    return dataset


def _add_dimensions(dataset: Dataset) -> None:
    organization, stack, position = Dataset(), Dataset(), Dataset()
    organization.DimensionOrganizationUID = uid("dimensions", dataset.SOPInstanceUID)
    for index, keyword in ((stack, "StackID"), (position, "InStackPositionNumber")):
        index.DimensionOrganizationUID = organization.DimensionOrganizationUID
        index.DimensionIndexPointer = Tag(keyword)
        index.FunctionalGroupPointer = Tag("FrameContentSequence")
    dataset.DimensionOrganizationSequence = Items([organization])
    dataset.DimensionIndexSequence = Items([stack, position])


def _add_groups(groups: Dataset, of: Dataset) -> None:
    frame_type = Dataset()
    frame_type.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    frame_type.PixelPresentation = "MONOCHROME"
    frame_type.VolumetricProperties = "VOLUME"
    frame_type.VolumeBasedCalculationTechnique = "NONE"
    groups.CTImageFrameTypeSequence = Items([frame_type])
    groups.PlaneOrientationSequence = _items(of, "ImageOrientationPatient")
    groups.PixelMeasuresSequence = _items(of, "PixelSpacing", "SliceThickness")
    groups.PixelValueTransformationSequence = _items(of, "RescaleIntercept", "RescaleSlope", "RescaleType")


def _items(of: Dataset, *keywords: str) -> Items:
    item = Dataset()
    for keyword in keywords:
        if keyword in of:
            item[keyword] = copy.deepcopy(of[keyword])
    return Items([item])


def _axes(orientation: Sequence[float]) -> tuple[npt.NDArray[np.float64], ...]:
    along_x, along_y = np.array(orientation[:3]), np.array(orientation[3:])
    along_x = along_x / np.linalg.norm(along_x)
    along_y = along_y - (along_y @ along_x) * along_x
    along_y /= np.linalg.norm(along_y)
    return along_x, along_y, np.cross(along_x, along_y)


def _slice_of(plane: npt.NDArray[Any], patient_name: str, study: int, series: int, index: int) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid(study, series, index)
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20260102"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "101500"
    dataset.AccessionNumber = f"A{study}"
    dataset.Modality = "CT"
    dataset.Manufacturer = "ctseg tests"
    dataset.ReferringPhysicianName = "Roe^Richard"
    dataset.StudyDescription = "Abdomen"
    dataset.SeriesDescription = "Thorax 1.0"
    dataset.PatientName = patient_name
    dataset.PatientID = "0042"
    dataset.PatientBirthDate = "19700101"
    dataset.PatientSex = "F"
    dataset.BodyPartExamined = "ABDOMEN"
    dataset.KVP = "120"
    dataset.ConvolutionKernel = "B30f"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = uid(study)
    dataset.SeriesInstanceUID = uid(study, series)
    dataset.StudyID = str(study)
    dataset.SeriesNumber = series
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = index + 1
    dataset.FrameOfReferenceUID = uid(study, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated = 16
    dataset.RescaleType = "HU"
    dataset.add_new("PixelData", "OW", np.ascontiguousarray(plane).tobytes())
    return dataset


def _write(path: Path, dataset: Dataset, syntax: str, *, preamble: bool) -> None:
    dataset = copy.deepcopy(dataset)
    if not preamble:
        dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
        return
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", uid("no instance"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    dataset.file_meta = meta
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
        dataset["PixelData"].value = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dcmwrite(
        path,
        dataset,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )


def _ds(*values: float) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]
