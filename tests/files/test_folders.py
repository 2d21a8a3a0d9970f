"""Folders that cannot be written to are told before any work."""

import os
from pathlib import Path

import pytest

from ctseg.errors import OutputError
from ctseg.files.folders import require_writable
from tests.support.unprivileged import error_of, read_only_folder


def test_a_folder_that_could_be_made_is_writable_and_nothing_is_made(tmp_path: Path) -> None:
    require_writable(tmp_path)
    require_writable(tmp_path / "not" / "yet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_in_its_place_is_told(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"liver: cannot write into .*: .*file is read-only, or no folder"):
        require_writable(tmp_path / folder, name="liver")


def test_a_read_only_folder_is_told_with_its_owner() -> None:
    with read_only_folder() as folder:
        error = error_of(
            "from pathlib import Path; from ctseg.files.folders import require_writable",
            f"require_writable(Path({str(folder / 'models')!r}))",
        )
    assert "OutputError" in error
    assert f"cannot write into {folder}/models: {folder} is read-only, or no folder (user " in error
    assert f"owner {os.getuid()}:{os.getgid()}, mode 555)" in error
