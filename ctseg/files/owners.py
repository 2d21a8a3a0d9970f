"""Names that tell which process made something, so that what a killed one left can be removed.

A name ends with its owner: process namespace, process id and start time. That identifies a process on the host
exactly, also after its id was given to another and across containers that share a folder.
"""

import os
import re
from pathlib import Path

_NAMESPACE = Path("/proc/self/ns/pid")
_OWNER = re.compile(r"-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<started>\d+)(?:-|$)")


def owner_tag(pid: int | None = None) -> str:
    """Return ``<namespace>-<pid>-<start time>`` of a process, this one by default."""
    pid = os.getpid() if pid is None else pid
    return f"{own_namespace()}-{pid}-{_start_time(pid)}"


def own_namespace() -> int:
    """Return the number of this process's namespace of process ids; 0 where the system has none."""
    try:
        return _NAMESPACE.stat().st_ino
    except OSError:
        return 0


def can_be_judged(name: str) -> bool:
    """Whether a name ends with an owner of which this process can see if it lives; on the same kernel, that is."""
    owner = _OWNER.search(name)
    return owner is not None and 0 != int(owner["namespace"]) == own_namespace()


def is_left_behind(name: str) -> bool:
    """Whether a name ends with an owner, see :func:`owner_tag`, that can be judged and is no longer alive."""
    owner = _OWNER.search(name)
    if owner is None or not can_be_judged(name):
        return False
    return _start_time(int(owner["pid"])) != int(owner["started"])


def _start_time(pid: int) -> int:
    """Return the start time of a process in clock ticks after boot, -1 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    fields = stat.rpartition(")")[2].split()
    is_dead = fields[0] in "ZX"
    return -1 if is_dead else int(fields[19])
