"""Which DICOM series of a data set have labels: the segmentations and structure sets that refer to them."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ctseg.files.dataset_cases import DatasetCases, DatasetProblem, LabelledCase, ScanFolders
from ctseg.files.dicom.input import DicomOfInput
from ctseg.files.dicom.label_objects import LabelObject
from ctseg.files.formats import of_series
from ctseg.files.listing import list_folder
from ctseg.files.scans import find_dicom, find_dicom_files

logger = logging.getLogger(__name__)

_TOLD = 10
"""Series without labels that are told by name."""


def find_labelled_series(folders: ScanFolders) -> DatasetCases:
    """Find the series of a folder of images, and the objects in the folder of labels that refer to them.

    A series to which no object refers is left out, and told; so are objects that refer to no series that is taken.

    Args:
        folders: Where they lie; none are found where images lie in files of other formats.

    Raises:
        InputError: A folder cannot be read.
        SetupError: A package is missing.
    """
    if (found := _series_in(folders.images, folders)) is None:
        return DatasetCases((), ())
    from ctseg.files.dicom.label_headers import find_label_objects

    objects, unreadable = find_label_objects(find_dicom_files(folders.labels))
    cases, without = [], []
    for item in found.chosen:
        of_this = tuple(made for made in objects if item.series.series_uid in made.series_uids)
        if of_this:
            cases.append(LabelledCase(item.name, (of_series(item.series),), None, of_this))
        else:
            without.append(item.name)
    _tell(without, _unused(objects, cases))
    problems = _doubled(cases)
    if unreadable:
        text = f"{unreadable} segmentations or structure sets cannot be read, or name no series: copy them again"
        problems.append(DatasetProblem(None, "unreadable", f"{text}, or take them away"))
    return DatasetCases(tuple(cases), tuple(problems))


def find_test_series(folders: ScanFolders) -> DatasetCases:
    """Find the series of a folder of test images, as :func:`find_labelled_series` finds those with labels.

    Raises:
        InputError: The folder cannot be read.
        SetupError: A package is missing.
    """
    if folders.test_images is None or (found := _series_in(folders.test_images, folders)) is None:
        return DatasetCases((), ())
    cases = [LabelledCase(item.name, (of_series(item.series),), None) for item in found.chosen]
    return DatasetCases(tuple(cases), tuple(_doubled(cases)))


def _series_in(folder: Path, folders: ScanFolders) -> DicomOfInput | None:
    if list_folder(folder).scans or not find_dicom_files(folder):
        return None
    return find_dicom(folder, series=folders.series, case_name_from=folders.case_name_from)


def _doubled(cases: Iterable[LabelledCase]) -> list[DatasetProblem]:
    counts = Counter(case.name for case in cases)
    return [
        DatasetProblem(name, "doubled", f"case {name}: {count} series have this name: name cases by more keywords")
        for name, count in sorted(counts.items())
        if count > 1
    ]


def _unused(objects: Sequence[LabelObject], cases: Iterable[LabelledCase]) -> int:
    return len(set(objects) - {made for case in cases for made in case.objects})


def _tell(without: Sequence[str], unused: int) -> None:
    told = []
    if without:
        names = ", ".join(without[:_TOLD]) + (f" and {len(without) - _TOLD} more" if len(without) > _TOLD else "")
        told.append(f"{len(without)} series to which no segmentation or structure set refers ({names})")
    if unused:
        told.append(f"{unused} segmentations or structure sets that refer to no series that is taken")
    if told:
        logger.warning("left out: %s", "; ".join(told))
