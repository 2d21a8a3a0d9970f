"""The folder of a server: only its user may enter it, and it never stays behind for long."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ctseg.files.owners import is_left_behind, owner_tag
from ctseg.files.signals import only_in_this_process
from ctseg.serving.isolation import temporary_parent

_PREFIX = "ctseg-server-"
_ROOM_BYTES = 16_000_000
"""For what is not copied: links, and the log."""


@contextlib.contextmanager
def private_folder(copied_bytes: int) -> Iterator[Path]:
    """Make a folder that only this user may enter, and in which Triton can work; it goes afterwards.

    Args:
        copied_bytes: Size of the programs that will be put into it.

    Raises:
        SetupError: There is no room for it.
    """
    parent = temporary_parent(needed_bytes=copied_bytes + _ROOM_BYTES, runs_programs=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_own_prefix()}{owner_tag()}-", dir=parent))
    remove = only_in_this_process(shutil.rmtree)
    try:
        yield folder
    finally:
        remove(folder, ignore_errors=True)


def sweep_private_folders() -> list[Path]:
    """Remove the folders of this user's processes that have ended without doing so; return what was removed."""
    parent = temporary_parent(needed_bytes=0)
    left = [Path(entry) for entry in os.scandir(parent) if _is_left_behind(entry)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


def _is_left_behind(entry: "os.DirEntry[str]") -> bool:
    if not entry.name.startswith(_own_prefix()) or not is_left_behind(entry.name):
        return False
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False  # somebody else sweeps too
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _own_prefix() -> str:
    """Return the begin of the names on this machine since it was started: others may share the folder.

    The letter keeps digits alone from being read as a part of the owner.
    """
    return f"{_PREFIX}b{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}-"
