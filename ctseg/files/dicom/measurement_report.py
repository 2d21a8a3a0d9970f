"""DICOM Structured Reports with the volume of each label (TID 1500)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydicom
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ctseg.errors import CtsegError, InputError
from ctseg.files.dicom.carried_over import content_moment, patient_and_study, valid_text
from ctseg.files.dicom.own_objects import equipment, series_description, series_number, write_object
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.results import MANUFACTURER, DicomResult, Segment
from ctseg.files.dicom.segmentation import concept, tracking_id, tracking_uid
from ctseg.files.dicom.uids import derived_uid
from ctseg.presentation import LabelPresentation

_KIND: Literal["dicom_sr"] = "dicom_sr"
_MM3_PER_ML = 1000
_DIGITS = 10
_IMAGING_PROCEDURE = codes.SCT.ImagingProcedure
_SIDES = ("7771000", "24028007", "51440002")
"""SNOMED CT: left, right, both."""


def write_measurement_report(
    path: Path, volumes_ml: Mapping[str, float], result: DicomResult, segmentation: Path
) -> None:
    """Write the volume of each label as a structured report that refers to a segmentation.

    Volumes are in cubic millimetres, UCUM's unit for them in reports. A label that is not found has the volume 0, and
    refers to its segment, which has no frame.

    Args:
        path: Not there yet.
        volumes_ml: By the name of the label.
        result: What the object says.
        segmentation: The segmentation of the same case, written before.

    Raises:
        InputError: It cannot be written of this case.
        OSError: The file cannot be written.
    """
    with quiet():
        seg = _header_of(segmentation, result)
        date, time = content_moment(seg)
        made = sr.Comprehensive3DSR(
            evidence=[seg],
            content=_content(volumes_ml, result, seg),
            series_instance_uid=result.series_uid(_KIND),
            series_number=series_number(result, _KIND),
            sop_instance_uid="2.25.0",
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            series_description=series_description(result, _KIND),
            content_date=date,
            content_time=time,
        )
        del made.InstanceCreationDate, made.InstanceCreationTime, made.ContributingEquipmentSequence
        made.update(equipment(result))
        write_object(path, made)


def _header_of(segmentation: Path, result: DicomResult) -> Dataset:
    """Return what the report takes over from the segmentation."""
    try:
        read = pydicom.dcmread(segmentation, stop_before_pixels=True, defer_size=1024)
        if read.SeriesInstanceUID != result.series_uid("dicom_seg"):
            raise InputError(f"{result.series.label}: the SEG to which the report refers is of another result")
        header = patient_and_study(read)
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(header, keyword, read[keyword].value)
        header.ContentDate, header.ContentTime = read.ContentDate, read.ContentTime
    except CtsegError:
        raise
    except Exception as error:  # whatever pydicom makes of it
        raise InputError(f"{result.series.label}: the SEG to which the report refers cannot be read") from error
    return header


def _content(volumes_ml: Mapping[str, float], result: DicomResult, seg: Dataset) -> sr.MeasurementReport:
    maker = result.maker
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid(MANUFACTURER, "device", maker.model, maker.version, maker.digest),
        name=valid_text(maker.model, "LO"),
        manufacturer_name=MANUFACTURER,
        model_name=valid_text(maker.model, "LO"),
    )
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_IMAGING_PROCEDURE,
        imaging_measurements=[_measured(segment, volumes_ml[segment.name], result, seg) for segment in result.segments],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _measured(
    segment: Segment, volume_ml: float, result: DicomResult, seg: Dataset
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    shown, maker = segment.presentation, result.maker
    if shown.category is None or shown.type is None:
        raise ValueError(f"{segment.name} has no category or no type")
    site = _site(shown)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(tracking_uid(segment, result), tracking_id(segment, result)),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=segment.number,
            source_series=sr.SourceSeriesForSegmentation(result.series.series_uid),
        ),
        finding_category=concept(shown.category),
        finding_type=concept(shown.type),
        finding_sites=None if site is None else [site],
        algorithm_id=sr.AlgorithmIdentification(
            name=valid_text(maker.model, "LO"),
            version=valid_text(maker.version, "LO"),
            parameters=[f"spec_sha256={maker.digest}", *(f"{name}={value}" for name, value in maker.options)],
        ),
        measurements=[
            sr.Measurement(
                name=codes.SCT.Volume,
                value=float(f"{volume_ml * _MM3_PER_ML:.{_DIGITS}g}"),
                unit=codes.UCUM.CubicMillimeter,
            )
        ],
    )


def _site(shown: LabelPresentation) -> sr.FindingSite | None:
    """Return where a label is: its region, or itself, where it has a side."""
    if shown.region is not None:
        side = None if shown.region_modifier is None else concept(shown.region_modifier)
        return sr.FindingSite(concept(shown.region), laterality=side)
    if shown.modifier is None or shown.type is None or shown.modifier.value not in _SIDES:
        return None
    return sr.FindingSite(concept(shown.type), laterality=concept(shown.modifier))
