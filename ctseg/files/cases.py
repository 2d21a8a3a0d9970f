"""Which cases there are, and which files belong to each: scans to segment, and the cases of a data set."""

import os
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctseg.errors import SetupError
from ctseg.files.formats import ChannelFiles, require_packages, stem_of
from ctseg.files.listing import list_folder
from ctseg.files.scans import FoundScans, find_scans

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class Case:
    """One patient volume to segment.

    Attributes:
        name: Of the case and of its label map, without the ending.
        channels: Where each channel lies, in order; all that was found, if there is a problem.
        problem: Why the case cannot be segmented; None: it can.
        previous: The label map of the previous stage of a cascade, where it is given.
    """

    name: str
    channels: tuple[ChannelFiles, ...]
    problem: str | None = None
    previous: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file of the case."""
        of_scan = tuple(path for channel in self.channels for path in channel.paths)
        return of_scan if self.previous is None else (*of_scan, self.previous)


def with_previous_stage(cases: Sequence[Case], folder: Path, file_ending: str) -> list[Case]:
    """Return cases with the label maps of a cascade's previous stage, which have the cases' names.

    Args:
        cases: The cases; one without such a label map gets a problem.
        folder: Of the label maps.
        file_ending: Of their names.
    """
    return [_with_previous(case, folder / f"{case.name}{file_ending}") for case in cases]


def _with_previous(case: Case, path: Path) -> Case:
    if case.problem is None and not path.is_file():
        problem = f"case {case.name}: expected a label map of the previous stage, {path}, found none"
        return replace(case, problem=problem)
    return replace(case, previous=path)


@dataclass(frozen=True)
class LabelledCase:
    """A scan of a data set, and the label map that belongs to it.

    Attributes:
        name: Of the case.
        channels: One for each channel of the data set, in order; None where it is missing.
        label: The label map; None where it is missing, and for images that have none.
    """

    name: str
    channels: tuple[ChannelFiles | None, ...]
    label: ChannelFiles | None


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
    """Where the images and label maps of a new data set lie, and how their names end.

    Attributes:
        images: Folder of images.
        labels: Folder of label maps; may be the same.
        image_suffixes: End of an image's name for each channel (``_ct``); None takes nnU-Net's ``_0000`` …,
            and for one channel also names without it.
        label_suffix: End of a label map's name (``_gtv``).
        test_images: Folder of images without label maps.
    """

    images: Path
    labels: Path
    image_suffixes: tuple[str, ...] | None = None
    label_suffix: str = ""
    test_images: Path | None = None


def find_cases(
    input_path: Path,
    *,
    channels: int,
    recursive: bool = False,
    own: Callable[[Path], Container[str]] = lambda _: (),
    not_into: Sequence[Path] = (),
) -> list[Case]:
    """Find the cases in a folder, or make a case of one scan.

    In a folder, ``case_0000.nii.gz`` is channel 0 of ``case``, as nnU-Net names files. For a model of
    one channel, any other name is the name of a case, ``scan_2024.nii.gz`` too, unless there is a
    ``scan_0000`` beside it. Any ending that can be read will do, whatever its case. Hidden files,
    folders and files of other kinds are passed over, and one warning says what they are.

    In sub-folders the case of ``patient1/ct/scan_0000.nii.gz`` is ``patient1_ct_scan``: label maps of all lie side
    by side in one folder. Where two scans would have one name so, neither is segmented, and both are named.

    Args:
        input_path: A folder, or a scan; for a model of several channels, a scan stands for its case.
        channels: How many the model wants.
        recursive: See :func:`ctseg.files.scans.find_scans`.
        own: Likewise.
        not_into: Likewise.

    Returns:
        Cases in order of their names. One that cannot be segmented has a ``problem``, and stops no other.

    Raises:
        InputError: The path cannot be read, is no scan, or holds none.
        SetupError: The path is a scan that needs a package which is not installed.
    """
    scans = find_scans(input_path, recursive=recursive, own=own, not_into=not_into)
    return cases_of(scans, channels)


def cases_of(scans: FoundScans, channels: int) -> list[Case]:
    """Put scans together to cases, see :func:`find_cases`.

    Args:
        scans: Those of an input.
        channels: How many a case has.
    """
    if scans.chosen is not None:
        return [_case_of_file(scans.chosen, scans.folders[0].files, channels)]
    cases = [Case(name, (), f"case {name}: {problem}") for name, problem in scans.unreadable]
    for folder in scans.folders:
        cases += _cases_of(folder.files, channels, prefix=folder.prefix)
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        by_name.setdefault(case.name, []).append(case)
    return [_one_of(by_name[name], scans.path) for name in sorted(by_name)]


def find_labelled_cases(folders: ScanFolders, *, channels: int) -> DatasetCases:
    """Find images and label maps whose names are the same once ending and suffix are taken off.

    Args:
        folders: Where they lie.
        channels: How many an image has.

    Raises:
        InputError: A folder cannot be read.
        ValueError: There are suffixes, but not one for each channel.
    """
    in_one_folder = folders.images == folders.labels
    images, problems = _images_in(
        folders.images, channels, folders.image_suffixes, label_suffix=folders.label_suffix if in_one_folder else ""
    )
    labels, doubled = _scans_by_case(folders.labels, folders.label_suffix)
    if in_one_folder:  # the images there are no labels
        taken = {path for found in images.values() for path in found.values()}
        labels = {case: path for case, path in labels.items() if path not in taken}
    paired = _paired(images, labels, channels=channels, folders=(folders.images, folders.labels))
    # what is doubled in a common folder is seen twice
    return DatasetCases(paired.cases, tuple(dict.fromkeys([*problems, *doubled, *paired.problems])))


def find_test_cases(folders: ScanFolders, *, channels: int) -> DatasetCases:
    """Find the images without label maps, as :func:`find_labelled_cases` finds those with.

    Raises:
        InputError: The folder cannot be read.
    """
    if folders.test_images is None:
        return DatasetCases((), ())
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


def find_dataset_cases(folder: Path, *, file_ending: str, channels: int) -> DatasetCases:
    """Find the training cases of ``DatasetXXX_Name`` by nnU-Net's names, and files that have none of these.

    Args:
        folder: With ``imagesTr`` and ``labelsTr``.
        file_ending: What ``dataset.json`` says.
        channels: How many it names.

    Raises:
        InputError: A folder cannot be read.
    """
    folders = (folder / "imagesTr", folder / "labelsTr")
    problems = [DatasetProblem(None, "dataset_json", f"{part} is missing") for part in folders if not part.is_dir()]
    if problems:
        return DatasetCases((), tuple(problems))
    ending = re.escape(file_ending)
    numbered, other = _named_like(rf"(.+)_(\d{{4}}){ending}", folders[0], example=f"case_0000{file_ending}")
    named, surplus = _named_like(rf"(.+){ending}", folders[1], example=f"case{file_ending}")
    images: dict[str, dict[int, Path]] = {}
    for file, (name, channel) in numbered.items():
        images.setdefault(name, {})[int(channel)] = file
    labels = {name: file for file, (name,) in named.items()}
    paired = _paired(images, labels, channels=channels, folders=folders)
    return DatasetCases(paired.cases, (*other, *surplus, *paired.problems))


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


def _case_of_file(file: Path, beside: Sequence[Path], channels: int) -> Case:
    if channels == 1:
        name, channel = _name_and_channel(file)
        return _case(name if channel == 0 else stem_of(file), [(0, file)], channels)
    return next(case for case in _cases_of(beside, channels) if file in case.paths)


def _one_of(cases: Sequence[Case], root: Path) -> Case:
    """Return the one case of a name; several become one that cannot be segmented."""
    if len(cases) == 1:
        return cases[0]
    files = [channel for case in cases for channel in case.channels]
    names = ", ".join(str(path.relative_to(root)) for channel in files for path in channel.paths)
    name = cases[0].name
    problem = f"case {name}: expected a name of its own for each label map, found {names}, which share it: rename one"
    return Case(name, tuple(files), problem)


def _cases_of(files: Sequence[Path], channels: int, *, prefix: str = "") -> list[Case]:
    files = sorted(set(files))
    # a number at the end of a name is a channel, except for a model of one channel without a first channel
    numbered = {name for name, channel in map(_name_and_channel, files) if channel is not None and channels > 1}
    numbered |= {name for name, channel in map(_name_and_channel, files) if channel == 0}
    groups: dict[str, list[tuple[int | None, Path]]] = {}
    for file in files:
        name, channel = _name_and_channel(file)
        if channel is not None and name not in numbered:
            name, channel = stem_of(file), None
        groups.setdefault(name, []).append((channel, file))
    return [_case(name, found, channels, prefix=prefix) for name, found in sorted(groups.items())]


def _case(name: str, found: list[tuple[int | None, Path]], channels: int, *, prefix: str = "") -> Case:
    """Put the files of one name in order, or say what is wrong with them."""
    files = tuple(file for _, file in sorted(found, key=lambda entry: (entry[0] or 0, entry[1])))
    if channels == 1:
        found = [(0 if channel is None else channel, file) for channel, file in found]
    problem = None
    by_channel = Counter(channel for channel, _ in found)
    names = ", ".join(file.name for file in files)
    expected = f"case {prefix}{name}: expected " + (
        f"{name}_0000" if channels == 1 else f"one file for each of {name}_0000 to {name}_{channels - 1:04d}"
    )
    if None in by_channel:
        problem = f"{expected}, found {names}: add the number of the channel to each name"
    elif doubled := [channel for channel, count in by_channel.items() if count > 1]:
        problem = f"{expected}, found {names}: more than one file for channel {doubled[0]}; take the others away"
    elif missing := [channel for channel in range(channels) if channel not in by_channel]:
        problem = f"{expected}, found {names}: add {', '.join(f'{name}_{channel:04d}' for channel in missing)}"
    elif len(by_channel) > channels:
        problem = (
            f"{expected}, found {names}: take the other channels away, "
            "or, if these are scans of their own, name them without a number of four digits at the end"
        )
    else:
        problem = _missing_packages(f"{prefix}{name}", files)
    return Case(f"{prefix}{name}", tuple(ChannelFiles((file,)) for file in files), problem)


def _missing_packages(name: str, files: Sequence[Path]) -> str | None:
    try:
        for file in files:
            require_packages(file)
    except SetupError as error:
        return f"case {name}: {error}"
    return None


def _name_and_channel(file: Path) -> tuple[str, int | None]:
    stem = stem_of(file)
    match = _CHANNEL.fullmatch(stem)
    return (stem, None) if match is None else (match["case"], int(match["channel"]))


def _named_like(pattern: str, folder: Path, *, example: str) -> tuple[dict[Path, Sequence[str]], list[DatasetProblem]]:
    """Return the groups of each file's name by the file, and the files whose names do not match."""
    matching: dict[Path, Sequence[str]] = {}
    problems = []
    listing = list_folder(folder)
    for file in sorted((*listing.scans, *listing.folders, *listing.others)):
        if file.name.startswith("."):
            continue
        if match := re.fullmatch(pattern, file.name):
            matching[file] = match.groups()
        else:
            text = f"{folder.name}/{file.name}: expected names like {example}"
            problems.append(DatasetProblem(None, "surplus_file", text))
    return matching, problems


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


def _paired(
    images: Mapping[str, Mapping[int, Path]], labels: Mapping[str, Path], *, channels: int, folders: tuple[Path, Path]
) -> DatasetCases:
    """Put images and label maps of one name together, and tell what has no partner."""
    cases, problems = [], []

    def tell(kind: str, text: str) -> None:
        problems.append(DatasetProblem(name, kind, f"case {name}: {text}"))

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


def _labelled(name: str, found: Mapping[int, Path], label: Path | None, channels: int) -> LabelledCase:
    paths = [found.get(channel) for channel in range(channels)]
    return LabelledCase(
        name,
        tuple(None if path is None else ChannelFiles((path,)) for path in paths),
        None if label is None else ChannelFiles((label,)),
    )


def _missing(found: Mapping[int, Path], channels: int) -> list[int]:
    return [channel for channel in range(channels) if channel not in found]
