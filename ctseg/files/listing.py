"""What lies in a folder: scans, folders, and what is passed over, counted by its kind, with what to give instead."""

import errno
import os
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctseg.errors import InputError
from ctseg.files.formats import ending_of
from ctseg.files.identity import printable
from ctseg.files.regular import first_bytes

_PAIR, _ARCHIVE = "file of Analyze or NIfTI in two pieces", "archive"
_INSTEAD = {
    _PAIR: "convert .hdr and .img to .nii.gz",
    _ARCHIVE: "unpack it",
}
"""What to give instead of the kinds that people take for scans."""
_KIND_OF_ENDING = {
    ".hdr": _PAIR, ".img": _PAIR, ".img.gz": _PAIR, ".hdr.gz": _PAIR,
    ".zip": _ARCHIVE, ".tar": _ARCHIVE, ".tgz": _ARCHIVE, ".tar.gz": _ARCHIVE, ".tar.xz": _ARCHIVE, ".7z": _ARCHIVE,
    ".rar": _ARCHIVE, ".bz2": _ARCHIVE, ".xz": _ARCHIVE, ".zst": _ARCHIVE,
}  # fmt: skip
_NOUN = re.compile(r"\b(file|archive|scan|link)\b")
_DETACHED_HEADERS = (".mhd", ".nhdr")
_DETACHED_VOXELS = (".raw", ".zraw", ".raw.gz")
_ENDING_IN = "file ending in "
_COMMON_ENDINGS = (
    ".csv", ".dcm", ".doc", ".docx", ".exe", ".htm", ".html", ".ima", ".inf", ".ini", ".jpeg", ".jpg", ".json", ".log",
    ".md", ".pdf", ".png", ".txt", ".xls", ".xlsx", ".xml",
)  # fmt: skip
_FIRST_BYTES = 132
_MAGIC = b"DICM"
_FIRST_ELEMENTS = (b"\x02\x00", b"\x08\x00")
"""How DICOM begins where its preamble was left out: an element of one of the first groups, little endian."""
_HIGHEST_FIRST, _SHORTEST_BARE = 0x60, 16
"""Element number, bytes; files of other kinds that begin so are told by whoever reads the header."""
FirstLook = Literal["dicom", "nothing", "unreadable", "other"]
"""What a file may be: it begins as DICOM does; is empty, or a link that leads nowhere; cannot be read; or is none."""


@dataclass(frozen=True)
class Listing:
    """What lies in a folder.

    Attributes:
        scans: Files and links whose names end as scans do, in order of their names.
        folders: Folders and links to some, in order, hidden ones apart.
        others: What is neither, in order.
    """

    scans: tuple[Path, ...]
    folders: tuple[Path, ...]
    others: tuple[Path, ...]


def list_folder(folder: Path) -> Listing:
    """List a folder.

    A link with a scan's name that leads nowhere counts as a scan: reading it says what is wrong.

    Raises:
        InputError: It cannot be read.
    """
    scans, folders, others = [], [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path, is_hidden = folder / entry.name, entry.name.startswith(".")
                if _is_folder(entry):
                    if not is_hidden:
                        folders.append(path)
                elif ending_of(path) and not is_hidden:
                    scans.append(path)
                else:
                    others.append(path)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return Listing(tuple(scans), tuple(folders), tuple(others))


def kinds_of(listing: Listing, known: Container[str] = (), taken: Container[Path] = ()) -> Counter[str]:
    """Count by kind what of a folder is no scan and no folder.

    Args:
        listing: Of the folder.
        known: Names that need not be told.
        taken: Files that are told elsewhere.

    Returns:
        How many there are of each kind; hidden files that nobody takes for scans, and voxels beside a header in a
        file of its own, are left out.
    """
    if any(ending_of(scan) in _DETACHED_HEADERS for scan in listing.scans):
        told = [path for path in listing.others if not path.name.lower().endswith(_DETACHED_VOXELS)]
    else:
        told = list(listing.others)
    left = (path for path in told if path not in taken and printable(path.name) not in known)
    return Counter(kind for path in left if (kind := kind_by_name(path)) is not None)


def described(kinds: Counter[str]) -> str:
    """Return what was found, in words, with what to give instead."""
    told = []
    for kind, count in sorted(kinds.items(), key=lambda item: (item[0] not in _INSTEAD, item[0])):
        words = f"{count} {kind if count == 1 else _plural(kind)}"
        told.append(f"{words} ({_INSTEAD[kind]})" if kind in _INSTEAD else words)
    return ", ".join(told)


def nameless(kinds: Counter[str]) -> Counter[str]:
    """Return kinds without endings of names that may be part of a person's, as in ``scan.Doe``."""
    told: Counter[str] = Counter()
    for kind, count in kinds.items():
        ending = kind.removeprefix(_ENDING_IN)
        told[kind if ending == kind or ending in _COMMON_ENDINGS else "file of another kind"] += count
    return told


def kind_of_file(path: Path) -> str:
    """Return what a file that is no scan is, in words, with what to give instead."""
    kind = kind_by_name(path) or "hidden file"
    article = "an" if kind[0] in "aeiou" else "a"
    return f"{article} {kind}: {_INSTEAD.get(kind, 'convert it')}"


def first_look(path: Path) -> FirstLook:
    """Look at how a file begins, and at nothing else of it; what is no file is never waited for."""
    try:
        first = first_bytes(path, _FIRST_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return "nothing"
        return "other" if error.errno in (errno.EINVAL, errno.ENXIO) else "unreadable"
    if not first:
        return "nothing"
    if first[128:] == _MAGIC:
        return "dicom"
    is_bare = first[:2] in _FIRST_ELEMENTS and int.from_bytes(first[2:4], "little") <= _HIGHEST_FIRST
    return "dicom" if is_bare and len(first) > _SHORTEST_BARE else "other"


def kind_by_name(path: Path) -> str | None:
    """Return the kind of what is no scan by its name; None: nobody takes it for one."""
    name = path.name.lower()
    if name.startswith("._"):
        return "hidden file of macOS (._…)"
    if name.startswith("."):
        return "hidden scan" if ending_of(path) else None
    ending = next((ending for ending in sorted(_KIND_OF_ENDING, key=len, reverse=True) if name.endswith(ending)), None)
    if ending is not None:
        return _KIND_OF_ENDING[ending]
    suffix = path.suffix.lower()
    is_ending = 1 < len(suffix) <= 9 and suffix[1:].isalnum() and not suffix[1:].isdigit()
    return f"{_ENDING_IN}{suffix}" if is_ending else "file without an ending"


def _plural(kind: str) -> str:
    return _NOUN.sub(r"\1s", kind, count=1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False
