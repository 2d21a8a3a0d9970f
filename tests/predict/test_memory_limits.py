"""What the machine, control groups and a process's own limits leave: on trees like /proc and /sys, and real ones."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.predict.memory_limits import available_memory
from tests.support.control_group import control_group

V2 = "30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,memory\n"
OTHER_V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
SERVER = "/machine.slice/job.scope"


class Tree:
    """A root with ``proc`` and control groups; the machine has 5,000,000 bytes free."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", "MemTotal:  90000 kB\nMemAvailable:  5000 kB\nHugePages_Total:  0\n")

    def write(self, path: str, text: str) -> "Tree":
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def mounted(self, line: str, group: str, root: str = "/", point: str = "/sys/fs/cgroup") -> "Tree":
        self.write("proc/self/cgroup", f"5:devices:/x\n{group}\n")
        return self.write("proc/self/mountinfo", OTHER_V1 + line.format(root=root, point=point))

    def group(self, path: str, limit: str, used: int = 0, *, v1: bool = False, stat: str = "") -> "Tree":
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
        for name, value in zip(names, (limit, used), strict=True):
            self.write(f"{path}/{name}", f"{value}\n")
        return self.write(f"{path}/memory.stat", stat)

    @property
    def size(self) -> int:
        return available_memory(self.root).size


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_without_limits_it_is_what_the_machine_has_free(tree):
    assert tree.size == 5000 << 10
    assert available_memory(tree.root).bound == "free on this machine"


def test_without_proc_it_is_what_the_machine_has(tmp_path):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory(tmp_path).size == physical


def test_the_group_is_looked_for_where_the_process_is(tree):
    tree.mounted(V2, f"0::{SERVER}")
    tree.group("/sys/fs/cgroup", "100").group(f"/sys/fs/cgroup{SERVER}", "3000000", 1_000_000)
    (tree.root / "sys/fs/cgroup/memory.max").unlink()  # the root has no limit
    assert tree.size == 2_000_000
    assert "container or job" in available_memory(tree.root).bound


def test_no_limit_is_none(tree):
    tree.mounted(V2, f"0::{SERVER}").group(f"/sys/fs/cgroup{SERVER}", "max", 1_000_000)
    assert tree.size == 5000 << 10
    tree.mounted(V1, f"4:cpu,memory:{SERVER}").group(f"/sys/fs/cgroup{SERVER}", "9223372036854771712", 10**9, v1=True)
    assert tree.size == 5000 << 10


@pytest.mark.parametrize("v1", [False, True])
def test_a_group_around_it_limits_too(tree, v1):
    tree.mounted(V1, f"4:cpu,memory:{SERVER}") if v1 else tree.mounted(V2, f"0::{SERVER}")
    tree.group(f"/sys/fs/cgroup{SERVER}", "4000000", 0, v1=v1)
    tree.group("/sys/fs/cgroup/machine.slice", "4500000", 1_500_000, v1=v1)
    assert tree.size == 3_000_000


def test_a_group_that_cannot_be_seen_limits_in_version_1(tree):
    tree.mounted(V1, f"4:memory:{SERVER}")
    tree.group(f"/sys/fs/cgroup{SERVER}", "9223372036854771712", 5, v1=True, stat="hierarchical_memory_limit 700000\n")
    assert tree.size == 699_995


def test_memory_high_counts_above_it_a_process_hardly_moves(tree):
    tree.mounted(V2, f"0::{SERVER}").group(f"/sys/fs/cgroup{SERVER}", "4000000", 500_000)
    tree.write(f"/sys/fs/cgroup{SERVER}/memory.high", "2000000\n")
    assert tree.size == 1_500_000


@pytest.mark.parametrize("v1", [False, True])
def test_cache_of_files_is_given_back_and_does_not_count_as_used(tree, v1):
    names = ("total_active_file", "total_inactive_file") if v1 else ("active_file", "inactive_file")
    stat = f"anon 5\n{names[0]} 200000\n{names[1]} 700000\n"
    tree.mounted(V1, f"4:memory:{SERVER}") if v1 else tree.mounted(V2, f"0::{SERVER}")
    tree.group(f"/sys/fs/cgroup{SERVER}", "2000000", 1_000_000, v1=v1, stat=stat)
    assert tree.size == 1_900_000


@pytest.mark.parametrize(
    ("group", "root"),
    [
        ("/docker/abc", "/docker/abc"),  # no namespace of its own: named as outside, its part mounted
        ("/", "/"),  # a namespace of its own
        ("/../../elsewhere", "/"),  # moved out of the namespace's root
        ("/docker/abc", "/kubepods/def"),  # mounted from another place
    ],
)
def test_in_a_container_the_mount_is_the_group(tree, group, root):
    tree.mounted(V2, f"0::{group}", root=root).group("/sys/fs/cgroup", "3000000", 500_000)
    assert tree.size == 2_500_000


def test_a_group_that_is_not_there_leaves_those_around_it(tree):
    tree.mounted(V2, f"0::{SERVER} (deleted)").group("/sys/fs/cgroup/machine.slice", "3000000", 500_000)
    assert tree.size == 2_500_000


def test_a_mount_point_with_a_space_is_found(tree):
    tree.mounted(V2, "0::/a", point=r"/c\040groups").group("/c groups/a", "3000000")
    assert tree.size == 3_000_000


def test_version_2_beside_the_memory_of_version_1_is_not_taken_for_it(tree):
    tree.mounted(V1, f"4:memory:{SERVER}\n0::/", point="/sys/fs/cgroup/memory")
    mounts = (tree.root / "proc/self/mountinfo").read_text() + V2.format(root="/", point="/sys/fs/cgroup/unified")
    tree.write("proc/self/mountinfo", mounts)
    tree.group(f"/sys/fs/cgroup/memory{SERVER}", "3000000", 500_000, v1=True)
    assert tree.size == 2_500_000


def test_a_group_that_has_taken_more_than_its_limit_leaves_nothing(tree):
    tree.mounted(V2, "0::/a").group("/sys/fs/cgroup/a", "1000000", 2_000_000)
    assert tree.size == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Max address space         4000000              unlimited            bytes", 4_000_000 - (1000 << 10)),
     ("Max data size             3000000              4000000              bytes", 3_000_000 - (400 << 10)),
     ("Max address space         unlimited            unlimited            bytes", 5000 << 10)],
)  # fmt: skip
def test_limits_of_the_process_count_less_what_it_has(tree, name, expected):
    tree.write("proc/self/status", "Name:\tctseg\nVmSize:\t    1000 kB\nVmData:\t     400 kB\n")
    tree.write("proc/self/limits", f"Limit                     Soft Limit\n{name}\n")
    assert tree.size == expected


def available_in_a_child(**options) -> int:
    code = "from ctseg.predict.memory_limits import available_memory; print(available_memory().size)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300, **options
    )
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="NEEDS LINUX: reads /proc")
@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_a_real_limit_of_a_real_process_counts(limit):
    left = available_in_a_child(preexec_fn=lambda: resource.setrlimit(limit, (1 << 30, 1 << 30)))
    assert (1 << 30) * 0.5 < left < 1 << 30


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="NEEDS LINUX: control groups")
def test_a_real_control_group_counts_that_lies_around_the_process_own():
    with control_group(512 << 20) as group:
        left = available_in_a_child(preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
    assert (512 << 20) * 0.5 < left < 512 << 20
