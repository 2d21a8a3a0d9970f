"""Bundles are found, builds run one server at a time and in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from ctseg.container.builds import build_entries, find_bundles, members_of, repository_lock
from ctseg.errors import SetupError
from tests.support.container_entries import settings_of
from tests.support.unprivileged import error_of, read_only_folder


def test_bundles_are_the_folder_itself_or_the_folders_in_it(tmp_path: Path) -> None:
    assert find_bundles(tmp_path / "missing") == []
    for name in ("b", "a", ".unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ctseg.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert find_bundles(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_bundles(tmp_path / "a") == [tmp_path / "a"]


def test_the_bundle_of_a_recipe_counts_as_one_and_has_a_bundle_for_each_member(tmp_path: Path) -> None:
    for name in ("one", "both/first", "both/second"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "ctseg.json").write_text("{}")
    (tmp_path / "both" / "ctseg_recipe.json").write_text("{}")
    both, one = tmp_path / "both", tmp_path / "one"
    assert find_bundles(tmp_path) == [both, one]
    assert find_bundles(both) == [both]
    assert members_of([both, one]) == [both / "first", both / "second", one]


@pytest.mark.parametrize("folder", ["models", "file"])
def test_a_repository_that_is_no_folder_is_told(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    settings = settings_of(CTSEG_MODELS=str(tmp_path / folder))
    with pytest.raises(SetupError, match="no such folder: mount a volume there"), repository_lock(settings):
        pytest.fail("locked")


def test_a_repository_that_cannot_be_written_is_told() -> None:
    with read_only_folder() as folder:
        error = error_of(
            "from ctseg.container.builds import repository_lock; from ctseg.container.settings import Settings; "
            f"settings = Settings(models={str(folder)!r})",
            "with repository_lock(settings): pass",
        )
    assert "SetupError" in error
    assert f"cannot write into {folder}: " in error
    assert "`chown " in error
    assert f"run with --user {os.getuid()}:{os.getgid()}" in error


def test_a_server_that_waits_too_long_for_another_one_says_so(tmp_path: Path) -> None:
    settings = settings_of(CTSEG_MODELS=str(tmp_path), CTSEG_LOCK_TIMEOUT_S="1")
    with (
        FileLock(tmp_path / ".ctseg-start.lock"),
        pytest.raises(SetupError, match=r"another server has been building for 1 s: .*CTSEG_LOCK_TIMEOUT_S"),
        repository_lock(settings),
    ):
        pytest.fail("locked")


def test_a_build_that_fails_has_told_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(SetupError, match="bundle: its build ended with status 2: nothing is served"):
        build_entries(settings_of(CTSEG_MODELS=str(tmp_path)), [tmp_path / "bundle"])
    assert "ctseg: SpecError: " in capfd.readouterr().err


def test_a_build_ends_at_once_at_sigterm_also_in_native_code() -> None:
    code = """
import sys
import ctseg.container.build_process as program
print("ready", flush=True)
sys.exit(program.main())
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == -signal.SIGTERM  # the default, which needs no Python to run
