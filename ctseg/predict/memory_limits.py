"""How much memory this process may still take: what its machine, its control groups and its own limits leave."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ctseg.files.mounts import MOUNTS, read_mounts

_UNKNOWN = 8 << 30
"""Taken where nothing can be told."""
_NO_LIMIT = 1 << 60
"""Control groups of version 1 write a number of about this size where there is no limit."""


@dataclass(frozen=True, order=True)
class Available:
    """Memory that can still be taken.

    Attributes:
        size: In bytes.
        bound: What leaves no more, for a person.
    """

    size: int
    bound: str

    def with_more(self, size: int) -> "Available":
        """Return what there is once so many bytes more can be taken."""
        return Available(self.size + size, self.bound)


def available_memory(root: Path = Path("/")) -> Available:
    """Return what this process may still take: the least of what these leave now.

    - what the machine can give without swapping;
    - the limits of its control groups, version 1 or 2, from its own up to the outermost that can be seen, less what
      each uses; the cache of files is given back when it is needed, and does not count as used;
    - its own limits on address space and data.

    Args:
        root: Where ``proc`` lies, and what it names.
    """
    found = [*_of_machine(root), *_of_control_groups(root), *_of_process(root)]
    return min(found, default=Available(_physical_bytes(), "this machine has"))


def _of_machine(root: Path) -> Iterator[Available]:
    available = _numbers(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield Available(available << 10, "free on this machine")


def _of_process(root: Path) -> Iterator[Available]:
    used = _numbers(root / "proc/self/status")
    for line in _text(root / "proc/self/limits").splitlines():
        for name, taken, bound in (
            ("Max address space", "VmSize", "left of this process's limit of address space (ulimit -v)"),
            ("Max data size", "VmData", "left of this process's limit of data (ulimit -d)"),
        ):
            if match := re.match(rf"{name}\s+(\d+)\s", line):
                yield Available(max(0, int(match[1]) - (used.get(taken, 0) << 10)), bound)


def _of_control_groups(root: Path) -> Iterator[Available]:
    for folder in _folders(root, "cgroup2"):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
        yield from _left(limits, _number(folder / "memory.current"), folder, ("active_file", "inactive_file"))
    for folder in _folders(root, "cgroup"):
        limits = [_number(folder / "memory.limit_in_bytes"), _statistics(folder).get("hierarchical_memory_limit")]
        used = _number(folder / "memory.usage_in_bytes")
        yield from _left(limits, used, folder, ("total_active_file", "total_inactive_file"))


def _left(limits: list[int | None], used: int | None, folder: Path, cache: tuple[str, ...]) -> Iterator[Available]:
    set_limits = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    if set_limits:
        statistics = _statistics(folder)
        taken = (used or 0) - sum(statistics.get(name, 0) for name in cache)
        yield Available(max(0, min(set_limits) - max(0, taken)), "left of the memory limit of this container or job")


def _folders(root: Path, kind: str) -> Iterator[Path]:
    """Yield this process's control group for memory, and those around it, as far as they are mounted here."""
    group = _group(root, kind)
    if group is None:
        return
    for mount in read_mounts(root / MOUNTS.relative_to("/")):
        if mount.kind != kind or (kind == "cgroup" and "memory" not in mount.options):
            continue
        top = root / mount.point.lstrip("/")
        # in a container without a namespace of its own the group is named as outside, where only a part is mounted
        inside = group.relative_to(mount.root) if group.is_relative_to(mount.root) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        for depth in range(len(inside.parts), -1, -1):
            yield top.joinpath(*inside.parts[:depth])
        return


def _group(root: Path, kind: str) -> PurePosixPath | None:
    """Return the name of this process's control group for memory; None: there is none of this kind."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if (number == "0" and not controllers) if kind == "cgroup2" else "memory" in controllers.split(","):
            return PurePosixPath(name)
    return None


def _numbers(path: Path) -> dict[str, int]:
    """Return the lines ``Name:  number kB`` of a file."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", _text(path), re.MULTILINE)}


def _statistics(folder: Path) -> dict[str, int]:
    text = _text(folder / "memory.stat")
    return {name: int(number) for name, number in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # "max": no limit


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN
