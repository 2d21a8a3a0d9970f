"""nnU-Net's three folders and the names in them; no torch, no nnunetv2."""

import difflib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.files.dicom.names import DEVICE
from ctseg.nnunet.trainers import TRAINERS_FOLDER, trainer_folders
from ctseg.nnunet.variables import VARIABLES

_PURPOSE = {
    "nnUNet_raw": "data sets as they were created",
    "nnUNet_preprocessed": "plans and preprocessed cases",
    "nnUNet_results": "trained models",
}
_DATASET_FOLDER = re.compile(r"Dataset(\d{3})_.+")
_TOLD = 10
"""Data sets that a message lists."""
_CASE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FULL_NAME = re.compile(r"Dataset(\d+)_(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class NnunetPaths:
    """The folders that a command uses; None where it does not."""

    raw: Path | None = None
    preprocessed: Path | None = None
    results: Path | None = None

    @property
    def known(self) -> tuple[Path, ...]:
        """The folders that are set."""
        return tuple(path for path in (self.raw, self.preprocessed, self.results) if path is not None)


def require_paths(needed: Iterable[str], overrides: Mapping[str, str | None] | None = None) -> NnunetPaths:
    """Find nnU-Net's folders before any work begins, and set the environment that nnU-Net reads.

    ``nnUNet_extTrainer`` is extended by the folder of ctseg's trainers.

    Args:
        needed: Which of :data:`VARIABLES` must be there and writable; the others are taken if they are set.
        overrides: Folders given on the command line, by variable; None means not given.

    Raises:
        SetupError: A needed folder is not named, does not exist or cannot be written to; all of
            them are told at once.
    """
    needed = set(needed)
    found: dict[str, Path] = {}
    problems, settings = [], []
    for variable in VARIABLES:
        given = (overrides or {}).get(variable) or os.environ.get(variable)
        if not given:
            if variable in needed:
                problems.append(
                    f"{variable} ({_PURPOSE[variable]}) is not set: `export {variable}=/a/folder` "
                    f"(Windows: `setx {variable} C:\\a\\folder`)"
                )
                settings.append(variable)
            continue
        path = Path(given).expanduser().absolute()
        if variable in needed and (problem := _problem_of(path)):
            problems.append(f"{variable} ({_PURPOSE[variable]}): {problem}")
            settings.append(variable)
        found[variable] = path
    if problems:
        raise SetupError("; ".join(problems), settings=tuple(settings))
    for variable, path in found.items():
        os.environ[variable] = str(path)
    _extend_trainer_path()
    return NnunetPaths(
        raw=found.get("nnUNet_raw"), preprocessed=found.get("nnUNet_preprocessed"), results=found.get("nnUNet_results")
    )


def _problem_of(path: Path) -> str | None:
    if not path.exists():
        return f"{path} does not exist: create it, or name another folder"
    if not path.is_dir():
        return f"{path} is a file, expected a folder"
    try:
        # permission bits alone say little on network drives, on Windows, and to root
        with tempfile.TemporaryFile(dir=path):
            return None
    except OSError as error:
        return f"{path} cannot be written to ({error.strerror})"


def _extend_trainer_path() -> None:
    folders = trainer_folders()
    if str(TRAINERS_FOLDER) not in folders:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*folders, str(TRAINERS_FOLDER)])  # noqa: SIM112


def dataset_name(paths: NnunetPaths, name_or_id: str) -> str:
    """Return ``DatasetXXX_Name`` for an id (``101``, ``7``) or for the name itself.

    Raises:
        SetupError: No data set, or more than one, has this id or name.
    """
    if name_or_id.isdecimal():
        wanted = f"{int(name_or_id):03d}"
        names = sorted(
            {
                folder.name
                for root in paths.known
                if root.is_dir()
                for folder in root.iterdir()
                if folder.is_dir() and (match := _DATASET_FOLDER.fullmatch(folder.name)) and match[1] == wanted
            }
        )
        if len(names) > 1:
            raise SetupError(
                f"data set {name_or_id}: the id is ambiguous, found {', '.join(names)}: rename all but one"
            )
    elif _DATASET_FOLDER.fullmatch(name_or_id):
        names = [name_or_id] if any((root / name_or_id).is_dir() for root in paths.known) else []
    else:
        there = sorted({folder.name for root in paths.known if root.is_dir() for folder in root.glob("Dataset*_*")})
        found = f"; found: {', '.join(there[:10])}{' …' if len(there) > 10 else ''}" if there else ""
        raise SetupError(f"data set {name_or_id!r}: expected an id (101) or a name (Dataset101_Name){found}")
    if not names:
        there = sorted(
            {folder.name for root in paths.known if root.is_dir() for folder in root.glob("Dataset[0-9]*_*")}
        )
        close = difflib.get_close_matches(name_or_id, there, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        found = f"{', '.join(there[:_TOLD])}{' and more' if there[_TOLD:] else ''}" or "none"
        raise SetupError(
            f"data set {name_or_id}: no such data set in {', '.join(str(root) for root in paths.known)} "
            f"(found: {found}){meant}: `ctseg dataset create` makes one"
        )
    return names[0]


def dataset_id(name: str) -> int:
    """Return the number in ``DatasetXXX_Name``."""
    return int(name[7:10])


def split_dataset_name(words: str) -> tuple[int | None, str]:
    """Return the id and the name in ``DatasetXXX_Name``; None where the words are a name only.

    Args:
        words: What somebody calls a data set.
    """
    match = _FULL_NAME.fullmatch(words)
    return (None, words) if match is None else (int(match[1]), match[2])


def new_dataset_folder(raw: Path, dataset_id: int, name: str) -> Path:
    """Return where a new data set belongs; nothing is made.

    Args:
        raw: The folder ``nnUNet_raw``.
        dataset_id: 1 to 999.
        name: Letters, digits, ``_`` and ``-``; ``DatasetXXX_Name`` of this id is understood.

    Raises:
        SetupError: The id or the name cannot be used, or the id is taken.
    """
    if not 1 <= dataset_id <= 999:
        raise SetupError(f"data set id {dataset_id}: expected 1 to 999")
    said, short = split_dataset_name(name)
    if said is not None and said != dataset_id:
        raise SetupError(f"data set name {name!r} has the id {said}, and the data set {dataset_id}: which is it?")
    if not _NAME.fullmatch(short):
        better = re.sub(r"[^A-Za-z0-9_-]+", "_", short).strip("_-")
        advice = f", such as {better}" if better else ""
        raise SetupError(f"data set name {name!r}: letters, digits, '_' and '-' only{advice}")
    if taken := sorted(raw.glob(f"Dataset{dataset_id:03d}_*")):
        raise SetupError(f"data set id {dataset_id} is taken by {taken[0]}: remove it, or choose another id")
    return raw / f"Dataset{dataset_id:03d}_{short}"


def case_name_problems(case: str) -> list[str]:
    """Return what is wrong with the name of a case."""
    if not _CASE.fullmatch(case):
        return ["a case's name has letters, digits, '_', '-' and '.' only: rename its files"]
    if DEVICE.fullmatch(case):
        return ["Windows has a device of this name and lets no file have it: rename its files"]
    if re.search(r"_\d{4}$", case):
        return ["the name ends like nnU-Net's channel numbers (_0000): rename its files"]
    return []
