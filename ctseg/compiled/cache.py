"""Where compiled kernels are kept between processes."""

import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

import platformdirs

_log = logging.getLogger(__name__)


def find_cache_home(source: Path) -> Path | None:
    """Return a folder for the compile cache of ``source``, or None where numba's own choice is fine.

    In order: what ``NUMBA_CACHE_DIR`` names, the package's own ``__pycache__``, the user's cache
    folder, a private folder under the system's temporary one. Where the package lies on a read-only
    file system and carries compiled kernels, they are copied to the folder that was found.

    Raises:
        OSError: No folder can be written.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named and _is_writable(Path(named)):
        return None
    shipped = source.parent / "__pycache__"
    if not named and _is_writable(shipped):
        return None
    user = platformdirs.user_cache_path("ctseg", appauthor=False) / "kernels"
    for home in (user, Path(tempfile.gettempdir()) / f"ctseg-kernels-{getattr(os, 'getuid', int)()}"):
        if _is_writable(home):
            _log.debug("compiled kernels are kept in %s", home)
            return home
    raise OSError(f"no writable folder for compiled kernels: tried {named or shipped}, {user} and the temporary folder")


def copy_shipped_kernels(source: Path, target: Path) -> None:
    """Copy the compile cache that lies beside ``source`` into ``target``, where it is newer or missing."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (source.parent / "__pycache__").glob(f"{source.stem}.*.nb[ic]"):
        copy = target / file.name
        if not copy.exists():
            partial = target / f"{file.name}.{os.getpid()}"
            shutil.copyfile(file, partial)
            partial.replace(copy)


def _is_writable(folder: Path) -> bool:
    """Whether this user can write there and nobody else has put the folder in place (it will hold code that runs)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if hasattr(os, "getuid") and folder.parent == Path(tempfile.gettempdir()):
            foreign = found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if foreign or stat.S_ISLNK(found.st_mode):
                return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
