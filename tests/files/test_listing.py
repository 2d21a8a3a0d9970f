"""What a file is taken for before anybody reads it."""

import os
import tempfile
from pathlib import Path

from pydicom.uid import ImplicitVRLittleEndian

from ctseg.files.listing import first_look
from tests.support.dicom_series import ct_series, write_series
from tests.support.scan_files import nobody


def test_dicom_is_known_by_its_first_bytes_whatever_its_name(tmp_path: Path) -> None:
    first = ct_series((1, 4, 4)).datasets
    (plain,) = write_series(tmp_path, first, names=["1.2.840.113619"])
    (implicit,) = write_series(tmp_path, first, names=["notes.txt"], syntax=ImplicitVRLittleEndian)
    (bare,) = write_series(tmp_path, first, names=["IM1"], preamble=False)
    assert [first_look(path) for path in (plain, implicit, bare)] == ["dicom"] * 3
    for name, content in {"b.dcm": bytes(200), "c": b"\x08\x00", "d.txt": b"text " * 40}.items():
        (tmp_path / name).write_bytes(content)
        assert first_look(tmp_path / name) == "other"


def test_what_is_no_file_is_not_waited_for_and_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "IM2")
    (tmp_path / "IM3").symlink_to("nowhere")
    (tmp_path / "IM4").touch()
    assert [first_look(tmp_path / name) for name in ("IM2", "IM3", "IM4")] == ["other", "nothing", "nothing"]
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_series(Path(folder), ct_series((1, 4, 4)).datasets)
        Path(folder).chmod(0o755)
        with nobody(path, 0o000):
            assert first_look(path) == "unreadable"
