"""The files of a case: in which formats its labels are written, what headers say against one, and writing them."""

import importlib.util
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ctseg.errors import InputError, OutputError, SetupError, missing_package
from ctseg.files.atomic import replacing
from ctseg.files.cases import Case
from ctseg.files.codes import coded
from ctseg.files.dicom.object_kinds import DICOM_ENDINGS, DicomFormat, SegmentationType
from ctseg.files.dicom.series import CtSeries
from ctseg.files.volume import Volume, write_label_map
from ctseg.predict.contract import ScanContract
from ctseg.predict.options import OUTPUT_FORMATS, BatchOptions, OutputFormat
from ctseg.predict.outcomes import (
    CaseError,
    FailedFormat,
    MadeBy,
    Outcome,
    WrittenObject,
    WrittenSegment,
    error_of,
)

if TYPE_CHECKING:
    from ctseg.files.dicom.results import DicomResult, Segment

logger = logging.getLogger(__name__)

_SEGMENTATION_TYPES: dict[str, SegmentationType] = {"binary": "BINARY", "labelmap": "LABELMAP"}
_MANY_LABELS = 20
"""From which on a frame for each label and slice makes a segmentation large, and slow to open."""
_NUMBERED = 1.2
"""Bytes a voxel, of each byte that its number takes, while a segmentation is made of numbered labels."""
_CONTOURS = 1
"""Bytes a voxel while contours of organs are written; labels that are scattered like noise take more, up to a limit."""
_BINARY = 0.32
"""Bytes a voxel and label while frames of one bit a voxel are put together: 2.5 times what they take in the file."""


@dataclass
class WrittenFiles:
    """What was written of a case.

    Attributes:
        files: By the names that they will have in the output folder.
        objects: The DICOM objects among them.
        segments: Of these.
        failed: What could not be written.
        warnings: What people are to know.
    """

    files: dict[str, Path] = field(default_factory=dict)
    objects: list[WrittenObject] = field(default_factory=list)
    segments: tuple[WrittenSegment, ...] = ()
    failed: list[FailedFormat] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def said(self) -> dict[str, Any]:
        """What an outcome says of it."""
        return {
            "objects": tuple(self.objects),
            "segments": self.segments if self.objects else (),
            "failed_formats": tuple(self.failed),
        }


class CaseFiles:
    """Which files the cases of a run get, and how they are written, on any number of threads.

    Args:
        contract: Of what segments them.
        options: In which formats, and with which codes.
        made_by: What stands in their outcomes.
        longest_name: Bytes that a name may have in the output folder.
    """

    def __init__(
        self, contract: ScanContract, options: BatchOptions, made_by: MadeBy, *, longest_name: int = 255
    ) -> None:
        self._contract = contract
        self._options = options
        self._made_by = made_by
        self._longest_name = longest_name

    def names(self, case: Case) -> Mapping[OutputFormat, str]:
        """Return the names that a case's files have in each format."""
        names: dict[OutputFormat, str] = {"nifti": f"{case.name}{self._contract.file_ending}"}
        for format_, ending in DICOM_ENDINGS.items():
            names[format_] = f"{case.name}{ending}"
        return names

    def asked(self, case: Case) -> tuple[OutputFormat, ...]:
        """Return the formats in which a case is to be written, in the order in which they are."""
        return formats_of(case, self._options)

    def refused(self, case: Case, formats: Collection[OutputFormat]) -> tuple[FailedFormat, ...]:
        """Return those of some formats in which a case can never be written, as its headers say."""
        found: dict[OutputFormat, str] = {}
        for format_, name in self.names(case).items():
            if format_ in formats and (
                why := self._problem(case, format_) or name_problem(case, name, self._longest_name)
            ):
                found[format_] = why
        if "dicom_seg" in found and "dicom_sr" in formats:
            found["dicom_sr"] = found["dicom_seg"]
        return tuple(
            FailedFormat(format=format_, error=CaseError(type=InputError.__name__, message=why), foreseen=True)
            for format_, why in found.items()
        )

    def writable(self, case: Case, formats: Collection[OutputFormat]) -> tuple[OutputFormat, ...]:
        """Return those of some formats in which a case may be written, as far as headers tell."""
        refused = {failed.format for failed in self.refused(case, formats)}
        return tuple(format_ for format_ in self.names(case) if format_ in formats and format_ not in refused)

    def written_before(self, case: Case, outcome: Outcome) -> tuple[OutputFormat, ...]:
        """Return the formats that an outcome has of a case, and those without which they cannot be written again."""
        written = {file.name for file in outcome.outputs}
        return _with_needed([format_ for format_, name in self.names(case).items() if name in written])

    def why_stale(self, case: Case, outcome: Outcome) -> str | None:
        """Return why the DICOM objects of an outcome are not those that would be written of its labels now.

        Args:
            case: The case.
            outcome: Of the same labels.
        """
        series = series_of(case)
        wanted = self.writable(case, self.asked(case))
        if series is None or outcome.made_by is None:
            return None
        for written in outcome.objects:
            if written.format in wanted:
                now = self._result(series, outcome.made_by).series_uid(written.format)  # type: ignore[arg-type]
                if written.series_uid != now:
                    return f"its {written.format} says other codes or is of another type, or another ctseg wrote it"
        return None

    def writing_bytes(self, voxels: int, formats: Collection[OutputFormat]) -> int:
        """Return what writing a case takes at most beside scan and label map, with each label in every slice.

        Args:
            voxels: Of the scan.
            formats: In which it is written.
        """
        labels, found = len(self._contract.labels), 0.0
        if "dicom_rtstruct" in formats:
            found = _CONTOURS
        if "dicom_seg" in formats:
            frames = _BINARY * labels if self._options.segmentation_type == "binary" else 0
            found = max(found, _NUMBERED * (1 if labels < 256 else 2) + frames)
        return int(found * voxels)

    def series_uids(self, case: Case) -> Mapping[OutputFormat, str]:
        """Return the SeriesInstanceUIDs that the objects of a case will have, known before anything is computed."""
        series = series_of(case)
        if series is None or case.problem is not None:
            return {}
        result = self._result(series, self._made_by)
        writable = self.writable(case, self.asked(case))
        return {format_: result.series_uid(format_) for format_ in DICOM_ENDINGS if format_ in writable}

    def write(
        self,
        case: Case,
        labels: npt.NDArray[Any],
        volume: Volume,
        volumes_ml: Mapping[str, float],
        folder: Path,
        formats: Sequence[OutputFormat],
    ) -> WrittenFiles:
        """Write a case in some formats; one in which it cannot be written stops no other.

        Args:
            case: The case.
            labels: (z, y, x) on the axes of ``volume``.
            volume: The scan.
            volumes_ml: Of each label by its name.
            folder: Where the files are put.
            formats: In which it may be written, as far as headers tell.

        Raises:
            OutputError: The folder cannot be written.
            InputError: It could be written in none of them.
        """
        names, written = self.names(case), WrittenFiles()
        if "nifti" in formats:
            path = folder / names["nifti"]
            write_label_map(path, labels, volume)
            written.files[path.name] = path
        series = series_of(case)
        if series is None or not set(formats) & set(DICOM_ENDINGS):
            return written
        writer = _ObjectWriter(self._result(series, self._made_by), volume.on_file_axes(labels), volumes_ml, written)
        for format_, ending in DICOM_ENDINGS.items():
            if format_ in formats:
                writer.write(format_, folder / f"{case.name}{ending}", folder / names["dicom_seg"])
        if not written.files:
            raise InputError("; ".join(f"{failed.format}: {failed.error.message}" for failed in written.failed))
        return written

    def _problem(self, case: Case, format_: OutputFormat) -> str | None:
        if format_ == "nifti":
            return None
        series = series_of(case)
        if series is None:
            return "a scan that is no DICOM series has nothing to which a DICOM object could refer"
        result = self._result(series, self._made_by)
        try:
            if format_ == "dicom_rtstruct":
                from ctseg.files.dicom.structure_set import structure_set_problem

                return structure_set_problem(result)
            if format_ == "dicom_seg":
                from ctseg.files.dicom.segmentation import segmentation_problem

                return segmentation_problem(result)
        except Exception as error:  # odd headers stop no other format, and no other case
            return error_of(error, quotes=False).message
        return None

    def _result(self, series: CtSeries, made_by: MadeBy) -> "DicomResult":
        from ctseg.files.dicom.results import DicomResult, Maker

        options = tuple(made_by.options.model_dump().items())
        maker = Maker(made_by.model, made_by.model_version, made_by.spec_digest, options)
        return DicomResult(series, self._segments, maker, _SEGMENTATION_TYPES[self._options.segmentation_type])

    @cached_property
    def _segments(self) -> "tuple[Segment, ...]":
        return _segments_of(self._contract, self._options)


class _ObjectWriter:
    """Writes the DICOM objects of one case, and notes what became of each."""

    def __init__(
        self, result: "DicomResult", labels: npt.NDArray[Any], volumes_ml: Mapping[str, float], written: WrittenFiles
    ) -> None:
        self._result = result
        self._labels = labels
        self._volumes_ml = volumes_ml
        self._written = written
        written.segments = tuple(
            WrittenSegment(number=segment.number, name=segment.name, values=segment.values)
            for segment in result.segments
        )

    def write(self, format_: DicomFormat, path: Path, segmentation: Path) -> None:
        """Write one object.

        Args:
            format_: Which.
            path: Its file.
            segmentation: Where the segmentation lies, written before.

        Raises:
            OutputError: The disk is full, or away.
        """
        from ctseg.files.dicom.results import instance_uid_of

        try:
            with replacing(path) as temporary:
                self._write(format_, temporary, segmentation)
                uid = instance_uid_of(temporary)
        except OutputError:
            raise
        except Exception as error:  # whatever pydicom and highdicom make of a source
            logger.debug("%s was not written (%s)", format_, type(error).__name__)
            self._written.failed.append(FailedFormat(format=format_, error=error_of(error, quotes=False)))
            return
        self._written.files[path.name] = path
        series_uid = self._result.series_uid(format_)
        self._written.objects.append(
            WrittenObject(format=format_, name=path.name, series_uid=series_uid, instance_uid=uid)
        )

    def _write(self, format_: DicomFormat, path: Path, segmentation: Path) -> None:
        if format_ == "dicom_seg":
            from ctseg.files.dicom.segmentation import write_segmentation

            write_segmentation(path, self._labels, self._result)
        elif format_ == "dicom_rtstruct":
            from ctseg.files.dicom.structure_set import write_structure_set

            warnings = write_structure_set(path, self._labels, self._result)
            self._written.warnings += [f"{format_}: {warning}" for warning in warnings]
        else:
            from ctseg.files.dicom.measurement_report import write_measurement_report

            if segmentation.name not in self._written.files:
                raise InputError("the segmentation to which it refers could not be written")
            write_measurement_report(path, self._volumes_ml, self._result, segmentation)


def name_problem(case: Case, name: str, longest: int) -> str | None:
    """Return why a file of a case cannot have its name, where the output folder takes names of so many bytes."""
    if (size := len(os.fsencode(name))) <= longest:
        return None
    return (
        f"its {name.removeprefix(case.name)} file would have a name of {size} bytes, and the output folder takes "
        f"{longest}: give the scan a shorter name"
    )


def series_of(case: Case) -> CtSeries | None:
    """Return the DICOM series that a case is; None: it is none."""
    return case.channels[0].series if case.channels else None


def formats_of(case: Case, options: BatchOptions) -> tuple[OutputFormat, ...]:
    """Return the formats in which a case is to be written, in the order in which they are."""
    asked = options.output_formats
    if asked is None:
        return ("nifti",) if series_of(case) is None else ("nifti", "dicom_seg")
    return _with_needed(asked)


def _with_needed(formats: Collection[OutputFormat]) -> tuple[OutputFormat, ...]:
    """Return formats and those to which they refer, in the order in which they are written."""
    wanted = {*formats, *(("dicom_seg",) if "dicom_sr" in formats else ())}
    return tuple(format_ for format_ in OUTPUT_FORMATS if format_ in wanted)


def check_formats(cases: Sequence[Case], contract: ScanContract, options: BatchOptions) -> None:
    """Refuse before any work codes that do not fit the model, and formats that cannot be written here.

    Raises:
        InputError: Codes of labels that the model does not have.
        SetupError: A label has no codes, where they are required; labels share voxels, where each can have one; or a
            package is missing.
    """
    if not (options.codes or _has_objects(cases, options)):
        return
    _, uncoded = coded(contract.labels, contract.presentation, options.codes)
    if not _has_objects(cases, options):
        return
    if uncoded and options.codes_required:
        raise SetupError(
            f"{contract.name}: expected codes for every label, found none for {_listed(uncoded)}: give them",
            settings=("codes",),
        )
    values = [value for values in contract.labels.values() for value in values]
    if options.segmentation_type == "labelmap" and len(set(values)) < len(values) and _writes(cases, options):
        raise SetupError(
            f"{contract.name}: a segmentation of the type labelmap holds one label a voxel, and labels of this model "
            "share voxels: write it as binary",
            settings=("segmentation_type",),
        )
    for package in ("pydicom", "highdicom"):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, needed_for="writing DICOM objects", extra="dicom")


def tell_of_formats(cases: Sequence[Case], contract: ScanContract, options: BatchOptions) -> None:
    """Tell once a run of labels without codes, and of labels too many for frames of their own."""
    if not _has_objects(cases, options):
        return
    _, uncoded = coded(contract.labels, contract.presentation, options.codes)
    if uncoded and not options.codes_required:
        logger.warning(
            "%s: no codes for %s: DICOM objects call them by private codes with their names; a file of codes gives "
            "them others", contract.name, _listed(uncoded),
        )  # fmt: skip
    is_binary = options.segmentation_type == "binary"
    if is_binary and len(contract.labels) >= _MANY_LABELS and _writes(cases, options):
        logger.info(
            "%s: %d labels: segmentations of the type labelmap are much smaller, and faster to write and to open, "
            "where viewer and archive take them", contract.name, len(contract.labels),
        )  # fmt: skip


def _segments_of(contract: ScanContract, options: BatchOptions) -> "tuple[Segment, ...]":
    from ctseg.files.dicom.results import Segment

    presentation, _ = coded(contract.labels, contract.presentation, options.codes)
    return tuple(
        Segment(number, name, values, presentation[name])
        for number, (name, values) in enumerate(contract.labels.items(), start=1)
    )


def _has_objects(cases: Sequence[Case], options: BatchOptions) -> bool:
    return any(series_of(case) is not None and set(formats_of(case, options)) & set(DICOM_ENDINGS) for case in cases)


def _writes(cases: Sequence[Case], options: BatchOptions) -> bool:
    """Whether there are segmentations to write."""
    return any(series_of(case) is not None and "dicom_seg" in formats_of(case, options) for case in cases)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
