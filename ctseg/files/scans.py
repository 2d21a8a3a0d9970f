"""Which scans an input holds, looked at before it is known which of them make a case."""

import logging
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import InputError
from ctseg.files.formats import READ_ENDINGS, ending_of, require_packages
from ctseg.files.identity import printable
from ctseg.files.listing import Listing, described, kind_of_file, kinds_of, list_folder
from ctseg.files.regular import open_regular

logger = logging.getLogger(__name__)

_PEEKED = 100
"""Sub-folders that are looked into, only to say what lies in them."""


@dataclass(frozen=True)
class ScansOfFolder:
    """The scans of one folder of an input.

    Attributes:
        prefix: What the names of its cases begin with: the folder's place in the input, ``patient1_``.
        files: In order of their names.
    """

    prefix: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class FoundScans:
    """The scans of an input.

    Attributes:
        path: The input.
        folders: Those that hold scans, in order of their places; the input's own scans have no prefix.
        chosen: The one scan that the input is; None for a folder.
        unreadable: Why, by the name of the case that stands for a folder that cannot be read.
    """

    path: Path
    folders: tuple[ScansOfFolder, ...]
    chosen: Path | None = None
    unreadable: tuple[tuple[str, str], ...] = ()


def find_scans(
    input_path: Path,
    *,
    recursive: bool = False,
    own: Callable[[Path], Container[str]] = lambda _: (),
    not_into: Sequence[Path] = (),
) -> FoundScans:
    """Find the scans of a folder, or look at one.

    Files that are no scans are passed over, and one warning counts them by kind. Sub-folders are looked into where
    that is asked for, each once, so that links cannot lead in circles; hidden ones never.

    Args:
        input_path: A folder, or a scan.
        recursive: Whether scans in sub-folders count, at any depth.
        own: Returns the names of files in a folder that are no scans, and not told either, see
            :func:`ctseg.files.identity.printable`.
        not_into: Folders that are not looked into, such as that of the label maps; the input itself always is.

    Raises:
        InputError: The path cannot be read, is no scan, or holds none.
        SetupError: The path is a scan that needs a package which is not installed.
    """
    try:
        is_folder = stat.S_ISDIR(input_path.stat().st_mode)
        if not is_folder and ending_of(input_path):
            open_regular(input_path).close()
    except OSError as error:
        raise InputError(f"{input_path}: expected a scan or a folder of scans: {error.strerror or error}") from error
    if is_folder:
        return _Search(input_path, own, not_into, recursive=recursive).scans()
    if ending_of(input_path) is None:
        raise InputError(
            f"{input_path}: expected a scan in one of {', '.join(READ_ENDINGS)}, found {kind_of_file(input_path)}"
        )
    require_packages(input_path)
    beside = dict.fromkeys([*list_folder(input_path.parent).scans, input_path])
    return FoundScans(input_path, (ScansOfFolder("", tuple(beside)),), input_path)


class _Search:
    """Looks through a folder, and tells once what it passed over."""

    def __init__(
        self, root: Path, own: Callable[[Path], Container[str]], not_into: Sequence[Path], *, recursive: bool
    ) -> None:
        self._root = root
        self._own = own
        self._recursive = recursive
        self._seen = {_identity(folder) for folder in not_into}
        self._kinds: Counter[str] = Counter()
        self._folders: list[Path] = []
        self._found: dict[Path, tuple[Path, ...]] = {}
        self._unreadable: dict[Path, str] = {}

    def scans(self) -> FoundScans:
        """Return what the folder holds.

        Raises:
            InputError: It cannot be read, or holds no scans.
        """
        self._look_into(self._root, list_folder(self._root))
        if self._recursive:
            self._look_into_folders()
        if not (self._found or self._unreadable):
            raise self._nothing()
        if told := self._passed_over():
            logger.warning("%s: passed over %s", self._root, told)
        found = tuple(ScansOfFolder(self._prefix(folder), files) for folder, files in sorted(self._found.items()))
        unreadable = tuple((self._prefix(folder)[:-1], why) for folder, why in sorted(self._unreadable.items()))
        return FoundScans(self._root, found, unreadable=unreadable)

    def _look_into(self, folder: Path, listing: Listing) -> None:
        self._seen.add(_identity(folder))
        own = self._own(folder)
        if files := tuple(file for file in listing.scans if printable(file.name) not in own):
            self._found[folder] = files
        self._kinds += kinds_of(listing, own)
        self._folders += listing.folders

    def _look_into_folders(self) -> None:
        """Look into sub-folders: links last, so that what they lead to has its own name if it lies in the input."""
        real, links = deque[Path](), deque[Path]()
        while True:
            for folder in self._folders:
                (links if folder.is_symlink() else real).append(folder)
            self._folders = []
            if not (real or links):
                return
            folder = real.popleft() if real else links.popleft()
            identity = _identity(folder)
            if identity is not None and identity in self._seen:
                self._kinds["link to a folder that has been looked into"] += folder.is_symlink()
                continue
            try:
                self._look_into(folder, list_folder(folder))
            except InputError as error:
                self._seen.add(identity)
                self._unreadable[folder] = str(error)

    def _passed_over(self) -> str:
        told = [described(+self._kinds)] if +self._kinds else []
        if holding := [folder for folder in self._folders if _holds_scans(folder)]:
            told.append(f"{_folders(holding)} with scans (looked into only when that is asked for)")
        return "; ".join(told)

    def _nothing(self) -> InputError:
        found = described(+self._kinds) if +self._kinds else ""
        settings: tuple[str, ...] = ()
        if self._folders:
            peeked = self._folders[:_PEEKED]
            holding = [folder for folder in peeked if _holds_scans(folder)]
            inside = described(sum((_kinds_in(folder) for folder in peeked), Counter[str]()))
            if holding:
                inside = f"scans in {holding[0].name}{' and others' if len(holding) > 1 else ''}"
                inside += ": give one of them, or have sub-folders looked into"
                settings = () if self._recursive else ("recursive",)
            found += f"{'; ' if found else ''}{_folders(self._folders)}{f', in which lie {inside}' if inside else ''}"
        return InputError(
            f"{self._root}: expected scans ({', '.join(READ_ENDINGS)}), found {found or 'an empty folder'}",
            settings=settings,
        )

    def _prefix(self, folder: Path) -> str:
        return "".join(f"{part}_" for part in folder.relative_to(self._root).parts)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _folders(folders: Sequence[Path]) -> str:
    return f"{len(folders)} folder{'s' if len(folders) > 1 else ''}"


def _holds_scans(folder: Path) -> bool:
    return bool(_peek(folder).scans)


def _kinds_in(folder: Path) -> Counter[str]:
    return kinds_of(_peek(folder))


def _peek(folder: Path) -> Listing:
    if not os.access(folder, os.R_OK | os.X_OK):
        return Listing((), (), ())
    try:
        return list_folder(folder)
    except InputError:
        return Listing((), (), ())
