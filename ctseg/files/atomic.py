"""Whole files or none: written under a hidden name beside the target, brought to the disk, then renamed.

A name in a folder is never half a file: not after a kill, not after a power cut, not on a full disk, and
not where two processes on two hosts write the same file (the later one wins, whole).
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from ctseg.errors import OutputError

_LONGEST_STEM = 64
"""Characters of the target's name that are kept: names of 255 bytes leave no room for more."""


def temporary_path(path: Path) -> Path:
    """Return a hidden name beside ``path`` that no other process, here or on another host, is using.

    It says who made it: ``.<begin of the name>.<host>.<process>.<random>.tmp<endings>``. The endings are those
    of ``path`` in lower case, because writers choose the format by them.
    """
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:32]
    ending = "".join(path.suffixes[-2:])[-16:].lower()
    return path.with_name(f".{path.name[:_LONGEST_STEM]}.{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp{ending}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; afterwards the file there takes the place of ``path``.

    The data are on the disk before the rename, and the rename is before this returns. Whatever goes wrong, the
    temporary file is gone and an older file of the name stays.

    Args:
        path: The file to write; its folder exists.

    Yields:
        Where to write. Nothing is there yet.

    Raises:
        OutputError: The folder is missing or cannot be written, or the disk is full.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _bring_to_disk(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds no such file
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file at once; see :func:`replacing`.

    Raises:
        OutputError: It cannot be written; an older file of the name stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 at once; see :func:`replacing`.

    Raises:
        OutputError: It cannot be written; an older file of the name stays.
    """
    write_bytes(path, text.encode("utf-8"))


def _bring_to_disk(folder: Path) -> None:
    """Bring a rename to the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
