"""What is written of a DICOM case beside its label map, and what decides the bytes of each object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info

from ctseg.errors import InputError
from ctseg.files.dicom.object_kinds import DicomFormat, SegmentationType
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.series import CtSeries
from ctseg.files.dicom.uids import derived_uid
from ctseg.presentation import LabelPresentation

MANUFACTURER = "ctseg"
WRITER_VERSION = "1"
"""Of what writes the objects: raised whenever the same labels would be written in other bytes."""


@dataclass(frozen=True)
class Segment:
    """A label or region, as an object of a viewer or a planning system.

    Attributes:
        number: From 1.
        name: Of the label in the model.
        values: In the label map, that belong to it.
        presentation: Its codes and colour; ``category`` and ``type`` are set.
    """

    number: int
    name: str
    values: tuple[int, ...]
    presentation: LabelPresentation


@dataclass(frozen=True)
class Maker:
    """What segmented a case: all that decides its labels, apart from the scan.

    Attributes:
        model: Name of the model or recipe.
        version: Of the model, as it was served.
        digest: Of its spec, or of the recipe.
        options: What the labels depend on, such as ``{"tile_step_size": 0.5, "mirroring": True}``.
    """

    model: str
    version: str
    digest: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class DicomResult:
    """What the objects of one case say, apart from its voxels.

    Attributes:
        series: That was segmented.
        segments: In order of their numbers.
        maker: What segmented it.
        segmentation_type: Of the segmentation.
    """

    series: CtSeries
    segments: tuple[Segment, ...]
    maker: Maker
    segmentation_type: SegmentationType = "BINARY"

    def series_uid(self, kind: DicomFormat) -> str:
        """Return the SeriesInstanceUID of one of the objects, known before anything is computed.

        It is derived from everything that decides the content: the source's study, series and instances, the model and
        its options, the codes, the format, and the version of what writes it.
        """
        return self.derived(kind, "series")

    def derived(self, kind: DicomFormat, *what: object) -> str:
        """Return a UID of something in one of the objects, derived from what decides its content.

        Args:
            kind: Of the object.
            what: Names the thing: plain data.
        """
        return derived_uid(
            self.series.study_uid,
            self.series.series_uid,
            sorted({slice_.sop_instance_uid for slice_ in self.series.slices}),
            self.maker.model,
            self.maker.version,
            self.maker.digest,
            [list(option) for option in self.maker.options],
            [
                [segment.number, segment.name, list(segment.values), _shown(segment.presentation)]
                for segment in self.segments
            ],
            kind,
            "" if kind == "dicom_rtstruct" else self.segmentation_type,
            WRITER_VERSION,
            *what,
        )


def _shown(presentation: LabelPresentation) -> Any:
    """Return what objects show of a label."""
    return presentation.model_dump(mode="json", exclude={"training_volumes_ml"})


def source_header(series: CtSeries) -> Dataset:
    """Read the header of a series' first slice again.

    Raises:
        InputError: Its file cannot be read any more, or is another one.
    """
    first = series.slices[0]
    with quiet():
        return _header(first.path, first.sop_instance_uid, series)


def instance_uid_of(path: Path) -> str:
    """Return the SOPInstanceUID of an object that was written.

    Raises:
        OSError: It cannot be read.
    """
    return str(read_file_meta_info(path).MediaStorageSOPInstanceUID)


def _header(path: Path, uid: str, series: CtSeries) -> Dataset:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.SOPInstanceUID == uid:
            return header
    except Exception as error:  # whatever pydicom makes of it
        raise InputError(
            f"{series.label}: a file cannot be read any more ({type(error).__name__}): copy it again"
        ) from error
    raise InputError(f"{series.label}: a file has changed since it was looked at: segment it when it is whole")
