"""Whether a file still holds the bytes that it once had, by its digest or by what the file system says of it."""

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ctseg.documents import Document
from ctseg.errors import InputError
from ctseg.files.digests import sha256_of_files
from ctseg.files.regular import require_regular

_SETTLED_NS = 2_000_000_000
"""Times of files are coarse (2 s on FAT): a change so soon after a look may leave them as they were."""
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class ScanPart:
    """What one :class:`KnownFile` knows: a file of a scan, or all files of a DICOM series, which count as one.

    Attributes:
        paths: In an order that does not depend on names of files, where there are several.
        series: What names and messages call a DICOM series, whose paths they never tell; empty for a file.
    """

    paths: tuple[Path, ...]
    series: str = ""

    @property
    def name(self) -> str:
        """Of the file, without its folder; of a series, what it is called."""
        return self.series or printable(self.paths[0].name)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.series or str(self.paths[0])


class FileStamp(Document):
    """What the file system says of a file, or of several in sum; any write to one changes one of these."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int


class KnownFile(Document):
    """A file as it was when it was looked at; or the files of a DICOM series.

    Attributes:
        name: Of the file, without its folder; of a series, what it is called.
        sha256: Of its bytes; of several files see :func:`ctseg.files.digests.sha256_of_files`.
        stamp: What the file system said of it; None where nobody looked.
        looked_ns: When, by the clock of the host that looked.
    """

    name: str
    sha256: str
    stamp: FileStamp | None = None
    looked_ns: int = 0

    def is_still(self, part: ScanPart) -> bool:
        """Whether files have the bytes of this one; their own are read only where the file system leaves a doubt.

        Args:
            part: The files; may be missing.

        Raises:
            OSError: One is there and cannot be read.
        """
        try:
            stamp = stamp_of(part)
        except FileNotFoundError:
            return False
        if self.stamp is not None and stamp.size != self.stamp.size:
            return False
        settled = max(stamp.modified_ns, stamp.changed_ns) < self.looked_ns - _SETTLED_NS
        if settled and stamp == self.stamp:
            return True
        with _series_without_paths(part):
            return sha256_of_files(part.paths) == self.sha256


def stamp_of(part: ScanPart) -> FileStamp:
    """Return what the file system says of a file, or of those of a series together.

    Raises:
        OSError: One is missing, cannot be looked at, or is a pipe or a device.
    """
    with _series_without_paths(part):
        found = [_stat(path) for path in part.paths]
    sizes, modified, changed, inodes = zip(*found, strict=True)
    inode = inodes[0] if len(found) == 1 else int.from_bytes(hashlib.sha256(repr(found).encode()).digest()[:7], "big")
    return FileStamp(size=sum(sizes), modified_ns=max(modified), changed_ns=max(changed), inode=inode)


def known(part: ScanPart, *, since: FileStamp | None = None) -> KnownFile:
    """Look at a file, or at those of a series: their digest and stamp.

    Args:
        part: The files.
        since: Their stamp before somebody read them: the digest is then that of the bytes that were read.

    Raises:
        InputError: One was written to since.
        OSError: One cannot be read.
    """
    before = since or stamp_of(part)
    looked_ns = time.time_ns()
    with _series_without_paths(part):
        digest = sha256_of_files(part.paths)
    if stamp_of(part) != before:
        raise InputError(f"{part.label}: was written to while it was read: segment it when it is whole")
    return KnownFile(name=part.name, sha256=digest, stamp=before, looked_ns=looked_ns)


def _stat(path: Path) -> tuple[int, int, int, int]:
    require_regular(path)
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@contextmanager
def _series_without_paths(part: ScanPart) -> Iterator[None]:
    """Let an error of one of a series' files name the series, and no path."""
    try:
        yield
    except OSError as error:
        if not part.series or error.errno is None:
            raise
        what = error.strerror if error.errno == errno.EINVAL else os.strerror(error.errno)
        raise OSError(error.errno, what, part.label) from None


def printable(name: str) -> str:
    r"""Return a file's name for people and JSON, on one line: bytes that are no UTF-8 become ``\xNN``.

    So do characters that end a line, move a terminal's cursor, or turn the direction of the text.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
