"""What is mounted where."""

import os
from pathlib import Path

import pytest

from ctseg.files.mounts import MOUNTS, Mount, read_mounts


def test_a_line_of_the_kernels_list_is_a_mount(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_bytes(
        b"36 35 98:0 /part\\040one /mnt/scans\\040\\134x rw,noatime master:1 shared:2 - nfs4 host:/a rw,vers=4.2\n"
        b"35 31 0:32 / /caf\xe9\x0b rw - cgroup cgroup rw,memory\n"
    )
    assert read_mounts(tmp_path / "mountinfo") == [
        Mount((98, 0), "/part one", "/mnt/scans \\x", "nfs4", frozenset({"rw", "noatime", "vers=4.2"})),
        Mount((0, 32), "/", "/caf\udce9\v", "cgroup", frozenset({"rw", "memory"})),
    ]
    assert read_mounts(tmp_path / "missing") == []


@pytest.mark.skipif(not MOUNTS.exists(), reason="NEEDS LINUX: reads /proc")
def test_what_lies_in_proc_is_on_a_mount_of_its_device() -> None:
    device = MOUNTS.stat().st_dev
    kinds = {mount.kind for mount in read_mounts() if mount.device == (os.major(device), os.minor(device))}
    assert kinds == {"proc"}
