"""Whole files or none: written under a hidden name beside the target, brought to the disk, then renamed.

A name in a folder is never half a file: not after a kill, not after a power cut, not on a full disk, and
not where two processes on two hosts write the same file (the later one wins, whole).
"""

import contextlib
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ctseg.errors import OutputError
from ctseg.files.owned_folder import owned_folder

_LONGEST_STEM = 64
"""Bytes of the target's name that are kept."""
_LONGEST_NAME = 255
"""Bytes that file systems take in a name."""


def temporary_path(path: Path, folder: Path | None = None) -> Path:
    """Return a hidden name beside ``path``, or in another folder, that no process on any host is using.

    It says who made it: ``.<begin of the name>.<host>.<process>.<random>.tmp<endings>``. The endings are those
    of ``path`` in lower case, because writers choose the format by them. It is never too long for a file system.
    """
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())[:32]
    ending = _cut("".join(path.suffixes[-2:])[-16:].lower(), _LONGEST_STEM)
    made_by = f".{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp{ending}"
    room = _LONGEST_NAME - 1 - len(os.fsencode(made_by))
    return (folder or path.parent) / f".{_cut(path.name, min(room, _LONGEST_STEM))}{made_by}"


def longest_name(folder: Path) -> int:
    """Return how many bytes a file's name may have in a folder, which exists."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, ValueError, OSError):  # a system that cannot be asked
        return _LONGEST_NAME


def _cut(name: str, size: int) -> str:
    """Return the first characters of a name, of so many bytes at most."""
    return os.fsencode(name)[:size].decode("utf-8", "ignore")


@contextlib.contextmanager
def replacing(path: Path, *, through: Path | None = None) -> Iterator[Path]:
    """Give a temporary path to write to; afterwards the file there takes the place of ``path``.

    The data are on the disk before the rename, and the rename is before this returns. Whatever goes wrong, the
    temporary file is gone and an older file of the name stays.

    Args:
        path: The file to write; its folder exists.
        through: The folder of the temporary file, on the same file system; None: that of ``path``.

    Yields:
        Where to write. Nothing is there yet.

    Raises:
        OutputError: The folder is missing or cannot be written, or the disk is full.
    """
    temporary = temporary_path(path, through)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_names(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds no such file
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, through: Path | None = None) -> None:
    """Write a file at once; see :func:`replacing`.

    Raises:
        OutputError: It cannot be written; an older file of the name stays.
    """
    with replacing(path, through=through) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, through: Path | None = None) -> None:
    """Write a text file in UTF-8 at once; see :func:`replacing`.

    Raises:
        OutputError: It cannot be written; an older file of the name stays.
    """
    write_bytes(path, text.encode("utf-8"), through=through)


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; afterwards it takes the place of ``target``, whole.

    All that was written is on the disk before the rename. Whatever goes wrong, SIGTERM too, the hidden folder is gone
    and an older folder of the name is where it was; after a kill the next write removes it, see
    :func:`ctseg.files.owned_folder.owned_folder`. Only a kill between the two renames of a replacement leaves the
    older one under a hidden name; the next write puts it back first. The folder may be entered by whoever may enter
    the older one, a first one as this process makes folders.

    Args:
        target: The folder to write; its parent exists.

    Yields:
        The folder to fill.

    Raises:
        OSError: It cannot be written.
    """
    aside = put_back(target)
    with owned_folder(f".{_cut(target.name, _LONGEST_STEM)}.", target.parent) as part:
        yield part
        part.chmod(_mode_of(target, part))
        bring_to_disk(part)
        if target.exists():
            target.rename(aside)
        try:
            part.rename(target)
        except OSError:
            put_back(target)
            raise
        _fsync_names(target.parent)
        shutil.rmtree(aside, ignore_errors=True)


def bring_to_disk(folder: Path) -> None:
    """Bring all files in a folder, and the names in it, to the disk, before a name points at them."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+" if os.access(path, os.W_OK) else "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            _fsync_names(path)
    _fsync_names(folder)


def put_back(target: Path) -> Path:
    """Put back what a replacement that was cut off has moved aside, and return where that is.

    What was replaced by now is removed.

    Args:
        target: A folder that :func:`appearing` writes.

    Raises:
        OSError: It cannot be put back.
    """
    aside = target.with_name(f".{target.name}.replaced")
    if aside.is_dir():
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
    return aside


def _mode_of(target: Path, part: Path) -> int:
    """Return who may enter a folder: whoever may enter the one that it replaces, else as this process makes folders."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    probe = part / f".{secrets.token_hex(4)}"
    probe.mkdir()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.rmdir()


def _fsync_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
