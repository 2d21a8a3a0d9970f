"""Build a data set from folders of images and of labels, in any format that can be read; no torch, no nnunetv2."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ctseg.files.folders import why_no_folder
from ctseg.files.formats import READ_ENDINGS, ChannelFiles
from ctseg.files.grid import ChannelVolume
from ctseg.files.joined_channels import split_channels
from ctseg.files.labelled_series import find_labelled_series, find_test_series
from ctseg.files.listing import list_folder
from ctseg.files.volume import write_on_grid
from ctseg.stages import stage
from ctseg.train.dataset import image_path, label_dtype, label_path, write_json
from ctseg.train.description import FILE, FILE_ENDING, DatasetDescription
from ctseg.train.dicom_labels import RegionRules, labels_of
from ctseg.train.groups import SPLITS_FILE, group_cases, grouped_splits, write_splits
from ctseg.train.label_maps import LabelMapRules, placed_labels
from ctseg.train.paths import case_name_problems, new_dataset_folder
from ctseg.train.problem_lines import counted, problem_lines
from ctseg.train.scans import geometry_problems, image_problems, label_problems, read_or_tell

_SETTINGS = {
    "missing_label": ("roi",),
    "overlap": ("precedence",),
    "no_images": ("image_suffix",),
    "no_label_maps": ("label_suffix",),
    "names": ("image_suffix", "label_suffix"),
    "unexpected_label": ("label", "remap"),
    "grid": ("resample_labels",),
}
"""What mends a kind of problem."""


def create_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    description: DatasetDescription,
    folders: ScanFolders,
    regions: RegionRules = RegionRules(),  # noqa: B008 (frozen)
    *,
    label_maps: LabelMapRules = LabelMapRules(),  # noqa: B008 (frozen)
    group_by: str | None = None,
) -> Path:
    """Build a data set from a folder of images and a folder of labels, in any format that can be read.

    An image belongs to the label whose name is the same once ending and suffix are taken off, a DICOM series to the
    segmentations and structure sets that refer to it. Labels are written as the smallest fitting integer type on the
    exact grid of their image; float label maps of whole numbers are converted. Nothing is written unless every case
    is right. Values that are written as others stand under ``ctseg`` in ``dataset.json``.

    Args:
        raw: The folder ``nnUNet_raw``.
        dataset_id: 1 to 999.
        name: Letters, digits, ``_`` and ``-``.
        description: Channels and labels.
        folders: Where images and labels lie, and how their names end.
        regions: Which segments and regions of DICOM objects are which label.
        label_maps: What may be changed in label maps of files.
        group_by: Which cases are of one patient, see :func:`ctseg.train.groups.group_cases`; the folds that keep them
            together become ``splits_final.json``, which nnU-Net takes. None: nnU-Net draws the folds.

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
    names = [case.name for case in plan.cases]
    splits = None if group_by is None or plan.problems else grouped_splits(group_cases(names, group_by))
    joined = len(description.channel_names) if folders.joined_channels else None
    with _appearing(target) as part:
        for kind in ("imagesTr", "labelsTr", *(["imagesTs"] if plan.tests else [])):
            (part / kind).mkdir()
        problems = list(plan.problems)
        rules = (description, regions, label_maps)
        with stage("checking and writing", len(plan.cases) + len(plan.tests), unit="cases") as progress:
            for case in plan.cases:
                with _channels_of(case, part, joined) as (files, unreadable):
                    problems += unreadable or _add_case(part, case, files, *rules, write=not problems)
                progress.advance()
            for test in plan.tests:
                with _channels_of(test, part, joined) as (files, unreadable):
                    problems += unreadable or _add_test_case(part, test.name, files, write=not problems)
                progress.advance()
        if problems:
            listed = "\n".join(f"  {line}" for line in problem_lines(problems))
            settings = [setting for problem in problems for setting in _SETTINGS.get(problem.kind, ())]
            text = f"{target.name}: {counted(len(problems), 'problem')}, nothing was written:\n{listed}"
            raise InputError(text, settings=tuple(dict.fromkeys(settings)))
        write_json(part / FILE, {**description.to_json(len(plan.cases)), **_record(description, label_maps, group_by)})
        if splits is not None:
            write_splits(part / SPLITS_FILE, splits)
    return target


def _record(description: DatasetDescription, label_maps: LabelMapRules, group_by: str | None) -> dict[str, Any]:
    """Return what ``dataset.json`` says of how the data set was made, where that is not as the files were."""
    former = {value: source for source, value in label_maps.values.items()}
    record: dict[str, Any] = {}
    if former:
        record["source_values"] = {
            name: former[value] if isinstance(value, int) else [former[one] for one in value]
            for name, value in description.labels.items()
        }
    if group_by is not None:
        record["group_by"] = group_by
    return {"ctseg": record} if record else {}


_NAMES_TOLD = 3
"""Files that a message lists."""


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
    for setting, folder in (
        ("images", folders.images), ("labels", folders.labels), ("test_images", folders.test_images),
    ):  # fmt: skip
        if folder is not None and not folder.is_dir():
            raise SetupError(f"{folder}: {why_no_folder(folder)}", settings=(setting,))
    channels, suffixes = len(description.channel_names), folders.image_suffixes
    if suffixes is not None and len(suffixes) != channels:
        raise SetupError(f"{channels} channels need as many image suffixes, found {list(suffixes)}")
    found, tests = find_labelled_cases(folders, channels=channels), find_test_cases(folders, channels=channels)
    series, test_series = find_labelled_series(folders), find_test_series(folders)
    if channels > 1 and (series.cases or test_series.cases):
        raise InputError(f"a DICOM series is one channel, and the data set has {channels}: convert the images")
    cases, problems = (*found.cases, *series.cases), (*found.problems, *series.problems)
    if not cases and not problems:
        raise _no_scans(folders)
    return _Plan(
        tuple(case for case in cases if (case.label or case.objects) and None not in case.channels),
        tuple(case for case in (*tests.cases, *test_series.cases) if None not in case.channels),
        (*_name_problems([case.name for case in cases]), *problems, *tests.problems, *test_series.problems),
    )


def _no_scans(folders: ScanFolders) -> InputError:
    ends = [*(folders.image_suffixes or ()), *([folders.label_suffix] if folders.label_suffix else [])]
    after = f" after {', '.join(ends)}" if ends else ""
    names = [file.name for folder in (folders.images, folders.labels) for file in list_folder(folder).scans]
    found = f"{', '.join(names[:_NAMES_TOLD])}{' and more' if names[_NAMES_TOLD:] else ''}" or "none"
    return InputError(
        f"no scans in {folders.images} and {folders.labels}: expected files ending in {', '.join(READ_ENDINGS)}{after}"
        f", or DICOM series with segmentations or structure sets that refer to them, found {found}",
        settings=("image_suffix", "label_suffix") if ends else (),
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


@contextmanager
def _channels_of(
    case: LabelledCase, part: Path, joined: int | None
) -> Iterator[tuple[list[ChannelFiles], list[DatasetProblem]]]:
    """Give the channels of a complete case, a file that holds several split for as long, and what is wrong with it."""
    files = [channel for channel in case.channels if channel is not None]
    if joined is None:
        yield files, []
        return
    with tempfile.TemporaryDirectory(dir=part, prefix=".") as folder:
        try:
            split = split_channels(files[0].paths[0], Path(folder), channels=joined)
        except InputError as error:
            yield [], [DatasetProblem(case.name, "unreadable", f"case {case.name}: {error}")]
            return
        yield [ChannelFiles((path,)) for path in split], []


def _add_case(
    part: Path,
    case: LabelledCase,
    files: Sequence[ChannelFiles],
    description: DatasetDescription,
    regions: RegionRules,
    label_maps: LabelMapRules,
    *,
    write: bool,
) -> list[DatasetProblem]:
    """Check a complete case and, if wanted and nothing is wrong, write it."""
    images, problems = _read_images(case.name, files)
    voxels, found = _read_labels(case, files, images, description, regions, label_maps)
    problems += found
    if voxels is None or problems or not write:
        return problems
    for i, (channel, image) in enumerate(zip(files, images, strict=True)):
        _copy_or_convert(channel, image, image_path(part, case.name, i))
    # the grid of the image, to the last digit
    write_on_grid(label_path(part, case.name), voxels.astype(label_dtype(voxels)), images[0].grid)
    return []


def _read_images(case: str, files: Sequence[ChannelFiles]) -> tuple[list[ChannelVolume], list[DatasetProblem]]:
    """Return the channels that can be read, and what is wrong with them."""
    images: list[ChannelVolume] = []
    problems: list[DatasetProblem] = []
    for i, channel in enumerate(files):
        image, unreadable = read_or_tell(channel, case=case)
        problems += unreadable
        if image is None:
            continue
        problems += image_problems(image, None, case=case, file=channel.name, what=f"channel {i}")
        if images:
            problems += geometry_problems(images[0], image, case=case, what="channel 0", against=f"channel {i}")
        images.append(image)
    return images, problems


def _read_labels(
    case: LabelledCase,
    files: Sequence[ChannelFiles],
    images: Sequence[ChannelVolume],
    description: DatasetDescription,
    regions: RegionRules,
    label_maps: LabelMapRules,
) -> tuple[NDArray[Any] | None, list[DatasetProblem]]:
    """Return the labels as they are written, and what is wrong."""
    if case.label is not None:
        label, problems = read_or_tell(case.label, case=case.name)
        if label is None:
            return None, problems
        image = images[0] if images else None
        return placed_labels(label, image, description.values, label_maps, case=case.name)
    series = files[0].series
    if series is None or series.problem is not None:
        return None, []  # it is told where the image is read
    voxels, problems = labels_of(case, series, description.labels, regions)
    if voxels is not None:
        problems += label_problems(voxels, description.values, case=case.name)
    return voxels, problems


def _add_test_case(part: Path, case: str, files: Sequence[ChannelFiles], *, write: bool) -> list[DatasetProblem]:
    """Check a complete case without labels and, if wanted and nothing is wrong, write it."""
    problems: list[DatasetProblem] = []
    for i, channel in enumerate(files):
        image, unreadable = read_or_tell(channel, case=case)
        problems += unreadable
        if image is not None and write and not problems:
            _copy_or_convert(channel, image, image_path(part, case, i, "imagesTs"))
    return problems


def _copy_or_convert(source: ChannelFiles, image: ChannelVolume, target: Path) -> None:
    if len(source.paths) == 1 and source.name.endswith(FILE_ENDING):
        with replacing(target) as temporary:
            shutil.copyfile(source.paths[0], temporary)
    else:
        write_on_grid(target, image.voxels, image.grid)
