"""Which scans there are to segment, and which files belong to each."""

import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import InputError
from ctseg.files.volume import READ_ENDINGS, ending_of

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True)
class Case:
    """One patient volume to segment.

    Attributes:
        name: Of the case and of its label map, without the ending.
        files: One per channel, in order; all that was found, if there is a problem.
        problem: Why the case cannot be segmented.
    """

    name: str
    files: tuple[Path, ...]
    problem: InputError | None = None


def find_cases(input_path: Path, *, channels: int) -> list[Case]:
    """Find the cases in a folder, or make a case of one scan.

    In a folder, ``case_0000.nii.gz`` is channel 0 of ``case``, as nnU-Net names files. For a model of
    one channel, any other name is the name of a case, ``scan_2024.nii.gz`` too, unless there is a
    ``scan_0000`` beside it. Any ending that can be read will do, whatever its case. Hidden files,
    folders and files of other kinds are passed over.

    Args:
        input_path: A folder, or a scan; for a model of several channels, a scan stands for its case.
        channels: How many the model wants.

    Returns:
        Cases in order of their names. One that cannot be segmented has a ``problem``, and stops no other.

    Raises:
        InputError: The path cannot be read, is no scan, or holds none.
    """
    try:
        is_folder = stat.S_ISDIR(input_path.stat().st_mode)
    except OSError as error:
        raise InputError(f"{input_path}: expected a scan or a folder of scans: {error.strerror or error}") from error
    if not is_folder:
        return [_case_of_file(input_path, channels)]
    files = _scans_in(input_path)
    if not files:
        raise InputError(f"{input_path}: expected scans ({', '.join(READ_ENDINGS)}), found {_kinds_in(input_path)}")
    return _cases_of(files, channels)


def _case_of_file(file: Path, channels: int) -> Case:
    if ending_of(file) is None:
        raise InputError(f"{file}: expected a scan in one of {', '.join(READ_ENDINGS)}: convert it")
    if channels == 1:
        name, channel = _name_and_channel(file)
        return Case(name if channel == 0 else _stem(file), (file,))
    return next(case for case in _cases_of([*_scans_in(file.parent), file], channels) if file in case.files)


def _scans_in(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return [entry for entry in entries if not entry.name.startswith(".") and ending_of(entry) and not entry.is_dir()]


def _kinds_in(folder: Path) -> str:
    kinds = Counter(entry.suffix or "no ending" for entry in folder.iterdir() if entry.is_file())
    if not kinds:
        return "an empty folder"
    found = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
    return (
        f"{found}: convert DICOM series to NIfTI first"
        if {".dcm", ".ima"} & {kind.lower() for kind in kinds}
        else found
    )


def _cases_of(files: Sequence[Path], channels: int) -> list[Case]:
    files = sorted(set(files))
    # a number at the end of a name is a channel, except for a model of one channel without a first channel
    numbered = {name for name, channel in map(_name_and_channel, files) if channel is not None and channels > 1}
    numbered |= {name for name, channel in map(_name_and_channel, files) if channel == 0}
    groups: dict[str, list[tuple[int | None, Path]]] = {}
    for file in files:
        name, channel = _name_and_channel(file)
        if channel is not None and name not in numbered:
            name, channel = _stem(file), None
        groups.setdefault(name, []).append((channel, file))
    return [_case(name, found, channels) for name, found in sorted(groups.items())]


def _case(name: str, found: list[tuple[int | None, Path]], channels: int) -> Case:
    """Put the files of one name in order, or say what is wrong with them."""
    files = tuple(file for _, file in sorted(found, key=lambda entry: (entry[0] or 0, entry[1])))
    if channels == 1:
        found = [(0 if channel is None else channel, file) for channel, file in found]
    problem = None
    by_channel = Counter(channel for channel, _ in found)
    names = ", ".join(file.name for file in files)
    expected = f"case {name}: expected " + (
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
    return Case(name, files, None if problem is None else InputError(problem))


def _stem(file: Path) -> str:
    return file.name[: -len(ending_of(file) or "")]


def _name_and_channel(file: Path) -> tuple[str, int | None]:
    stem = _stem(file)
    match = _CHANNEL.fullmatch(stem)
    return (stem, None) if match is None else (match["case"], int(match["channel"]))
