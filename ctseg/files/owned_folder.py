"""Folders of one process for a while: gone when it ends or is told to, swept after a kill."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ctseg.files.owners import can_be_judged, is_left_behind, owner_tag
from ctseg.files.signals import only_in_this_process, signals_as_exit, signals_later

_log = logging.getLogger(__name__)

LEFT_S = 86_400.0
"""In the folder of a process that cannot be judged from here, nothing has changed for so long: it was left."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OWNER = re.compile(r"b(?P<boot>[0-9a-f]{8})-r[0-9a-f]{8}(?P<owner>-\d+-\d+-.+)")


@contextlib.contextmanager
def owned_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that only this user may enter; it is gone when the block ends, whatever ends it.

    SIGTERM and SIGHUP unwind the block, see :func:`ctseg.files.signals.signals_as_exit`; what comes after them waits
    until the folder is gone. What a process that was
    killed has left under the same prefix is removed first: of a process of this kernel at once, of another one after
    a day in which nothing changed in it.

    Args:
        prefix: Begin of the folder's name.
        parent: Where; None: the folder for temporary files.

    Yields:
        The folder, empty.

    Raises:
        OSError: It cannot be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove = only_in_this_process(shutil.rmtree)
    with signals_as_exit():
        folder = parent / f"{prefix}b{_boot()}-r{secrets.token_hex(4)}-{owner_tag()}"
        try:
            folder.mkdir(mode=0o700)
            for left in folders_left_behind(prefix, parent, now_s=folder.stat().st_mtime):
                _log.info("%s: removed what a process that was killed has left", left)
                shutil.rmtree(left, ignore_errors=True)
            yield folder
        finally:
            with signals_later():
                remove(folder, ignore_errors=True)


def folders_left_behind(prefix: str, parent: Path, *, now_s: float) -> list[Path]:
    """Return this user's folders of :func:`owned_folder` whose processes have ended without removing them.

    Args:
        prefix: Begin of their names.
        parent: Where they lie.
        now_s: The time by the clock of the disk that they lie on.
    """
    with os.scandir(parent) as entries:
        return [Path(entry) for entry in entries if _is_left(entry, prefix, now_s)]


def _is_left(entry: "os.DirEntry[str]", prefix: str, now_s: float) -> bool:
    owned = _OWNER.fullmatch(entry.name[len(prefix) :]) if entry.name.startswith(prefix) else None
    if owned is None:
        return False
    try:
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            return False
        if owned["boot"] == _boot() and can_be_judged(owned["owner"]):
            return is_left_behind(owned["owner"])
        return _last_change_s(Path(entry)) < now_s - LEFT_S
    except FileNotFoundError:
        return False  # somebody else sweeps too


def _last_change_s(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _boot() -> str:
    """Return what tells one start of a kernel from others; the same letters where nothing tells it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii")[:8]
    except OSError:
        return "0" * 8
