"""Which files are segmentations and structure sets, what they hold, and to which series they refer."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import Dataset

from ctseg.files.dicom.elements import items_of, uid_of, unsigned_of, words_of
from ctseg.files.dicom.label_objects import LabelObject
from ctseg.files.dicom.quiet import quiet
from ctseg.files.dicom.reading import OtherFile, read_file
from ctseg.files.dicom.segmentation_reader import segment_name
from ctseg.files.dicom.structure_set_reader import is_whole, region_names
from ctseg.files.regular import open_regular


def find_label_objects(files: Iterable[Path]) -> tuple[tuple[LabelObject, ...], int]:
    """Return the segmentations and structure sets among files, each instance once, and how many are of no use.

    Those cannot be read, or do not say to which series they refer.

    Args:
        files: Of any kind.
    """
    found: dict[object, LabelObject] = {}
    unreadable = 0
    with quiet():
        for path in files:
            other = read_file(path)
            if not isinstance(other, OtherFile) or other.what not in ("SEG", "RTSTRUCT"):
                continue
            made = _read(path, other.what)
            if made is None or not made.series_uids:
                unreadable += 1
            else:
                found.setdefault(made.sop_instance_uid or path, made)
    return tuple(sorted(found.values(), key=lambda item: (item.kind, item.sop_instance_uid))), unreadable


def _read(path: Path, what: str) -> LabelObject | None:
    """Return what a file holds; None: it cannot be read, or is cut off."""
    try:
        with open_regular(path) as file:
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        return _object(path, what, dataset) if what == "SEG" or is_whole(dataset) else None
    except Exception:  # whatever pydicom makes of it
        return None


def _object(path: Path, what: str, dataset: Dataset) -> LabelObject:
    if what == "SEG":
        items = [item for item in items_of(dataset, "SegmentSequence") if not _is_background(item, dataset)]
        names = [segment_name(item) for item in items]
        kind: Literal["SEG", "RTSTRUCT"] = "SEG"
    else:
        names, kind = list(region_names(dataset).values()), "RTSTRUCT"
    uids = frozenset(filter(None, _referenced_series(dataset)))
    return LabelObject(path, kind, uid_of(dataset, "SOPInstanceUID"), uids, tuple(dict.fromkeys(filter(None, names))))


def _is_background(segment: Dataset, dataset: Dataset) -> bool:
    """Whether a segment of a LABELMAP is what is in no segment."""
    if words_of(dataset, "SegmentationType") != ("LABELMAP",):
        return False
    return unsigned_of(segment, "SegmentNumber") == (unsigned_of(dataset, "PixelPaddingValue") or 0)


def _referenced_series(dataset: Dataset) -> Iterator[str]:
    """Yield the series to which an object refers: ReferencedSeriesSequence, or RTReferencedSeriesSequence."""
    for item in items_of(dataset, "ReferencedSeriesSequence"):
        yield uid_of(item, "SeriesInstanceUID")
    for frame in items_of(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in items_of(frame, "RTReferencedStudySequence"):
            for item in items_of(study, "RTReferencedSeriesSequence"):
                yield uid_of(item, "SeriesInstanceUID")
