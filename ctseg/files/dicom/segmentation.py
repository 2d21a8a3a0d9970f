"""DICOM Segmentation objects (SEG)."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
import numpy.typing as npt
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription, SegmentsOverlapValues
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from ctseg.errors import InputError
from ctseg.files.dicom.carried_over import content_moment, is_uid, patient_and_study, valid_text, valid_value
from ctseg.files.dicom.own_objects import equipment, series_description, series_number, write_object
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.results import DicomResult, Segment, source_header
from ctseg.files.dicom.series import CtSeries, CtSlice
from ctseg.presentation import Code

_KIND: Literal["dicom_seg"] = "dicom_seg"
_MOST_SEGMENTS = _HIGHEST_VALUE = 2**16 - 1
_MOST_PIXEL_BYTES = 2**32 - 2


def segmentation_problem(result: DicomResult) -> str | None:
    """Return why no segmentation can be written of a case, as far as headers tell; None: nothing is wrong."""
    series = result.series
    if series.problem is not None:
        return series.problem
    if not series.frame_of_reference_uid:
        return (
            "the series has no FrameOfReferenceUID, which a SEG needs to say where it lies: export the series with it"
        )
    named = (series.study_uid, series.series_uid, series.frame_of_reference_uid, series.sop_class_uid)
    if not all(map(is_uid, [*named, *(slice_.sop_instance_uid for slice_ in series.slices)])):
        return "the series has UIDs that are none: a SEG could not refer to it"
    if not 0 < len(result.segments) <= _MOST_SEGMENTS:
        return f"expected 1 to {_MOST_SEGMENTS} labels, which a SEG can number, found {len(result.segments)}"
    if (highest := max(max(segment.values) for segment in result.segments)) > _HIGHEST_VALUE:
        return f"expected label values up to {_HIGHEST_VALUE}, found {highest}"
    if result.segmentation_type == "LABELMAP" and (shared := _overlapping(result)):
        return (
            f"a SEG of the type LABELMAP holds one label a voxel, and {' and '.join(shared)} share voxels: write it as "
            "BINARY"
        )
    return None


def write_segmentation(path: Path, labels: npt.NDArray[Any], result: DicomResult) -> None:
    """Write a label map as a DICOM Segmentation.

    A segment that is nowhere has no frame. In a label map without any label, each segment has one empty frame, at the
    first slice: a segmentation has at least one. LABELMAP has a frame for each slice, empty or not.

    Args:
        path: Not there yet.
        labels: (z, y, x) in order of the source's slices; values that belong to no segment are background.
        result: What the object says.

    Raises:
        InputError: It cannot be written of this case.
        OSError: The file cannot be written.
        ValueError: The label map has another shape than the series.
    """
    series = result.series
    if (problem := segmentation_problem(result)) is not None:
        raise InputError(f"{series.label}: no SEG can be written: {problem}")
    expected = (len(series.slices), series.rows, series.columns)
    if labels.shape != expected:
        raise ValueError(f"expected labels of the shape {expected}, found {labels.shape}")
    numbered, members = _numbered(labels, result.segments)
    slices = series.slices
    is_labelmap = result.segmentation_type == "LABELMAP"
    is_empty = not numbered.any()
    if is_empty and not is_labelmap:
        numbered, slices = numbered[:1], slices[:1]
    header = source_header(series)
    with quiet():
        date, time = content_moment(header)
        made = _Segmentation(
            members,
            source_images=_plain_images(header, series, slices),
            pixel_array=numbered,
            segmentation_type=result.segmentation_type,
            segment_descriptions=[_description(segment, result) for segment in result.segments],
            series_instance_uid=result.series_uid(_KIND),
            series_number=series_number(result, _KIND),
            sop_instance_uid="2.25.0",
            instance_number=1,
            manufacturer="",
            manufacturer_model_name="",
            software_versions="",
            device_serial_number="",
            transfer_syntax_uid=RLELossless if is_labelmap else ExplicitVRLittleEndian,
            omit_empty_frames=not is_labelmap and not is_empty,
            content_label="CTSEG",
            content_description=series_description(result, _KIND),
            series_description=series_description(result, _KIND),
            content_date=date,
            content_time=time,
        )
        del made.InstanceCreationDate, made.InstanceCreationTime, made.ContributingEquipmentSequence
        made.update(equipment(result))
        made.ContentCreatorName = None  # may be empty, not absent
        _refer(made, series, slices)
        _derive_dimensions(made, result)
        if len(made.PixelData) > _MOST_PIXEL_BYTES:
            raise InputError(
                f"{series.label}: no SEG can be written: its {made.NumberOfFrames} frames have more than 4 GiB: write "
                "it as LABELMAP"
            )
        write_object(path, made)


class _Segmentation(Segmentation):
    """A segmentation whose frames keep the order of the source's slices, and whose segments may overlap.

    Args:
        members: Which numbers of the pixel array belong to each segment, by its number.
        arguments: Of highdicom's class.
    """

    def __init__(self, members: Mapping[int, Sequence[int]], **arguments: Any) -> None:
        self._members = members
        super().__init__(**arguments)

    def _check_and_cast_pixel_array(  # type: ignore[override]  # highdicom knows one number a segment, or 4-D arrays
        self, pixel_array: npt.NDArray[Any], *_: Any, **__: Any
    ) -> tuple[npt.NDArray[Any], SegmentsOverlapValues]:
        numbers = [number for numbers in self._members.values() for number in numbers]
        overlap = len(set(numbers)) < len(numbers)
        return pixel_array, SegmentsOverlapValues.YES if overlap else SegmentsOverlapValues.NO

    def _get_segment_pixel_array(  # type: ignore[override]
        self, plane: npt.NDArray[Any], segment_number: int, **_: Any
    ) -> npt.NDArray[Any]:
        found = reduce(np.logical_or, (plane == number for number in self._members[segment_number]))
        return np.asarray(found).view(np.uint8)

    def _prepare_spatial_metadata(self, *args: Any, **arguments: Any) -> Any:
        *spatial, order, items = super()._prepare_spatial_metadata(*args, **arguments)
        return *spatial, np.arange(len(order)), items


def _numbered(
    labels: npt.NDArray[Any], segments: Sequence[Segment]
) -> tuple[npt.NDArray[Any], Mapping[int, Sequence[int]]]:
    """Return the label map in numbers from 1 on, and which of them belong to each segment.

    Where segments do not overlap, these are the segments' own numbers; else there is one for each set of segments that
    a value belongs to.
    """
    sets: dict[int, tuple[int, ...]] = {}
    for segment in segments:
        for value in segment.values:
            sets[value] = (*sets.get(value, ()), segment.number)
    number_of: dict[tuple[int, ...], int] = {(segment.number,): segment.number for segment in segments}
    for members in sets.values():
        number_of.setdefault(members, len(number_of) + 1)
    highest = max(sets)
    table = np.zeros(highest + 2, np.uint8 if len(number_of) < 2**8 else np.uint16 if len(number_of) < 2**16 else int)
    for value, members in sets.items():
        table[value] = 0 if value == 0 else number_of[members]
    numbered = np.empty(labels.shape, table.dtype)
    for z, plane in enumerate(labels):
        np.take(table, np.minimum(plane, np.intp(highest + 1)), out=numbered[z])
    return numbered, {
        segment.number: [number for members, number in number_of.items() if segment.number in members]
        for segment in segments
    }


def _overlapping(result: DicomResult) -> tuple[str, str] | None:
    """Return the names of two segments that share a value."""
    owner: dict[int, str] = {}
    for segment in result.segments:
        for value in segment.values:
            if value in owner:
                return owner[value], segment.name
            owner[value] = segment.name
    return None


def _plain_images(header: Dataset, series: CtSeries, slices: Sequence[CtSlice]) -> list[Dataset]:
    """Return a single image for each slice, which says what highdicom asks for and nothing that is malformed."""
    shared = patient_and_study(header)
    shared.Modality = "CT"
    shared.SOPClassUID = CTImageStorage
    shared.StudyInstanceUID = series.study_uid
    shared.SeriesInstanceUID = series.series_uid
    shared.FrameOfReferenceUID = series.frame_of_reference_uid
    shared.PositionReferenceIndicator = ""
    shared.Rows, shared.Columns = series.rows, series.columns
    shared.PixelSpacing = list(series.pixel_spacing_mm)
    shared.ImageOrientationPatient = list(series.orientation_lps)
    distance_mm = float(np.linalg.norm(series.geometry.affine_ras[:3, 2]))
    shared.SpacingBetweenSlices = shared.SliceThickness = distance_mm
    if valid_value(header, "LossyImageCompression") == "01":
        shared.LossyImageCompression = "01"
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if value := valid_value(header, keyword):
                setattr(shared, keyword, value)
    images = []
    for index, slice_ in enumerate(slices):
        image = Dataset()
        image.update(shared)
        image.SOPInstanceUID = f"2.25.{index + 1}"  # highdicom tells them apart by it; frames of one file have the same
        image.ImagePositionPatient = list(slice_.position_lps_mm)
        images.append(image)
    return images


def _description(segment: Segment, result: DicomResult) -> SegmentDescription:
    shown = segment.presentation
    if shown.category is None or shown.type is None:
        raise ValueError(f"{segment.name} has no category or no type")
    maker = result.maker
    described = SegmentDescription(
        segment_number=segment.number,
        segment_label=valid_text(shown.display_name or segment.name, "LO") or f"label {segment.number}",
        segmented_property_category=concept(shown.category),
        segmented_property_type=concept(shown.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm(result),
        tracking_id=tracking_id(segment, result),
        tracking_uid=tracking_uid(segment, result),
        display_color=None if shown.colour is None else CIELabColor.from_rgb(*shown.colour),
        anatomic_regions=None if shown.region is None else [concept(shown.region)],
    )
    if shown.modifier is not None:
        (kind,) = described.SegmentedPropertyTypeCodeSequence
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept(shown.modifier)]
    if shown.region is not None and shown.region_modifier is not None:
        (region,) = described.AnatomicRegionSequence
        region.AnatomicRegionModifierSequence = [concept(shown.region_modifier)]
    described.SegmentDescription = valid_text(f"{segment.name} by {maker.model}", "LO")
    return described


def algorithm(result: DicomResult) -> hd.AlgorithmIdentificationSequence:
    """Return which model made a result, with the digest of its spec and its options."""
    maker = result.maker
    return hd.AlgorithmIdentificationSequence(
        name=valid_text(maker.model, "LO"),
        family=codes.DCM.ArtificialIntelligence,
        version=valid_text(maker.version, "LO"),
        source="ctseg",
        parameters={"spec_sha256": maker.digest}
        | {valid_text(name, "LO"): valid_text(value, "LO") for name, value in maker.options},
    )


def tracking_id(segment: Segment, result: DicomResult) -> str:
    """Return what a segment is called wherever it is tracked, for people."""
    return valid_text(f"{result.maker.model} {segment.name}", "LO")


def tracking_uid(segment: Segment, result: DicomResult) -> str:
    """Return by what a segment is tracked, in the segmentation and in what refers to it."""
    return result.derived(_KIND, "tracking", segment.number)


def concept(code: Code) -> CodedConcept:
    """Return a code as DICOM writes it."""
    value = valid_text(code.value, "LO")
    return CodedConcept(value, valid_text(code.scheme, "SH"), valid_text(code.meaning, "LO") or value)


def _refer(made: Dataset, series: CtSeries, slices: Sequence[CtSlice]) -> None:
    """Let the segmentation refer to the files of the series, all of them, and each frame to its slice."""
    made.ReferencedSeriesSequence = [referenced_series(series)]
    sources = [
        frame.DerivationImageSequence[0].SourceImageSequence[0] for frame in made.PerFrameFunctionalGroupsSequence
    ]
    for source in {id(source): source for source in sources}.values():  # frames of a slice share the item
        slice_ = slices[int(source.ReferencedSOPInstanceUID.rpartition(".")[2]) - 1]
        source.ReferencedSOPClassUID = series.sop_class_uid
        source.ReferencedSOPInstanceUID = slice_.sop_instance_uid
        if series.sop_class_uid != CTImageStorage:
            source.ReferencedFrameNumber = slice_.frame + 1


def referenced_series(series: CtSeries) -> Dataset:
    """Return the item that names a series and its files."""
    item = Dataset()
    item.SeriesInstanceUID = series.series_uid
    item.ReferencedInstanceSequence = []
    for uid in dict.fromkeys(slice_.sop_instance_uid for slice_ in series.slices):
        instance = Dataset()
        instance.ReferencedSOPClassUID = series.sop_class_uid
        instance.ReferencedSOPInstanceUID = uid
        item.ReferencedInstanceSequence.append(instance)
    return item


def _derive_dimensions(made: Dataset, result: DicomResult) -> None:
    uid = result.derived(_KIND, "dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
