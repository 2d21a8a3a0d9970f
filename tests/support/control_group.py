"""Real control groups with a limit on memory, where the machine lets tests make them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A control group without a limit inside one with a limit, of whichever version has the memory here."""
    found = _own_group()
    if found is None:
        pytest.skip("NO CONTROL GROUPS: memory is not controlled on this machine")
    own, limit_name = found
    outer = own / f"ctseg-test-{uuid.uuid4().hex[:8]}"
    inner = outer / "inner"
    try:
        outer.mkdir()
        (outer / limit_name).write_text(str(limit))
        inner.mkdir()
    except OSError as error:
        if outer.exists():
            outer.rmdir()
        pytest.skip(f"NEEDS RIGHTS ON CONTROL GROUPS: {error}")
    try:
        yield inner
    finally:
        inner.rmdir()
        outer.rmdir()


def _own_group() -> tuple[Path, str] | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path(f"/sys/fs/cgroup/memory{name}"), "memory.limit_in_bytes"
        if not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return Path(f"/sys/fs/cgroup{name}"), "memory.max"
    return None
