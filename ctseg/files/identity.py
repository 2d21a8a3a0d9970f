"""Whether a file still holds the bytes that it once had, by its digest or by what the file system says of it."""

import re
import time
from pathlib import Path

from ctseg.documents import Document
from ctseg.errors import InputError
from ctseg.files.digests import sha256_of_file
from ctseg.files.regular import require_regular

_SETTLED_NS = 2_000_000_000
"""Times of files are coarse (2 s on FAT): a change so soon after a look may leave them as they were."""
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class FileStamp(Document):
    """What the file system says of a file; any write to it changes one of these."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int


class KnownFile(Document):
    """A file as it was when it was looked at.

    Attributes:
        name: Of the file, without its folder.
        sha256: Of its bytes.
        stamp: What the file system said of it; None where nobody looked.
        looked_ns: When, by the clock of the host that looked.
    """

    name: str
    sha256: str
    stamp: FileStamp | None = None
    looked_ns: int = 0

    def is_still(self, path: Path) -> bool:
        """Whether a file has the bytes of this one; its own are read only where the file system leaves a doubt.

        Args:
            path: The file; may be missing.

        Raises:
            OSError: It is there and cannot be read.
        """
        try:
            stamp = stamp_of(path)
        except FileNotFoundError:
            return False
        if self.stamp is not None and stamp.size != self.stamp.size:
            return False
        settled = max(stamp.modified_ns, stamp.changed_ns) < self.looked_ns - _SETTLED_NS
        return (settled and stamp == self.stamp) or sha256_of_file(path) == self.sha256


def stamp_of(path: Path) -> FileStamp:
    """Return what the file system says of a file.

    Raises:
        OSError: It is missing, cannot be looked at, or is a pipe or a device.
    """
    require_regular(path)
    found = path.stat()
    return FileStamp(
        size=found.st_size, modified_ns=found.st_mtime_ns, changed_ns=found.st_ctime_ns, inode=found.st_ino
    )


def known(path: Path, *, since: FileStamp | None = None) -> KnownFile:
    """Look at a file: its digest and stamp.

    Args:
        path: The file.
        since: Its stamp before somebody read it: the digest is then that of the bytes that were read.

    Raises:
        InputError: It was written to since.
        OSError: It cannot be read.
    """
    before = since or stamp_of(path)
    looked_ns = time.time_ns()
    digest = sha256_of_file(path)
    if stamp_of(path) != before:
        raise InputError(f"{path}: was written to while it was read: segment it when it is whole")
    return KnownFile(name=printable(path.name), sha256=digest, stamp=before, looked_ns=looked_ns)


def printable(name: str) -> str:
    r"""Return a file's name for people and JSON, on one line: bytes that are no UTF-8 become ``\xNN``.

    So do characters that end a line, move a terminal's cursor, or turn the direction of the text.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
