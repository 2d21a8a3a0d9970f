"""Which images and label maps of a data set belong together, by their names."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctseg.files.dicom.choosing import SeriesRules
from ctseg.files.dicom.label_objects import LabelObject
from ctseg.files.formats import ChannelFiles, stem_of
from ctseg.files.listing import list_folder

_NAMES_TOLD = 3
"""Names that a message about many files lists."""


@dataclass(frozen=True)
class LabelledCase:
    """A scan of a data set, and the label map that belongs to it.

    Attributes:
        name: Of the case.
        channels: One for each channel of the data set, in order; None where it is missing.
        label: The label map; None where it is missing, and for images that have none.
        objects: DICOM objects that hold the labels of a series, in place of a label map.
    """

    name: str
    channels: tuple[ChannelFiles | None, ...]
    label: ChannelFiles | None
    objects: tuple[LabelObject, ...] = ()


@dataclass(frozen=True)
class DatasetProblem:
    """Something wrong with a data set.

    Attributes:
        case: The case; None where it concerns the data set as a whole.
        kind: A word for programs, such as ``shape`` or ``unexpected_label``.
        message: A sentence for people, which names the case.
    """

    case: str | None
    kind: str
    message: str


@dataclass(frozen=True)
class DatasetCases:
    """The cases of a data set, and what is wrong with their files.

    Attributes:
        cases: In order of their names; every case that has an image, complete or not.
        problems: Of the names and numbers of files; nothing was opened.
    """

    cases: tuple[LabelledCase, ...]
    problems: tuple[DatasetProblem, ...]


@dataclass(frozen=True)
class ScanFolders:
    """Where the images and labels of a new data set lie, and how their names end.

    A folder of images without scans of other formats is searched for DICOM series, at any depth; their labels are then
    the segmentations and structure sets in the folder of labels, see :mod:`ctseg.files.labelled_series`.

    Attributes:
        images: Folder of images.
        labels: Folder of label maps, or of DICOM objects; may be the same.
        image_suffixes: End of an image's name for each channel (``_ct``); None takes nnU-Net's ``_0000`` …,
            and for one channel also names without it.
        label_suffix: End of a label map's name (``_gtv``).
        test_images: Folder of images without label maps.
        series: Which DICOM series are taken.
        case_name_from: What names of DICOM cases are made of, see :func:`ctseg.files.dicom.names.keywords_in`.
        joined_channels: Whether one file of four dimensions holds all channels of a case; then it counts as one.
    """

    images: Path
    labels: Path
    image_suffixes: tuple[str, ...] | None = None
    label_suffix: str = ""
    test_images: Path | None = None
    series: SeriesRules = field(default_factory=SeriesRules)
    case_name_from: tuple[str, ...] = ()
    joined_channels: bool = False


def find_labelled_cases(folders: ScanFolders, *, channels: int) -> DatasetCases:
    """Find images and label maps whose names are the same once ending and suffix are taken off.

    Args:
        folders: Where they lie.
        channels: How many an image has.

    Raises:
        InputError: A folder cannot be read.
        ValueError: There are suffixes, but not one for each channel.
    """
    channels = 1 if folders.joined_channels else channels
    in_one_folder = folders.images == folders.labels
    images, problems = _images_in(
        folders.images, channels, folders.image_suffixes, label_suffix=folders.label_suffix if in_one_folder else ""
    )
    labels, doubled = _scans_by_case(folders.labels, folders.label_suffix)
    if in_one_folder:  # the images there are no labels
        taken = {path for found in images.values() for path in found.values()}
        labels = {case: path for case, path in labels.items() if path not in taken}
    if labels and not images:
        return DatasetCases((), tuple(dict.fromkeys([*problems, *doubled, _no_images(folders, labels, channels)])))
    if images and not labels and folders.label_suffix:
        problems.append(_no_label_maps(folders, images))
        return DatasetCases((), tuple(dict.fromkeys([*problems, *doubled])))
    paired = pair_by_name(images, labels, channels=channels, folders=(folders.images, folders.labels))
    # what is doubled in a common folder is seen twice
    return DatasetCases(paired.cases, tuple(dict.fromkeys([*problems, *doubled, *paired.problems])))


def find_test_cases(folders: ScanFolders, *, channels: int) -> DatasetCases:
    """Find the images without label maps, as :func:`find_labelled_cases` finds those with.

    Raises:
        InputError: The folder cannot be read.
    """
    if folders.test_images is None:
        return DatasetCases((), ())
    channels = 1 if folders.joined_channels else channels
    images, problems = _images_in(
        folders.test_images, channels, folders.image_suffixes, label_suffix=folders.label_suffix
    )
    cases = []
    for name, found in sorted(images.items()):
        if missing := _missing(found, channels):
            text = f"test case {name}: channels {missing} of {channels} are missing"
            problems.append(DatasetProblem(name, "missing_channel", text))
        cases.append(_labelled(name, found, None, channels))
    return DatasetCases(tuple(cases), tuple(problems))


def listed_dataset_cases(folder: Path, listed: Mapping[str, Any]) -> DatasetCases:
    """Return the training cases that ``dataset.json`` lists by itself, as its ``dataset`` may.

    Args:
        folder: Where paths begin that are not absolute.
        listed: ``images`` and ``label`` of each case by its name, as nnU-Net reads them.
    """
    cases, problems = [], []
    for name, files in sorted(listed.items()):
        paths = [folder / os.path.expandvars(file) for file in (*files["images"], files["label"])]
        missing = [path for path in paths if not path.is_file()]
        problems += [DatasetProblem(name, "missing_file", f"case {name}: {path} is missing") for path in missing]
        *channels, label = (None if path in missing else ChannelFiles((path,)) for path in paths)
        cases.append(LabelledCase(name, tuple(channels), label))
    return DatasetCases(tuple(cases), tuple(problems))


def _scans_by_case(folder: Path, suffix: str) -> tuple[dict[str, Path], list[DatasetProblem]]:
    """Return the scans whose names end in a suffix, by the name without it, and those that are there twice."""
    found: dict[str, Path] = {}
    problems = []
    for file in list_folder(folder).scans:
        stem = stem_of(file)
        if not stem.endswith(suffix):
            continue
        case = stem[: len(stem) - len(suffix)]
        if case in found:
            text = f"case {case}: {found[case].name} and {file.name} in {folder} are the same case"
            problems.append(DatasetProblem(case, "doubled", text))
        found.setdefault(case, file)
    return found, problems


def _images_in(
    folder: Path, channels: int, suffixes: Sequence[str] | None, *, label_suffix: str
) -> tuple[dict[str, dict[int, Path]], list[DatasetProblem]]:
    """Return files by case and channel; without suffixes, names that end in ``label_suffix`` are labels."""
    if suffixes is not None and len(suffixes) != channels:
        raise ValueError(f"expected {channels} suffixes of images, one for each channel, found {list(suffixes)}")
    images: dict[str, dict[int, Path]] = {}
    problems = []
    for channel, suffix in enumerate(suffixes or [f"_{channel:04d}" for channel in range(channels)]):
        found, doubled = _scans_by_case(folder, suffix)
        problems += doubled
        for case, file in found.items():
            images.setdefault(case, {})[channel] = file
    if suffixes is None and channels == 1:
        numbered = {file for found in images.values() for file in found.values()}
        plain, doubled = _scans_by_case(folder, "")
        problems += doubled
        for case, file in plain.items():
            if file not in numbered and not (label_suffix and case.endswith(label_suffix)):
                images.setdefault(case, {}).setdefault(0, file)
    return images, problems


def _no_images(folders: ScanFolders, labels: Iterable[str], channels: int) -> DatasetProblem:
    text = f"no images in {folders.images} for the label maps in {folders.labels} ({_told(labels)})"
    scans = list_folder(folders.images).scans
    if not scans:
        text += ": a DICOM series takes segmentations and structure sets as labels"
    elif folders.image_suffixes is not None:
        text += f": no names end in {', '.join(folders.image_suffixes)}, found {_told(file.name for file in scans)}"
    else:
        names = f"the names of images of {channels} channels end in _0000 to _{channels - 1:04d} or as stated"
        text += f": {names}, found {_told(file.name for file in scans)}"
    return DatasetProblem(None, "no_images", text)


def _no_label_maps(folders: ScanFolders, images: Iterable[str]) -> DatasetProblem:
    found = _told(file.name for file in list_folder(folders.labels).scans) or "no scans"
    text = f"no label maps in {folders.labels} for the images in {folders.images} ({_told(images)})"
    return DatasetProblem(None, "no_label_maps", f"{text}: no names end in {folders.label_suffix}, found {found}")


def pair_by_name(
    images: Mapping[str, Mapping[int, Path]], labels: Mapping[str, Path], *, channels: int, folders: tuple[Path, Path]
) -> DatasetCases:
    """Put images and label maps of one name together, and tell what has no partner.

    Args:
        images: By the name of the case, and its channel.
        labels: By the name of the case.
        channels: How many an image has.
        folders: Of images and of labels, for messages.
    """
    cases, problems = [], []

    def tell(kind: str, text: str) -> None:
        problems.append(DatasetProblem(name, kind, f"case {name}: {text}"))

    if bool(images) != bool(labels):
        there, what, where = (images, "label maps", folders[1]) if images else (labels, "images", folders[0])
        problems.append(
            DatasetProblem(None, f"no_{what.replace(' ', '_')}", f"no {what} in {where} for {_told(there)}")
        )
    elif images and not set(images) & set(labels):
        text = (
            f"no label map is called as an image is: {_told(images)} in {folders[0]}, {_told(labels)} in {folders[1]}"
        )
        problems.append(DatasetProblem(None, "names", f"{text}{_longer_names(set(images), set(labels))}"))
    if problems:
        return DatasetCases(
            tuple(_labelled(name, found, None, channels) for name, found in sorted(images.items())), tuple(problems)
        )
    for name in sorted({*images, *labels}):
        if name not in images:
            tell("surplus_label_file", f"no image in {folders[0]}")
            continue
        if name not in labels:
            tell("missing_label_file", f"no label map in {folders[1]}")
        found = images[name]
        if missing := _missing(found, channels):
            tell("missing_channel", f"channels {missing} of {channels} are missing")
        if surplus := sorted(set(found) - set(range(channels))):
            tell("surplus_channel", f"channels {surplus} are not in channel_names")
        cases.append(_labelled(name, found, labels.get(name), channels))
    return DatasetCases(tuple(cases), tuple(problems))


def _told(names: Iterable[str]) -> str:
    """Return some names, in words."""
    ordered = sorted(names)
    return ", ".join(ordered[:_NAMES_TOLD]) + (
        f" and {len(ordered) - _NAMES_TOLD} more" if len(ordered) > _NAMES_TOLD else ""
    )


def _longer_names(images: set[str], labels: set[str]) -> str:
    """Say it where the names of all images or of all label maps only end in something more."""
    for what, shorter, longer in (("label maps", images, labels), ("images", labels, images)):
        ends = {name[len(base) :] for name in longer for base in shorter if name.startswith(base) and name != base}
        for end in sorted(ends):
            if all(name.endswith(end) and name[: -len(end)] in shorter for name in longer):
                return f": the names of the {what} end in {end!r}, which is not the name of a case"
    return ": their names have to be the same, once ending and suffix are taken off"


def _labelled(name: str, found: Mapping[int, Path], label: Path | None, channels: int) -> LabelledCase:
    paths = [found.get(channel) for channel in range(channels)]
    return LabelledCase(
        name,
        tuple(None if path is None else ChannelFiles((path,)) for path in paths),
        None if label is None else ChannelFiles((label,)),
    )


def _missing(found: Mapping[int, Path], channels: int) -> list[int]:
    return [channel for channel in range(channels) if channel not in found]
