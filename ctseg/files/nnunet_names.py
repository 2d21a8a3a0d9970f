"""Which files of ``DatasetXXX_Name`` are whose, by nnU-Net's names; names that are wrong are told by their cause."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.files.dataset_cases import DatasetCases, DatasetProblem, pair_by_name
from ctseg.files.formats import ending_of
from ctseg.files.listing import list_folder

_EACH_TOLD = 3
"""Files of wrong names that are told one by one; more are told together."""
_NUMBERED = re.compile(r"(.+)_(\d{4})")
_MISNUMBERED = re.compile(r"(.+?)_?(\d+)")


@dataclass(frozen=True)
class _Folder:
    """The files of ``imagesTr`` or ``labelsTr``.

    Attributes:
        path: Of the folder.
        example: Of a right name, without its ending.
        files: In order; hidden ones apart.
        hidden: Names of hidden files that nnU-Net would take for scans.
    """

    path: Path
    example: str
    files: tuple[Path, ...]
    hidden: tuple[str, ...]


def find_dataset_cases(folder: Path, *, file_ending: str | None, channels: int) -> DatasetCases:
    """Find the training cases of ``DatasetXXX_Name`` by nnU-Net's names, and files that have none of these.

    Files whose names are wrong in a known way are told once by what has to be renamed, and count as what they are
    meant to be, so that whatever else is wrong is told in the same run.

    Args:
        folder: With ``imagesTr`` and ``labelsTr``.
        file_ending: What ``dataset.json`` says; None: it says nothing.
        channels: How many it names.

    Raises:
        InputError: A folder cannot be read.
    """
    paths = (folder / "imagesTr", folder / "labelsTr")
    absent = [DatasetProblem(None, "dataset_json", f"{part} is missing") for part in paths if not part.is_dir()]
    if absent:
        return DatasetCases((), tuple(absent))
    images, labels = _listed(paths[0], "case_0000"), _listed(paths[1], "case")
    problems = _hidden_problems(images)
    ending, found = _ending((*images.files, *labels.files), file_ending)
    problems += found
    numbered, other = _stems(images, ending)
    problems += other
    named, other = _stems(labels, ending)
    problems += other
    by_channel, nameless = _by_channel(numbered)
    taken, found = _without_number(nameless, by_channel, named, ending)
    problems += found
    named, found = _labels_without_number(named, by_channel, ending)
    problems += found
    problems += _surplus(images, [nameless[stem] for stem in nameless if stem not in taken], ending)
    paired = pair_by_name(by_channel, named, channels=channels, folders=paths)
    return DatasetCases(paired.cases, (*problems, *paired.problems))


def _listed(folder: Path, example: str) -> _Folder:
    listing = list_folder(folder)
    everything = sorted((*listing.scans, *listing.folders, *listing.others))
    hidden = tuple(file.name for file in everything if file.name.startswith(".") and ending_of(file))
    return _Folder(folder, example, tuple(file for file in everything if not file.name.startswith(".")), hidden)


def _hidden_problems(images: _Folder) -> list[DatasetProblem]:
    if not images.hidden:
        return []
    many = f"{len(images.hidden)} hidden files, such as {images.hidden[0]}, which nnU-Net takes for images"
    return [DatasetProblem(None, "hidden_file", f"{images.path.name}: {many}: remove them (macOS leaves them behind)")]


def _ending(files: Sequence[Path], said: str | None) -> tuple[str, list[DatasetProblem]]:
    """Return what the names of the files end in, and how ``dataset.json`` is wrong about it."""
    # "nii.gz" is an ending of every name in .nii.gz, and yet no name of a case comes out
    if said and said.startswith(".") and (not files or any(file.name.endswith(said) for file in files)):
        return said, []
    counts = Counter(file.name[-len(ending) :] for file in files if (ending := ending_of(file)))
    if not counts:
        if said is None:
            return ".nii.gz", [DatasetProblem(None, "dataset_json", "dataset.json: 'file_ending' is missing")]
        return said, []
    ((right, count),) = counts.most_common(1)
    what = "'file_ending' is missing" if said is None else f"file_ending is {said!r}"
    text = f'dataset.json: {what}, and {count} of {len(files)} files end in {right}: write "file_ending": "{right}"'
    return right, [DatasetProblem(None, "file_ending", text)]


def _stems(folder: _Folder, ending: str) -> tuple[dict[str, Path], list[DatasetProblem]]:
    """Return files by their names without the ending, and what does not end so."""
    found, other = {}, []
    for file in folder.files:
        if file.name.endswith(ending) and file.name != ending:
            found[file.name[: -len(ending)]] = file
        else:
            other.append(file)
    return found, _surplus(folder, other, ending)


def _surplus(folder: _Folder, files: Sequence[Path], ending: str) -> list[DatasetProblem]:
    expected = f"expected names like {folder.example}{ending}"
    if len(files) > _EACH_TOLD:
        names = ", ".join(file.name for file in files[:_EACH_TOLD])
        convert = "; `ctseg dataset create` reads other formats" if any(ending_of(file) for file in files) else ""
        text = f"{folder.path.name}: {len(files)} files, {names} and others: {expected}{convert}"
        return [DatasetProblem(None, "surplus_file", text)]
    return [DatasetProblem(None, "surplus_file", f"{folder.path.name}/{file.name}: {expected}") for file in files]


def _by_channel(stems: Mapping[str, Path]) -> tuple[dict[str, dict[int, Path]], dict[str, Path]]:
    """Return images by case and channel, and those without a number of a channel."""
    images: dict[str, dict[int, Path]] = {}
    nameless = {}
    for stem, file in stems.items():
        if match := _NUMBERED.fullmatch(stem):
            images.setdefault(match[1], {})[int(match[2])] = file
        else:
            nameless[stem] = file
    return images, nameless


def _without_number(
    nameless: Mapping[str, Path], images: dict[str, dict[int, Path]], labels: Mapping[str, Path], ending: str
) -> tuple[set[str], list[DatasetProblem]]:
    """Put images without a number, or with a short one, where they belong; return those, and what to rename."""
    first, taken = not images, {}
    for stem, file in nameless.items():
        case, channel = stem, 0
        if stem not in labels and (match := _MISNUMBERED.fullmatch(stem)) and match[1] in labels:
            case, channel = match[1], int(match[2])
        if (case in labels or first) and channel not in images.get(case, {}):
            images.setdefault(case, {})[channel] = file
            taken[stem] = f"{case}_{channel:04d}{ending}"
    return set(taken), _renaming(
        "images in imagesTr whose names do not end in the number of a channel (_0000 for the first)",
        {nameless[stem].name: name for stem, name in taken.items()},
        "channel_number",
    )


def _labels_without_number(
    labels: Mapping[str, Path], images: Mapping[str, object], ending: str
) -> tuple[dict[str, Path], list[DatasetProblem]]:
    """Return label maps by case, those that are numbered as images too, and what to rename."""
    cases, renamed = {}, {}
    for stem, file in labels.items():
        match = _NUMBERED.fullmatch(stem)
        if match and stem not in images and match[1] in images and match[1] not in labels:
            cases[match[1]] = file
            renamed[file.name] = f"{match[1]}{ending}"
        else:
            cases[stem] = file
    return cases, _renaming("label maps in labelsTr with the number of a channel", renamed, "channel_number")


def _renaming(what: str, names: Mapping[str, str], kind: str) -> list[DatasetProblem]:
    if not names:
        return []
    shown: Iterable[tuple[str, str]] = list(names.items())[:_EACH_TOLD]
    text = ", ".join(f"{before} to {after}" for before, after in shown)
    more = " and so on" if len(names) > _EACH_TOLD else ""
    advice = f"rename {text}{more} (`ctseg dataset create` copies them under right names)"
    return [DatasetProblem(None, kind, f"{len(names)} {what}: {advice}")]
