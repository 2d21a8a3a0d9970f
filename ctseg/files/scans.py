"""Which scans an input holds, looked at before it is known which of them make a case."""

import logging
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ctseg.errors import InputError, SetupError
from ctseg.files.dicom.choosing import SeriesRules
from ctseg.files.dicom.input import DicomOfInput, dicom_of_input, series_of_file
from ctseg.files.dicom.names import FOLDER
from ctseg.files.dicom.series import uid_digest
from ctseg.files.formats import READ_ENDINGS, ending_of, require_packages
from ctseg.files.identity import printable
from ctseg.files.listing import (
    FirstLook,
    Listing,
    described,
    first_look,
    kind_by_name,
    kind_of_file,
    kinds_of,
    list_folder,
    nameless,
)
from ctseg.files.regular import open_regular

logger = logging.getLogger(__name__)

_TRIED, _SLOW_S, _THREADS = 64, 0.064, 8
"""Files that are looked at first, the seconds from which that is long, and how many then look at once."""
_MANY = 50_000
"""Files after which a search says how far it is."""
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
        dicom: What it holds of DICOM, in files of any name; None: nothing.
    """

    path: Path
    folders: tuple[ScansOfFolder, ...]
    chosen: Path | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    dicom: DicomOfInput | None = None


def find_scans(
    input_path: Path,
    *,
    recursive: bool = False,
    own: Callable[[Path], Container[str]] = lambda _: (),
    not_into: Sequence[Path] = (),
    series: SeriesRules = SeriesRules(),  # noqa: B008 (frozen)
    case_name_from: Sequence[str] = (),
) -> FoundScans:
    """Find the scans of a folder, or look at one.

    DICOM is known by its content, in files of any name. It is looked for at any depth, unless the folder itself
    holds scans of other formats. A DICOM file stands for its whole series, as far as that lies in its folder.

    Files that are no scans are passed over, and one warning counts them by kind. Sub-folders are looked into where
    that is asked for, each once, so that links cannot lead in circles; hidden ones never.

    Args:
        input_path: A folder, or a scan.
        recursive: Whether scans in sub-folders count, at any depth.
        own: Returns the names of files in a folder that are no scans, and not told either, see
            :func:`ctseg.files.identity.printable`.
        not_into: Folders that are not looked into, such as that of the label maps; the input itself always is.
        series: Which DICOM series of a folder are taken.
        case_name_from: What names of DICOM cases are made of, see :func:`ctseg.files.dicom.names.keywords_in`.

    Raises:
        InputError: The path cannot be read, is no scan, or holds none.
        SetupError: The path is a scan that needs a package which is not installed, or a name cannot be made of what
            was asked for.
    """
    if _is_folder(input_path):
        return _Search(input_path, own, not_into, recursive=recursive).scans(series, case_name_from)
    if ending_of(input_path) is None:
        return _dicom_of_file(input_path, case_name_from)
    require_packages(input_path)
    beside = dict.fromkeys([*list_folder(input_path.parent).scans, input_path])
    return FoundScans(input_path, (ScansOfFolder("", tuple(beside)),), input_path)


def find_dicom(
    input_path: Path,
    *,
    recursive: bool = False,
    own: Callable[[Path], Container[str]] = lambda _: (),
    series: SeriesRules = SeriesRules(),  # noqa: B008 (frozen)
    case_name_from: Sequence[str] = (),
) -> DicomOfInput:
    """Return what an input holds of DICOM, as :func:`find_scans` finds it, also where nothing of it is taken.

    Args:
        input_path: A folder, or a DICOM file.
        recursive: See :func:`find_scans`.
        own: Likewise.
        series: Likewise.
        case_name_from: Likewise.

    Raises:
        InputError: The path cannot be read, or holds no DICOM.
        SetupError: See :func:`find_scans`.
    """
    if not _is_folder(input_path):
        found = _dicom_of_file(input_path, case_name_from).dicom
    else:
        search = _Search(input_path, own, (), recursive=recursive)
        found = search.dicom(series, case_name_from)
    if found is None:
        settings = () if recursive else ("recursive",)
        raise InputError(f"{input_path}: expected DICOM files, found none", settings=settings)
    return found


def find_dicom_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder, at any depth, that begin like DICOM, in order of their paths.

    Raises:
        InputError: The folder cannot be read.
    """
    return _Search(folder, lambda _: (), (), recursive=True).dicom_files()


def _is_folder(path: Path) -> bool:
    """Whether an input is a folder, and no file that can be read.

    Raises:
        InputError: It is neither.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if not is_folder:
            open_regular(path).close()
    except OSError as error:
        raise InputError(f"{path}: expected a scan or a folder of scans: {error.strerror or error}") from error
    return is_folder


def _dicom_of_file(file: Path, case_name_from: Sequence[str]) -> FoundScans:
    """Return the series of a DICOM file.

    Raises:
        InputError: It is none, or of no CT series.
    """
    if first_look(file) != "dicom":
        endings = ", ".join(READ_ENDINGS)
        raise InputError(f"{file}: expected a scan in DICOM or one of {endings}, found {kind_of_file(file)}")
    beside = [path for path in _visible(list_folder(file.parent).others) if path.name != file.name]
    look = _looked_at(beside)
    return FoundScans(file.parent, (), dicom=series_of_file(file, [file, *look.dicom], case_name_from))


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
        self._kinds_below: Counter[str] = Counter()
        self._folders: list[Path] = []
        self._left_folders: list[Path] = []
        self._found: dict[Path, tuple[Path, ...]] = {}
        self._dicom: list[Path] = []
        self._looked_at = 0
        self._unreadable: dict[Path, InputError] = {}

    def scans(self, rules: SeriesRules, case_name_from: Sequence[str]) -> FoundScans:
        """Return what the folder holds.

        Raises:
            InputError: It cannot be read, or holds no scans.
            SetupError: It holds DICOM alone, which needs a package that is not installed.
        """
        self._look_through()
        dicom = self._dicom_found(rules, case_name_from)
        if not (self._found or (dicom and dicom.chosen) or (self._unreadable and self._recursive)):
            raise self._nothing(dicom)
        self._tell(dicom)
        found = tuple(ScansOfFolder(self._prefix(folder), files) for folder, files in sorted(self._found.items()))
        is_told_by_place = (dicom is None and self._recursive) or FOLDER in case_name_from
        return FoundScans(self._root, found, unreadable=self._unreadable_cases(by_place=is_told_by_place), dicom=dicom)

    def dicom(self, rules: SeriesRules, case_name_from: Sequence[str]) -> DicomOfInput | None:
        """Return what the folder holds of DICOM; None: nothing.

        Raises:
            InputError: It cannot be read.
            SetupError: A package is missing.
        """
        self._look_through()
        unreadable = f"{_folders([*self._unreadable])} that cannot be read" if self._unreadable else ""
        if told := "; ".join(filter(None, [unreadable, self._not_looked_into()])):
            logger.warning("the input: %s", told)
        found = dicom_of_input(self._dicom, self._root, rules, case_name_from) if self._dicom else None
        return found if found is not None and (found.series or found.left_out) else None

    def dicom_files(self) -> tuple[Path, ...]:
        """Return the files that begin like DICOM.

        Raises:
            InputError: A folder cannot be read.
        """
        self._look_through()
        for error in self._unreadable.values():
            raise error
        return tuple(sorted(self._dicom))

    def _look_through(self) -> None:
        listing = list_folder(self._root)
        self._kinds += self._look_into(self._root, listing)
        if not self._recursive:
            self._left_folders = list(listing.folders)
        if self._recursive or not self._found:
            self._look_into_folders()

    def _look_into(self, folder: Path, listing: Listing) -> Counter[str]:
        """Take the scans of a folder, and return what else lies in it, by kind."""
        self._seen.add(_identity(folder))
        own = self._own(folder)
        files = tuple(file for file in listing.scans if printable(file.name) not in own)
        if files and (self._recursive or folder == self._root):
            self._found[folder] = files
        look = _looked_at([path for path in _visible(listing.others) if printable(path.name) not in own])
        self._tell_of_many(len(listing.others))
        self._dicom += look.dicom
        self._folders += listing.folders
        kinds = kinds_of(listing, own, ({*look.dicom, *look.unreadable}))
        kinds["file that cannot be read"] += len(look.unreadable)
        return +kinds

    def _tell_of_many(self, files: int) -> None:
        """Tell from time to time how far a long search is."""
        before, self._looked_at = self._looked_at, self._looked_at + files
        if before // _MANY < self._looked_at // _MANY:
            logger.info("looking for DICOM: %d files so far", self._looked_at)

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
                self._kinds_below["link to a folder that has been looked into"] += folder.is_symlink()
                continue
            try:
                self._kinds_below += self._look_into(folder, list_folder(folder))
            except InputError as error:
                self._seen.add(identity)
                self._unreadable[folder] = error

    def _dicom_found(self, rules: SeriesRules, case_name_from: Sequence[str]) -> DicomOfInput | None:
        """Return what the files hold that begin like DICOM; without its packages, none where there are other scans."""
        if not self._dicom:
            return None
        try:
            found = dicom_of_input(self._dicom, self._root, rules, case_name_from)
        except SetupError as error:
            if not self._found or error.settings:
                raise
            logger.warning("DICOM is passed over, %d of the files: %s", len(self._dicom), error)
            return None
        for path in found.others:
            kinds = self._kinds if path.parent == self._root else self._kinds_below
            kinds[kind_by_name(path) or "hidden file"] += 1
        return found if found.series or found.left_out else None

    def _tell(self, dicom: DicomOfInput | None) -> None:
        """Tell in one line what is passed over; of an input with DICOM, no path."""
        passed_over = self._passed_over(dicom)
        not_chosen = "" if dicom is None else dicom.not_chosen_told
        told = [f"passed over {passed_over}" if passed_over else "", not_chosen]
        if any(told):
            where = self._root if dicom is None else "the input"
            level = logging.WARNING if passed_over else logging.INFO
            logger.log(level, "%s: %s", where, "; ".join(filter(None, told)))

    def _passed_over(self, dicom: DicomOfInput | None) -> str:
        kinds = self._kinds if dicom is None and not self._recursive else self._kinds + self._kinds_below
        told = [] if dicom is None or not dicom.left_out else [dicom.left_out_told]
        told += [described(kinds if dicom is None else nameless(kinds))] if kinds else []
        return "; ".join(filter(None, [*told, self._not_looked_into()]))

    def _not_looked_into(self) -> str:
        holding = [folder for folder in self._left_folders if _holds_scans(folder, dicom_too=bool(self._found))]
        return f"{_folders(holding)} with scans (looked into only when that is asked for)" if holding else ""

    def _nothing(self, dicom: DicomOfInput | None) -> InputError:
        if dicom is not None:
            return _no_series(dicom)
        kinds = self._kinds + self._kinds_below if self._recursive else self._kinds
        found = described(kinds) if kinds else ""
        settings: tuple[str, ...] = ()
        if self._left_folders:
            peeked = self._left_folders[:_PEEKED]
            holding = [folder for folder in peeked if _holds_scans(folder)]
            inside = described(sum((_kinds_in(folder) for folder in peeked), Counter[str]()))
            if holding:
                inside = f"scans in {holding[0].name}{' and others' if len(holding) > 1 else ''}"
                inside += ": give one of them, or have sub-folders looked into"
                settings = ("recursive",)
            found += f"{'; ' if found else ''}{_folders(self._left_folders)}"
            found += f", in which lie {inside}" if inside else ""
        return InputError(
            f"{self._root}: expected scans (DICOM, {', '.join(READ_ENDINGS)}), found {found or 'an empty folder'}",
            settings=settings,
        )

    def _unreadable_cases(self, *, by_place: bool) -> tuple[tuple[str, str], ...]:
        """Return the name of the case and the reason for each folder; the place of a patient's may be the name."""
        if by_place:
            return tuple((self._prefix(folder)[:-1], str(why)) for folder, why in sorted(self._unreadable.items()))
        return tuple(
            (
                f"folder-{uid_digest(printable(self._prefix(folder)))}",
                f"a folder in the input cannot be read{_reason(why)}",
            )
            for folder, why in sorted(self._unreadable.items())
        )

    def _prefix(self, folder: Path) -> str:
        return "".join(f"{part}_" for part in folder.relative_to(self._root).parts)


def _no_series(dicom: DicomOfInput) -> InputError:
    """Return the error of an input with DICOM of which nothing is taken."""
    found = ", ".join(filter(None, [dicom.left_out_told, dicom.not_chosen_told]))
    if dicom.series:
        settings = ("series", "series_kernel", "series_slices")
        return InputError(f"the input: expected a CT series that fits the rules, found {found}", settings=settings)
    return InputError(f"the input: expected CT series, found {found}")


@dataclass(frozen=True)
class _Look:
    """Files that may be DICOM, those that cannot be read or are empty beside them too; and such files elsewhere."""

    dicom: tuple[Path, ...]
    unreadable: tuple[Path, ...]


def _looked_at(files: Sequence[Path]) -> _Look:
    found: dict[FirstLook, list[Path]] = {"dicom": [], "nothing": [], "unreadable": [], "other": []}
    for path, look in zip(files, _first_looks(files), strict=True):
        found[look].append(path)
    if not found["dicom"]:
        return _Look((), tuple(found["unreadable"]))
    return _Look(tuple(sorted([*found["dicom"], *found["nothing"], *found["unreadable"]])), ())


def _first_looks(files: Sequence[Path]) -> list[FirstLook]:
    """Look at files; several at once where the first ones took long, as on a share: on a disk threads cost more."""
    began = time.perf_counter()
    looks = [first_look(path) for path in files[:_TRIED]]
    left = files[_TRIED:]
    if time.perf_counter() - began >= _SLOW_S and left:
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ctseg-looks")
        try:
            return [*looks, *pool.map(first_look, left)]
        except RuntimeError:  # no more threads are to be had
            logger.debug("files are looked at one by one")
        finally:
            pool.shutdown(cancel_futures=True)
    return [*looks, *map(first_look, left)]


def _visible(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if not path.name.startswith(".")]


def _reason(error: InputError) -> str:
    cause = error.__cause__
    return f": {os.strerror(cause.errno)}" if isinstance(cause, OSError) and cause.errno else ""


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _folders(folders: Sequence[Path]) -> str:
    return f"{len(folders)} folder{'s' if len(folders) > 1 else ''}"


def _holds_scans(folder: Path, *, dicom_too: bool = False) -> bool:
    listing = _peek(folder)
    return bool(listing.scans) or (dicom_too and bool(_looked_at(_visible(listing.others)[:1]).dicom))


def _kinds_in(folder: Path) -> Counter[str]:
    return kinds_of(_peek(folder))


def _peek(folder: Path) -> Listing:
    if not os.access(folder, os.R_OK | os.X_OK):
        return Listing((), (), ())
    try:
        return list_folder(folder)
    except InputError:
        return Listing((), (), ())
