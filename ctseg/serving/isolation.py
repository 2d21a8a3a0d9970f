"""What ctseg starts runs nothing that lies in the current folder: scans come from strangers, and lie there.

Python looks there for modules, a shell for programs and the dynamic linker for libraries, wherever a search path has
an empty or a relative entry; Triton's python backend always does. So whatever is started gets search paths of
absolute entries only, and, where it needs no file of the current folder, an empty folder of its own to start in.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ctseg.errors import SetupError

_SEARCH_PATHS = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
_USUAL_PROGRAMS = "/usr/local/bin:/usr/bin:/bin"
_OTHER_FOLDERS = ("/tmp", "/var/tmp")  # noqa: S108 - only private folders are made there
_PLAIN = frozenset("/._-+@=,~") | frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""What the name of a folder may hold that Triton works in: a shell starts its backends, unquoted."""


def absolute_entries(search_path: str) -> str:
    """Return the absolute entries of a search path: an empty one and a relative one lead to the current folder."""
    return os.pathsep.join(entry for entry in search_path.split(os.pathsep) if Path(entry).is_absolute())


def isolated_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a process to start: its search paths lead to absolute places only.

    ``PYTHONSAFEPATH`` keeps Python itself from looking where it starts; Python 3.10 does not know it, and needs
    ``-I`` or an :func:`empty_folder` besides. Everything else stays as it is.
    """
    isolated = {**environment, "PYTHONSAFEPATH": "1"}
    for name in _SEARCH_PATHS:
        if entries := absolute_entries(isolated.pop(name, "")):
            isolated[name] = entries
    isolated.setdefault("PATH", _USUAL_PROGRAMS)
    return isolated


def python_command(*words: str) -> list[str]:
    """Return the command that runs this Python with some words, as isolated as this process is."""
    return [sys.executable, *(["-I"] if sys.flags.isolated else []), *words]


@contextlib.contextmanager
def empty_folder(prefix: str) -> Iterator[Path]:
    """Make an empty folder that only this user may enter; it goes afterwards with all that is in it.

    Raises:
        SetupError: See :func:`temporary_parent`.
    """
    with tempfile.TemporaryDirectory(
        prefix=prefix, dir=temporary_parent(needed_bytes=0), ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def temporary_parent(*, needed_bytes: int, runs_programs: bool = False) -> Path:
    """Return a folder for temporary files in which Triton can work: where they usually go, else ``/tmp`` and so on.

    Args:
        needed_bytes: What must be free there.
        runs_programs: Whether programs will be put there and run.

    Raises:
        SetupError: There is none; with the reason for each.
    """
    problems = []
    for folder in dict.fromkeys([*_usual_folder(), *_OTHER_FOLDERS]):
        problem = _problem_of(folder, needed_bytes, runs_programs=runs_programs)
        if problem is None:
            return Path(folder)
        problems.append(f"{folder} {problem}")
    raise SetupError(
        f"no folder for temporary files can be used: {'; '.join(problems)}; set TMPDIR to a folder of your own with "
        f"{needed_bytes / 1e6:.0f} MB free"
    )


def _usual_folder() -> list[str]:
    """Return where temporary files go; nothing where that would be the current folder, Python's last choice."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        return []
    wanted = {os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")}
    return [] if folder == os.getcwd() and folder not in wanted else [folder]  # noqa: PTH109 - compared as text


def _problem_of(folder: str, needed_bytes: int, *, runs_programs: bool) -> str | None:
    if not set(folder) <= _PLAIN:
        return "has a name with a space or a letter that Triton does not bear"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written" if Path(folder).is_dir() else "is missing"
    try:
        if runs_programs and os.statvfs(folder).f_flag & os.ST_NOEXEC:
            return "lets no program run (noexec)"
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"full?")
            file.flush()
    except OSError as error:
        return f"cannot be used ({error.strerror or error})"
    return None if free >= needed_bytes else f"has {free / 1e6:.1f} MB free"
