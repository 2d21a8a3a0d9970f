"""Which cases there are to segment, and which files belong to each."""

import re
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.files.dicom.choosing import SeriesRules
from ctseg.files.dicom.input import SeriesOfInput
from ctseg.files.formats import ChannelFiles, of_series, require_packages, scan_parts, stem_of
from ctseg.files.identity import ScanPart
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

    @property
    def parts(self) -> tuple[ScanPart, ...]:
        """What is known of its bytes: every file with those beside it, each DICOM series as one.

        Raises:
            OSError: A header cannot be read.
        """
        of_scan = tuple(part for channel in self.channels for part in scan_parts(channel))
        of_previous = () if self.previous is None else scan_parts(ChannelFiles((self.previous,)))
        return (*of_scan, *of_previous)


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


def find_cases(
    input_path: Path,
    *,
    channels: int,
    recursive: bool = False,
    own: Callable[[Path], Container[str]] = lambda _: (),
    not_into: Sequence[Path] = (),
    series: SeriesRules = SeriesRules(),  # noqa: B008 (frozen)
    case_name_from: Sequence[str] = (),
) -> list[Case]:
    """Find the cases in a folder, or make a case of one scan.

    In a folder, ``case_0000.nii.gz`` is channel 0 of ``case``, as nnU-Net names files. For a model of
    one channel, any other name is the name of a case, ``scan_2024.nii.gz`` too, unless there is a
    ``scan_0000`` beside it. Any ending that can be read will do, whatever its case. Hidden files,
    folders and files of other kinds are passed over, and one warning says what they are.

    In sub-folders the case of ``patient1/ct/scan_0000.nii.gz`` is ``patient1_ct_scan``: label maps of all lie side
    by side in one folder. Where two scans would have one name so, neither is segmented, and both are named.

    Each CT series in DICOM is a case, whatever the names of its files; one that cannot be read as one volume has a
    problem, and so have all of a model of several channels.

    Args:
        input_path: A folder, or a scan; for a model of several channels, a scan stands for its case.
        channels: How many the model wants.
        recursive: See :func:`ctseg.files.scans.find_scans`.
        own: Likewise.
        not_into: Likewise.
        series: Likewise.
        case_name_from: Likewise.

    Returns:
        Cases in order of their names. One that cannot be segmented has a ``problem``, and stops no other.

    Raises:
        InputError: The path cannot be read, is no scan, or holds none.
        SetupError: The path is a scan that needs a package which is not installed.
    """
    scans = find_scans(
        input_path, recursive=recursive, own=own, not_into=not_into, series=series, case_name_from=case_name_from
    )
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
    if scans.dicom is not None:
        cases += [_case_of_series(item, channels) for item in scans.dicom.chosen]
    # names of DICOM cases are ctseg's own: files of two may be one on a share, or on another system
    folded = {case.name.casefold() for case in cases if _is_dicom(case)}
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        name = case.name.casefold()
        by_name.setdefault(name if name in folded else case.name, []).append(case)
    return sorted((_one_of(same, scans.path) for same in by_name.values()), key=lambda case: case.name)


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
    names = ", ".join(told for channel in files for told in _told(channel, root))
    name = cases[0].name
    todo = "add SeriesNumber or StudyInstanceUID to what names are made of" if _is_dicom(cases[0]) else "rename one"
    problem = f"case {name}: expected a name of its own for each label map, found {names}, which share it: {todo}"
    return Case(name, tuple(files), problem)


def _is_dicom(case: Case) -> bool:
    return any(channel.series is not None for channel in case.channels)


def _told(channel: ChannelFiles, root: Path) -> list[str]:
    """Return what messages call the files of a channel; of a DICOM series, no path."""
    if channel.series is not None:
        return [channel.name]
    return [str(path.relative_to(root)) for path in channel.paths]


def _case_of_series(item: SeriesOfInput, channels: int) -> Case:
    name, series = item.name, item.series
    problem = None
    if series.problem is not None:
        problem = f"case {name}: {series.label}: {series.problem}"
    elif channels > 1:
        problem = (
            f"case {name}: expected {channels} channels, found one DICOM series: convert the series of the case to "
            f"NIfTI on one grid, as {name}_0000 to {name}_{channels - 1:04d}"
        )
    return Case(name, (of_series(series),) if series.paths else (), problem)


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
