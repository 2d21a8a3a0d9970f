"""Build a data set from folders of images and of labels, in any format that can be read; no torch, no nnunetv2."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctseg.errors import InputError, OutputError, SetupError
from ctseg.files.atomic import appearing, replacing
from ctseg.files.dataset_cases import (
    DatasetProblem,
    LabelledCase,
    ScanFolders,
    find_labelled_cases,
    find_test_cases,
)
from ctseg.files.formats import READ_ENDINGS, ChannelFiles
from ctseg.files.grid import ChannelVolume
from ctseg.files.labelled_series import find_labelled_series, find_test_series
from ctseg.files.volume import write_on_grid
from ctseg.train.dataset import image_path, label_dtype, label_path, write_json
from ctseg.train.description import FILE, FILE_ENDING, DatasetDescription
from ctseg.train.dicom_labels import RegionRules, labels_of
from ctseg.train.paths import case_name_problems, new_dataset_folder
from ctseg.train.scans import image_problems, label_problems, read_or_tell

_SETTINGS = {
    "missing_label": ("roi",),
    "overlap": ("precedence",),
    "no_images": ("image_suffix",),
    "names": ("image_suffix", "label_suffix"),
    "unexpected_label": ("label",),
}
"""What mends a kind of problem."""


def create_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    description: DatasetDescription,
    folders: ScanFolders,
    regions: RegionRules = RegionRules(),  # noqa: B008 (frozen)
) -> Path:
    """Build a data set from a folder of images and a folder of labels, in any format that can be read.

    An image belongs to the label whose name is the same once ending and suffix are taken off, a DICOM series to the
    segmentations and structure sets that refer to it. Labels are written as the smallest fitting integer type on the
    exact grid of their image; float label maps of whole numbers are converted. Nothing is written unless every case
    is right.

    Args:
        raw: The folder ``nnUNet_raw``.
        dataset_id: 1 to 999.
        name: Letters, digits, ``_`` and ``-``.
        description: Channels and labels.
        folders: Where images and labels lie, and how their names end.
        regions: Which segments and regions of DICOM objects are which label.

    Returns:
        The new folder.

    Raises:
        SetupError: The id or the name cannot be used, the id is taken, a folder or a package is missing, or the rules
            for regions do not fit the labels.
        InputError: All that is wrong with the cases, told at once.
        OutputError: The data set cannot be written.
    """
    target = new_dataset_folder(raw, dataset_id, name)
    regions.check(description.labels)
    plan = _plan(folders, description)
    with _appearing(target) as part:
        for kind in ("imagesTr", "labelsTr", *(["imagesTs"] if plan.tests else [])):
            (part / kind).mkdir()
        problems = list(plan.problems)
        for case in plan.cases:
            problems += _add_case(part, case, description, regions, write=not problems)
        for test in plan.tests:
            problems += _add_test_case(part, test, write=not problems)
        if problems:
            listed = "\n".join(f"  {problem.message}" for problem in problems)
            settings = [setting for problem in problems for setting in _SETTINGS.get(problem.kind, ())]
            text = f"{target.name}: {len(problems)} problems, nothing was written:\n{listed}"
            raise InputError(text, settings=tuple(dict.fromkeys(settings)))
        write_json(part / FILE, description.to_json(len(plan.cases)))
    return target


@dataclass(frozen=True)
class _Plan:
    """What a data set will be made of.

    Attributes:
        cases: Those of which no file is missing.
        tests: Images without labels of which no file is missing.
        problems: Of names and numbers of files; what the files hold has not been looked at.
    """

    cases: tuple[LabelledCase, ...]
    tests: tuple[LabelledCase, ...]
    problems: tuple[DatasetProblem, ...]


def _plan(folders: ScanFolders, description: DatasetDescription) -> _Plan:
    for folder in (folders.images, folders.labels, folders.test_images):
        if folder is not None and not folder.is_dir():
            raise SetupError(f"{folder} is not a folder")
    channels, suffixes = len(description.channel_names), folders.image_suffixes
    if suffixes is not None and len(suffixes) != channels:
        raise SetupError(f"{channels} channels need as many image suffixes, found {list(suffixes)}")
    found, tests = find_labelled_cases(folders, channels=channels), find_test_cases(folders, channels=channels)
    series, test_series = find_labelled_series(folders), find_test_series(folders)
    if channels > 1 and (series.cases or test_series.cases):
        raise InputError(f"a DICOM series is one channel, and the data set has {channels}: convert the images")
    cases, problems = (*found.cases, *series.cases), (*found.problems, *series.problems)
    if not cases and not problems:
        ends = f" after {list(suffixes or [])} and {folders.label_suffix!r}" if suffixes or folders.label_suffix else ""
        raise InputError(
            f"no scans in {folders.images} and {folders.labels}: expected files ending in {', '.join(READ_ENDINGS)}"
            f"{ends}, or DICOM series with segmentations or structure sets that refer to them"
        )
    return _Plan(
        tuple(case for case in cases if (case.label or case.objects) and None not in case.channels),
        tuple(case for case in (*tests.cases, *test_series.cases) if None not in case.channels),
        (*_name_problems([case.name for case in cases]), *problems, *tests.problems, *test_series.problems),
    )


def _name_problems(names: Sequence[str]) -> Iterator[DatasetProblem]:
    by_folded: dict[str, str] = {}
    for name in names:
        texts = case_name_problems(name)
        if (other := by_folded.setdefault(name.casefold(), name)) != name:
            texts.append(
                f"only upper and lower case tell it from {other}, which are one file on Windows and macOS: rename it"
            )
        for text in texts:
            yield DatasetProblem(name, "case_name", f"case {name}: {text}")


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; it becomes ``target`` unless something went wrong, and then it is gone."""
    target.parent.mkdir(exist_ok=True)
    try:
        with appearing(target) as part:
            yield part
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


def _add_case(
    part: Path, case: LabelledCase, description: DatasetDescription, regions: RegionRules, *, write: bool
) -> list[DatasetProblem]:
    """Check a complete case and, if wanted and nothing is wrong, write it."""
    files = [channel for channel in case.channels if channel is not None]
    label, voxels, dtype, problems = _read_labels(case, files, description, regions)
    images = []
    for i, channel in enumerate(files):
        image, unreadable = read_or_tell(channel, case=case.name)
        problems += unreadable
        if image is not None:
            images.append(image)
            problems += image_problems(image, label, case=case.name, file=channel.name, what=f"channel {i}")
    if voxels is None:
        return problems
    problems += label_problems(voxels, description.values, case=case.name, stored=dtype)
    if problems or not write:
        return problems
    for i, (channel, image) in enumerate(zip(files, images, strict=True)):
        _copy_or_convert(channel, image, image_path(part, case.name, i))
    # the grid of the image, to the last digit
    write_on_grid(label_path(part, case.name), voxels.astype(label_dtype(voxels)), images[0].grid)
    return []


def _read_labels(
    case: LabelledCase, files: Sequence[ChannelFiles], description: DatasetDescription, regions: RegionRules
) -> tuple[ChannelVolume | None, NDArray[Any] | None, "np.dtype[Any] | None", list[DatasetProblem]]:
    """Return the label map, if it is one, the labels, their type in the file, and what is wrong."""
    if case.label is not None:
        label, problems = read_or_tell(case.label, case=case.name)
        return (None, None, None, problems) if label is None else (label, *_whole_numbers(label), problems)
    series = files[0].series
    if series is None or series.problem is not None:
        return None, None, None, []  # it is told where the image is read
    voxels, problems = labels_of(case, series, description.labels, regions)
    return None, voxels, None, problems


def _add_test_case(part: Path, case: LabelledCase, *, write: bool) -> list[DatasetProblem]:
    """Check a complete case without labels and, if wanted and nothing is wrong, write it."""
    problems: list[DatasetProblem] = []
    for i, channel in enumerate(case.channels):
        if channel is None:
            raise ValueError(f"test case {case.name}: expected every channel")
        image, unreadable = read_or_tell(channel, case=case.name)
        problems += unreadable
        if image is not None and write and not problems:
            _copy_or_convert(channel, image, image_path(part, case.name, i, "imagesTs"))
    return problems


def _whole_numbers(label: ChannelVolume) -> tuple[NDArray[Any], "np.dtype[Any]"]:
    """Return labels and their type in the file; float label maps of whole numbers become integers."""
    voxels = label.voxels
    if voxels.dtype.kind == "f" and np.isfinite(voxels).all() and (voxels == np.rint(voxels)).all():
        return voxels.astype(np.int64), np.dtype(np.int64)
    return voxels, label.stored_dtype


def _copy_or_convert(source: ChannelFiles, image: ChannelVolume, target: Path) -> None:
    if len(source.paths) == 1 and source.name.endswith(FILE_ENDING):
        with replacing(target) as temporary:
            shutil.copyfile(source.paths[0], temporary)
    else:
        write_on_grid(target, image.voxels, image.grid)
