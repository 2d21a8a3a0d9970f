"""Whole files or none."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctseg.errors import OutputError
from ctseg.files import atomic
from ctseg.files.atomic import appearing, replacing, temporary_path, write_bytes, write_text
from ctseg.files.digests import sha256_of_file


def test_text_is_written_in_utf8_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "report.json", "µ")
    assert (tmp_path / "report.json").read_bytes() == b"\xc2\xb5"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_content_is_on_the_disk_before_the_rename_and_the_rename_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        order.append("folder" if target.is_dir() else f"content, renamed: {(tmp_path / 'a').exists()}")
        really(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    write_bytes(tmp_path / "a", b"1")
    assert order == ["content, renamed: False", "folder"]


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "a", b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", no_space)
    with pytest.raises(OutputError, match="a: cannot be written: No space left on device"):
        write_bytes(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_an_interruption_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")

    def interrupted() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_kill_in_mid_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    code = (
        "import os, sys; from pathlib import Path; from ctseg.files.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing/a: cannot be written: No such file"):
        write_bytes(tmp_path / "missing" / "a", b"")


def test_temporary_names_are_hidden_keep_the_endings_and_never_repeat(tmp_path: Path) -> None:
    names = {temporary_path(tmp_path / "case.nii.gz").name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(".case.nii.gz.") and name.endswith(".tmp.nii.gz") for name in names)
    assert all(f".{os.getpid()}." in name for name in names)


@pytest.mark.parametrize("stem", ["n" * 248, "ü" * 124])
def test_the_longest_names_can_be_written(tmp_path: Path, stem: str) -> None:
    write_bytes(tmp_path / f"{stem}.nii.gz", b"1")
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}.nii.gz"]


def test_digest_is_sha256(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"abc")
    assert sha256_of_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for content in (b"1", b"2"):
        with appearing(target) as part:
            (part / "inner").mkdir()
            write_bytes(part / "inner" / "a", content)
        assert (target / "inner" / "a").read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    write_bytes(target / "a", b"old")
    really = Path.rename

    def refuse(path: Path, other: Path) -> Path:
        if other == target and ".replaced" not in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(path, other)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"), appearing(target) as part:
        write_bytes(part / "a", b"new")
    assert (target / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_a_killed_replacement_moved_aside_comes_back(tmp_path: Path) -> None:
    target, aside = tmp_path / "bundle", tmp_path / ".bundle.replaced"
    aside.mkdir()
    write_bytes(aside / "a", b"old")

    def interrupted() -> None:
        with appearing(target):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (target / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("letter", ["n", "ä", "漢", "😀", "\udcff"])
def test_any_name_that_a_file_system_takes_can_be_written(tmp_path: Path, letter: str) -> None:
    stem = letter * ((255 - 7) // len(os.fsencode(letter)))
    for name in (f"{stem}.nii.gz", f"{letter * 3}.{stem}", stem):
        path = tmp_path / os.fsdecode(os.fsencode(name)[:255])
        write_bytes(path, b"1")
        assert path.read_bytes() == b"1"
        assert len(os.fsencode(temporary_path(path).name)) <= 255
        assert os.fsencode(temporary_path(tmp_path / "a.nii.gz").name).decode("utf-8")
