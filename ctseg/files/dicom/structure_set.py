"""DICOM RT Structure Sets (RTSTRUCT)."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from ctseg.compiled.parallel import run_parallel
from ctseg.errors import InputError
from ctseg.files.dicom.carried_over import content_moment, is_uid, patient_and_study, valid_text
from ctseg.files.dicom.contours import Contour, Plane, contours_of
from ctseg.files.dicom.object_kinds import DicomFormat
from ctseg.files.dicom.own_objects import equipment, series_description, series_number, write_object
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.results import DicomResult, Segment, source_header
from ctseg.files.dicom.series import CtSeries, CtSlice
from ctseg.presentation import Code, LabelPresentation

_KIND: DicomFormat = "dicom_rtstruct"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired: what every structure set names a study by."""
_ANATOMICAL_STRUCTURE = {("SCT", "123037004"), ("SRT", "T-D000A")}
_MAX_BYTES = 2**31 - 2**20
"""Of a file: many readers count its bytes, and those of a sequence, in 32 bits with a sign."""
_MAX_CONTOURS = 1_000_000
"""Of a file: readers keep each as an object of its own; 58 organs in 150 slices have 3,489."""
_LEAST_SPACING_MM = 0.001
"""Points have six decimals, so they lie within 0.0000005 mm; pixel centres are half a spacing from each contour."""
_FARTHEST_PIXELS = 1e6
"""From the origin: readers that hold positions in float32 are then off by at most an eighth of a pixel."""
_AXIAL = 1e-4
"""How far a direction may be off the patient's axes (a cosine)."""


def structure_set_problem(result: DicomResult) -> str | None:
    """Return why no structure set can be written of a case, as far as headers tell; None: nothing is wrong."""
    series = result.series
    if series.problem is not None:
        return series.problem
    if not series.frame_of_reference_uid:
        return "the series has no FrameOfReferenceUID, in which contours lie: export the series with it"
    named = (series.study_uid, series.series_uid, series.frame_of_reference_uid, series.sop_class_uid)
    if not all(map(is_uid, [*named, *(slice_.sop_instance_uid for slice_ in series.slices)])):
        return "the series has UIDs that are none: a structure set could not refer to it"
    spacing, farthest = float(np.min(series.pixel_spacing_mm)), _farthest_mm(series)
    if not (spacing >= _LEAST_SPACING_MM and farthest <= _FARTHEST_PIXELS * spacing):
        return (
            f"expected pixels of {_LEAST_SPACING_MM} mm or more, at most {_FARTHEST_PIXELS:.0f} of them from the "
            f"origin, found {spacing:g} mm and {farthest:g} mm: contours would not hold them exactly"
        )
    return None


def write_structure_set(path: Path, labels: npt.NDArray[Any], result: DicomResult) -> tuple[str, ...]:
    """Write a label map as a DICOM RT Structure Set, whose contours give back the very voxels.

    Each slice's contours lie at the source's own position of that slice, and run along the edges of pixels; see
    :mod:`ctseg.files.dicom.contours`. A segment without voxels becomes a region of interest without contours.

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
    series = result.series
    if problem := structure_set_problem(result):
        raise InputError(f"{series.label}: no structure set can be written: {problem}")
    if labels.shape != (expected := (len(series.slices), series.rows, series.columns)):
        raise ValueError(f"{series.label}: expected labels of shape {expected}, found {labels.shape}")
    contours = _encoded_contours(labels, result)
    source = source_header(series)
    with quiet():
        dataset = _dataset(source, result, contours)
        write_object(path, dataset)
    return tuple(_warnings(series))


def _warnings(series: CtSeries) -> Iterator[str]:
    directions = np.abs(series.orientation_lps).reshape(2, 3)
    if directions[:, 2].max() > _AXIAL:
        yield (
            f"{series.label}: its slices are not axial; the structure set is right, but many planning systems read "
            "axial contours alone"
        )
    elif directions.max(axis=1).min() < 1 - _AXIAL:
        yield (
            f"{series.label}: its rows do not run along the patient's axes; the structure set is right, but planning "
            "systems that resample to the patient's axes get other voxels"
        )


def _farthest_mm(series: CtSeries) -> float:
    across, down = series.columns * series.pixel_spacing_mm[1], series.rows * series.pixel_spacing_mm[0]
    positions = np.array([slice_.position_lps_mm for slice_ in series.slices])
    return float(np.abs(positions).max() + across + down)


# contours


def _encoded_contours(labels: npt.NDArray[Any], result: DicomResult) -> list[bytes]:
    """Return the items of each segment's ContourSequence, in order of the slices."""
    series = result.series
    groups = list(_disjoint(result.segments, int(labels.max(initial=0))))
    steps = [
        np.array(direction) * spacing
        for direction, spacing in zip(
            (series.orientation_lps[3:], series.orientation_lps[:3]), series.pixel_spacing_mm, strict=True
        )
    ]
    of_slices: list[list[tuple[int, bytes]]] = [[] for _ in labels]
    counts, sizes = [0] * len(labels), [0] * len(labels)
    is_multiframe = len(series.paths) < len(series.slices)

    def trace(first: int, last: int) -> None:
        for z in range(first, last):
            reference = _element(0x30060016, _item(_encoded(_image_reference(series, series.slices[z], is_multiframe))))
            plane = Plane(np.array(series.slices[z].position_lps_mm), steps[0], steps[1])
            for colours in groups:
                of_slices[z] += [
                    (contour.colour - 1, _item(reference + _encoded_contour(contour)))
                    for contour in contours_of(colours[labels[z]], plane)
                ]
            counts[z], sizes[z] = len(of_slices[z]), sum(len(item) for _, item in of_slices[z])
            if sum(counts) > _MAX_CONTOURS or sum(sizes) > _MAX_BYTES:
                raise InputError(
                    f"{series.label}: no structure set can be written: expected at most {_MAX_CONTOURS} contours and "
                    "2 GiB, which is what readers take, found more: the labels are scattered over very many parts; "
                    "write a segmentation instead"
                )

    run_parallel(trace, len(labels))
    found: list[list[bytes]] = [[] for _ in result.segments]
    for of_slice in of_slices:
        for index, item in of_slice:
            found[index].append(item)
    return [b"".join(items) for items in found]


def _disjoint(segments: Sequence[Segment], highest: int) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield tables from a voxel's value to 1 + the index of its segment; segments of one table share no value."""
    left = list(enumerate(segments))
    while left:
        table, later = np.zeros(highest + 1, np.uint16), []
        for index, segment in left:
            values = [value for value in segment.values if value <= highest]
            if table[values].any():
                later.append((index, segment))
            else:
                table[values] = index + 1
        yield table
        left = later


def _encoded_contour(contour: Contour) -> bytes:
    points = str(contour.points).encode()
    return (
        _element(0x30060042, b"CLOSED_PLANAR ")
        + _element(0x30060046, points + b" " * (len(points) % 2))
        + _element(0x30060050, contour.text)
    )


def _image_reference(series: CtSeries, slice_: CtSlice, is_multiframe: bool) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = series.sop_class_uid
    reference.ReferencedSOPInstanceUID = slice_.sop_instance_uid
    if is_multiframe:
        reference.ReferencedFrameNumber = slice_.frame + 1
    return reference


def _encoded(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def _element(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _item(content: bytes) -> bytes:
    return _element(0xFFFEE000, content)


# everything else


def _dataset(source: Dataset, result: DicomResult, contours: Sequence[bytes]) -> Dataset:
    series = result.series
    dataset = patient_and_study(source)
    dataset.update(equipment(result))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.StudyInstanceUID = series.study_uid
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = result.series_uid(_KIND)
    dataset.SeriesNumber = series_number(result, _KIND)
    dataset.SeriesDescription = series_description(result, _KIND)
    dataset.OperatorsName = ""
    dataset.FrameOfReferenceUID = series.frame_of_reference_uid
    dataset.PositionReferenceIndicator = ""
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel = valid_text(result.maker.model, "SH") or "ctseg"
    dataset.StructureSetName = series_description(result, _KIND)
    dataset.StructureSetDate, dataset.StructureSetTime = content_moment(source)
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame(series)]
    dataset.StructureSetROISequence = [_roi(segment, series) for segment in result.segments]
    dataset.ROIContourSequence = [
        _roi_contour(segment, items) for segment, items in zip(result.segments, contours, strict=True)
    ]
    dataset.RTROIObservationsSequence = [_observation(segment) for segment in result.segments]
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _referenced_frame(series: CtSeries) -> Dataset:
    referenced_series = Dataset()
    referenced_series.SeriesInstanceUID = series.series_uid
    by_file = {slice_.path: slice_ for slice_ in series.slices}
    referenced_series.ContourImageSequence = [_image_reference(series, slice_, False) for slice_ in by_file.values()]
    study = Dataset()
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = series.study_uid
    study.RTReferencedSeriesSequence = [referenced_series]
    frame = Dataset()
    frame.FrameOfReferenceUID = series.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _roi(segment: Segment, series: CtSeries) -> Dataset:
    roi = Dataset()
    roi.ROINumber = segment.number
    roi.ReferencedFrameOfReferenceUID = series.frame_of_reference_uid
    roi.ROIName = valid_text(segment.name, "LO") or f"label {segment.number}"
    if segment.presentation.display_name:
        roi.ROIDescription = valid_text(segment.presentation.display_name, "ST")
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    return roi


def _roi_contour(segment: Segment, items: bytes) -> Dataset:
    contour = Dataset()
    if segment.presentation.colour is not None:
        contour.ROIDisplayColor = list(segment.presentation.colour)
    contour.ReferencedROINumber = segment.number
    if items:
        # the sequence as it stands in the file, which names no VR; pydicom would take a minute for many contours
        contour.add_new(0x30060040, "OB", items)
    return contour


def _observation(segment: Segment) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = segment.number
    observation.ReferencedROINumber = segment.number
    presentation = segment.presentation
    for keyword, codes in _codes(presentation):
        setattr(observation, keyword, codes)
    category = presentation.category
    is_organ = category is not None and (category.scheme, category.value) in _ANATOMICAL_STRUCTURE
    observation.RTROIInterpretedType = "ORGAN" if is_organ else ""
    observation.ROIInterpreter = ""
    return observation


def _codes(presentation: LabelPresentation) -> Iterator[tuple[str, list[Dataset]]]:
    for keyword, code, modifier_keyword, modifier in (
        ("SegmentedPropertyCategoryCodeSequence", presentation.category, "", None),
        (
            "RTROIIdentificationCodeSequence",
            presentation.type,
            "SegmentedPropertyTypeModifierCodeSequence",
            presentation.modifier,
        ),
        ("AnatomicRegionSequence", presentation.region, "AnatomicRegionModifierSequence", presentation.region_modifier),
    ):
        if code is not None:
            item = _code(code)
            if modifier is not None:
                setattr(item, modifier_keyword, [_code(modifier)])
            yield keyword, [item]


def _code(code: Code) -> Dataset:
    item = Dataset()
    is_resource = code.value.startswith("urn:") or "://" in code.value
    keyword = "CodeValue" if len(code.value) <= 16 else "URNCodeValue" if is_resource else "LongCodeValue"
    setattr(item, keyword, valid_text(code.value, "UC"))
    item.CodingSchemeDesignator = valid_text(code.scheme, "SH")
    item.CodeMeaning = valid_text(code.meaning, "LO") or valid_text(code.value, "LO")
    return item
