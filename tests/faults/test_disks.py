"""Output disks that fill, that go read-only for a while, and file systems that come back."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folder_runs import Folder, may, outcomes_in, serving
from tests.support.live_triton import wait_for

READ_ONLY_S = 4


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system in memory of such a size."""
    path.mkdir()
    if not may("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)):
        pytest.skip("a file system cannot be mounted here: needs root and the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


def test_a_disk_that_is_full_fails_cases_by_name_and_is_gone_on_with_when_there_is_room(
    folder: Folder, tmp_path: Path
) -> None:
    with serving(tmp_path) as server, small_disk(tmp_path / "disk", "6m") as disk:
        output = disk / "out"
        run = folder.start(output, "--save_probabilities", "--url", server.url)
        assert run.wait() in (1, 3), run.said
        assert "No space left on device" in run.said
        assert "Traceback" not in run.said
        folder.assert_visible_files_are_right(output)
        remount(disk, "size=500m")
        again = folder.start(output, "--save_probabilities", "--url", server.url, "--c")
        assert again.wait() == 0, again.said
        folder.assert_is_done(output)


def test_a_disk_that_is_full_from_the_start_is_worth_another_try(folder: Folder, tmp_path: Path) -> None:
    with serving(tmp_path) as server, small_disk(tmp_path / "disk", "256k") as disk:
        run = folder.start(disk / "out", "--save_probabilities", "--url", server.url)
        assert run.wait() == 3, run.said
        assert "Traceback" not in run.said


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Make a file system read-only for the time of the block, also for those who have files open on it."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    remount(disk, "bind,ro")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_is_read_only_for_some_seconds_loses_no_case(folder: Folder, tmp_path: Path) -> None:
    with serving(tmp_path) as server, small_disk(tmp_path / "disk", "500m") as disk:
        output = disk / "out"
        run = folder.start(output, "--save_probabilities", "--url", server.url)
        wait_for(lambda: outcomes_in(output) or run.has_ended)
        with read_only(disk):
            time.sleep(READ_ONLY_S)
            assert len(outcomes_in(output)) < len(folder.names)
        assert run.wait() in (0, 1, 3), run.said  # as it was quicker than the disk, or not
        assert "tried again at the end" in run.said
        assert "Traceback" not in run.said
        folder.assert_visible_files_are_right(output)
        again = folder.start(output, "--save_probabilities", "--url", server.url, "--c")
        assert again.wait() == 0, again.said
        folder.assert_is_done(output)
