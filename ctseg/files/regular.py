"""Opening what must be a file: a pipe, a device or a socket of a scan's name is refused, and never waited for."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it; links are followed.

    What counts is what was opened: nothing can take the place of a file between the look and the reading.

    Raises:
        OSError: It cannot be opened, or is no file; ``strerror`` says why, for people.
    """
    descriptor = _opened(path)
    try:
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def first_bytes(path: Path, count: int) -> bytes:
    """Return how a file begins, up to so many bytes, at the least cost: for a look at many files.

    Raises:
        OSError: See :func:`open_regular`; or it cannot be read.
    """
    descriptor = _opened(path)
    try:
        return os.read(descriptor, count)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    require_regular(path)  # devices and sockets are not even opened
    descriptor = os.open(path, os.O_RDONLY | _NOT_WAITING)
    try:
        _check(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(path: Path) -> None:
    """Refuse what is no file; for libraries that open a file by its name, just before they do.

    Raises:
        OSError: It cannot be looked at, or is no file; ``strerror`` says why, for people.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise
        text = f"{error.strerror}: a link to {path.readlink()}"
        raise FileNotFoundError(errno.ENOENT, text, str(path)) from error
    _check(mode, path)


def _check(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"is {what}, not a file", str(path))
