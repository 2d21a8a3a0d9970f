"""What is left of a group of processes."""

import contextlib
import time
from pathlib import Path


def living_processes_of_group(group: int) -> list[str]:
    """Numbers of the processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rpartition(")")[2].split()
            if words[0] not in "ZX" and int(words[2]) == group:
                found.append(stat.parent.name)
    return found


def assert_nothing_is_left_of_group(group: int) -> None:
    """Wait until all processes of a group have ended."""
    deadline = time.monotonic() + 200
    while left := living_processes_of_group(group):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
