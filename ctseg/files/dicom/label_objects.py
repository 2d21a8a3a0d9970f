"""DICOM objects that hold labels of a series: segmentations and structure sets."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from ctseg.files.dicom.elements import items_of, text_of, uid_of
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.reading import OtherFile, read_file
from ctseg.files.dicom.segmentation_reader import read_segments
from ctseg.files.dicom.series import CtSeries, uid_digest
from ctseg.files.dicom.structure_set_reader import read_structure_set, region_names
from ctseg.files.regular import open_regular


@dataclass(frozen=True)
class LabelObject:
    """A segmentation or a structure set.

    Attributes:
        path: The file.
        kind: What it is.
        sop_instance_uid: Empty where there is none.
        series_uids: Of the series that it refers to.
        names: Of its segments or regions.
    """

    path: Path
    kind: Literal["SEG", "RTSTRUCT"]
    sop_instance_uid: str
    series_uids: frozenset[str]
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """What messages call it: no patient, no path."""
        return f"{self.kind} ({uid_digest(self.sop_instance_uid)})"

    def read(self, series: CtSeries, names: Collection[str]) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Read some of its segments or regions, (z, y, x).

        Raises:
            InputError: It cannot be read, or does not lie on the slices of the series.
        """
        reader = read_segments if self.kind == "SEG" else read_structure_set
        return reader(self.path, series, names)


def find_label_objects(files: Iterable[Path]) -> tuple[tuple[LabelObject, ...], int]:
    """Return the segmentations and structure sets among files, each instance once, and how many cannot be read.

    Args:
        files: Of any kind.
    """
    found: dict[object, LabelObject] = {}
    unreadable = 0
    for path in files:
        other = read_file(path)
        if not isinstance(other, OtherFile) or other.what not in ("SEG", "RTSTRUCT"):
            continue
        try:
            with quiet(), open_regular(path) as file:
                made = _object(path, other.what, pydicom.dcmread(file, force=True, stop_before_pixels=True))
        except Exception:  # whatever pydicom makes of it
            unreadable += 1
        else:
            found.setdefault(made.sop_instance_uid or path, made)
    return tuple(sorted(found.values(), key=lambda item: (item.kind, item.sop_instance_uid))), unreadable


def _object(path: Path, what: str, dataset: Dataset) -> LabelObject:
    if what == "SEG":
        names = [text_of(item, "SegmentLabel") for item in items_of(dataset, "SegmentSequence")]
        kind: Literal["SEG", "RTSTRUCT"] = "SEG"
    else:
        names, kind = list(region_names(dataset).values()), "RTSTRUCT"
    uids = frozenset(filter(None, _referenced_series(dataset)))
    return LabelObject(path, kind, uid_of(dataset, "SOPInstanceUID"), uids, tuple(dict.fromkeys(filter(None, names))))


def _referenced_series(dataset: Any) -> Iterator[str]:
    """Yield the series to which an object refers: ReferencedSeriesSequence, or RTReferencedSeriesSequence."""
    for item in items_of(dataset, "ReferencedSeriesSequence"):
        yield uid_of(item, "SeriesInstanceUID")
    for frame in items_of(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in items_of(frame, "RTReferencedStudySequence"):
            for item in items_of(study, "RTReferencedSeriesSequence"):
                yield uid_of(item, "SeriesInstanceUID")
