"""nnU-Net's three folders and the names in them; no torch, no nnunetv2."""

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.nnunet.trainers import TRAINERS_FOLDER, trainer_folders
from ctseg.nnunet.variables import VARIABLES

_PURPOSE = {
    "nnUNet_raw": "data sets as they were created",
    "nnUNet_preprocessed": "plans and preprocessed cases",
    "nnUNet_results": "trained models",
}
_DATASET_FOLDER = re.compile(r"Dataset(\d{3})_.+")


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
        return f"{path} is not a folder"
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
        raise SetupError(f"data set {name_or_id!r}: expected an id (101) or a name (Dataset101_Name)")
    if not names:
        raise SetupError(
            f"data set {name_or_id}: no such data set in {', '.join(str(root) for root in paths.known)}: "
            "`ctseg dataset create` makes one"
        )
    return names[0]


def dataset_id(name: str) -> int:
    """Return the number in ``DatasetXXX_Name``."""
    return int(name[7:10])
