"""What is mounted where, as Linux tells it."""

import re
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    """One mount.

    Attributes:
        device: Major and minor number, as :func:`os.stat` gives them for what lies there.
        root: The folder of the file system that is mounted.
        point: Where.
        kind: Of the file system, such as ``nfs4``.
        options: Of the mount and of its file system.
    """

    device: tuple[int, int]
    root: str
    point: str
    kind: str
    options: frozenset[str]


def read_mounts(mounts: Path = MOUNTS) -> list[Mount]:
    """Return what this process sees mounted; nothing where the system does not tell.

    Source:
        ``proc_pid_mountinfo(5)``.
    """
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [_mount(line) for line in text.split("\n") if line]  # a name may hold whatever else ends a line


def _mount(line: str) -> Mount:
    here, _, of_file_system = line.partition(" - ")
    _, _, device, root, point, options, *_ = here.split(" ")
    kind, _, more = of_file_system.split(" ", 2)
    major, _, minor = device.partition(":")
    return Mount(
        (int(major), int(minor)),
        _unescaped(root),
        _unescaped(point),
        kind,
        frozenset((*options.split(","), *more.split(","))),
    )


def _unescaped(field: str) -> str:
    """Return a field with its spaces and line breaks, which are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
