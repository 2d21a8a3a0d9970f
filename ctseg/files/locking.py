"""One at a time, in a folder that several hosts may share, also where its file system refuses flock.

By rule the kernel's flock decides, which ends with its process whatever happens to that. Network file systems may
refuse it, or keep it to one host. There a file decides that only one writer can create; a writer that was killed
leaves it, and the next one on the same host sees that and goes on. What a folder needs is remembered in it, so
that all its writers take turns by the same thing.
"""

import errno
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

from ctseg.files.mounts import MOUNTS, read_mounts

_log = logging.getLogger(__name__)

_REFUSALS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
_LOCAL_ONLY = frozenset({"nolock", "local_lock=all", "local_lock=flock", "localflock", "localflocks"})
"""Mount options of NFS, Lustre, OCFS2 and GFS2 by which flock is granted, and unknown to every other host."""
_HELD = ".held"
_NOTE_NAME = ".ctseg.no-flock"
_NOTE = """flock is refused here, or kept to one host ({why}).
Writers take turns by files that end in .held instead: each names its process and host.
A writer that was killed leaves such a file; once that process is gone the file may be removed.
Remove this note when every host that writes here has working locks, and none is writing.
"""


def acquired(path: Path, *, timeout_s: float) -> BaseFileLock:
    """Take the lock of a name in a folder that several hosts may share.

    A host that flock is refused to may have said so in the folder while this one waited for flock: then the turn by
    flock is given back, and the file is waited for.

    Args:
        path: See :func:`lock_of`.
        timeout_s: For all waits together.

    Returns:
        The lock, held; the caller releases it.

    Raises:
        Timeout: Of filelock; see :func:`holder_of`.
        OSError: Nothing can be written into the folder.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        lock = lock_of(path)
        lock.acquire(timeout=max(0.0, end_s - time.monotonic()))
        if isinstance(lock, SoftFileLock) or not (path.parent / _NOTE_NAME).exists():
            return lock
        lock.release()


def lock_of(path: Path) -> BaseFileLock:
    """Return the lock of a name in a folder that several hosts may share.

    Args:
        path: ``<folder>/<name>``; the folder exists. Where flock does not serve, ``<name>.held`` is the lock.

    Returns:
        A lock that is not held yet.

    Raises:
        OSError: Nothing can be written into the folder.
    """
    if not _writers_need_a_file(path.parent):
        return FileLock(path)
    return SoftFileLock(path.with_name(f"{path.name}{_HELD}"))


def holder_of(lock_file: str) -> str:
    """Return who holds the lock of a file, for messages; where only that file tells, also when it may be removed."""
    if not lock_file.endswith(_HELD):
        return "another process"
    try:
        process, host, *_ = Path(lock_file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "another process"
    host = host.partition("?")[0]  # filelock adds the namespace of process numbers
    return f"process {process} on host {host} (if it has ended, remove {lock_file})"


def flock_serves(folder: Path) -> bool:
    """Whether flock in a folder is known to all hosts that share it.

    Args:
        folder: An existing folder; nothing is left in it.

    Raises:
        OSError: Nothing can be written into it.
    """
    return not (folder / _NOTE_NAME).exists() and not why_flock_fails(folder)


def why_flock_fails(folder: Path, *, mounts: Path = MOUNTS) -> str:
    """Return why flock does not keep writers apart in a folder; empty where it does.

    Args:
        folder: An existing folder; nothing is left in it.
        mounts: What is mounted where, as Linux tells it.

    Raises:
        OSError: Nothing can be written into the folder.
    """
    if sys.platform == "win32":
        return ""
    import fcntl

    if local := _LOCAL_ONLY & _mount_options(folder, mounts):
        return f"mounted with {', '.join(sorted(local))}"
    with tempfile.TemporaryFile(dir=folder, prefix=".ctseg-flock-") as probe:  # its own, so nobody is in the way
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _REFUSALS:
                return f"{errno.errorcode[error.errno]}, {error.strerror}"
            raise
    return ""


def _writers_need_a_file(folder: Path) -> bool:
    note = folder / _NOTE_NAME
    if note.exists():
        return True
    why = why_flock_fails(folder)
    if why:
        _log.warning("%s: flock does not serve here (%s): writers take turns by files, see %s", folder, why, note)
        note.write_text(_NOTE.format(why=why), encoding="utf-8")
    return bool(why)


def _mount_options(folder: Path, mounts: Path) -> set[str]:
    """Return the options of all mounts of the file system that a folder lies on; none where nobody tells."""
    try:
        number = folder.stat().st_dev
    except OSError:
        return set()
    device = (os.major(number), os.minor(number))
    return {option for mount in read_mounts(mounts) if mount.device == device for option in mount.options}
