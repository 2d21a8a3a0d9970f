"""What must be a file is opened without waiting for it."""

import os
import socket
from pathlib import Path

import pytest

from ctseg.errors import InputError
from ctseg.files.digests import sha256_of_file
from ctseg.files.regular import open_regular
from ctseg.files.volume import read_volume, read_volume_header
from tests.support.scan_files import READERS, nobody, refusal


def test_a_file_and_a_link_to_one_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


def _make(path: Path, kind: str) -> None:
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    _make(tmp_path / "x", kind)
    with pytest.raises(OSError, match=f"is {kind}, not a file"):
        open_regular(tmp_path / "x")
    with pytest.raises(OSError, match=f"is {kind}, not a file"):
        sha256_of_file(tmp_path / "x")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".nhdr", ".gipl"])
@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
def test_a_scan_that_is_no_file_is_refused_by_name(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    _make(path, kind)
    for reader in READERS:
        assert f"is {kind}, not a file" in refusal(path, reader)
    with pytest.raises(InputError, match=f"x{ending}.*is {kind}, not a file"):
        read_volume_header([path], "SimpleITKIO")


def test_links_that_lead_nowhere_are_told_from_each_other(tmp_path: Path) -> None:
    (tmp_path / "gone.nii.gz").symlink_to("/nowhere/scan.nii.gz")
    (tmp_path / "self.nii.gz").symlink_to("self.nii.gz")
    (tmp_path / "long.nii.gz").symlink_to("x" * 300)
    assert "No such file or directory: a link to /nowhere/scan.nii.gz" in refusal(tmp_path / "gone.nii.gz")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "self.nii.gz")
    assert "File name too long" in refusal(tmp_path / "long.nii.gz")


def test_a_link_into_a_folder_that_may_not_be_entered_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "scan.nii.gz").touch()
    (tmp_path / "x.nii.gz").symlink_to(tmp_path / "closed" / "scan.nii.gz")
    with nobody(tmp_path / "closed", 0), pytest.raises(InputError, match=r"x\.nii\.gz: .*Permission denied"):
        read_volume([tmp_path / "x.nii.gz"], "SimpleITKIO")
