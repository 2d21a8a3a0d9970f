"""Zips from somebody unknown: what is no trained model is refused by the name of the zip, and nothing is left."""

import errno
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ctseg.errors import CheckpointError, OutputError
from ctseg.nnunet import zipped_models
from ctseg.nnunet.results_folder import opened_results, unpacked

FOLDER = "Dataset001_Größe/nnUNetTrainer__nnUNetPlans__3d_fullres"
MODEL = {
    f"{FOLDER}/plans.json": b'{"plans": 1}',
    f"{FOLDER}/dataset.json": b"{}",
    f"{FOLDER}/fold_0/checkpoint_final.pth": bytes(range(256)) * 40,
    f"{FOLDER}/fold_0/validation/summary.json": b"{}",
    f"{FOLDER}/fold_0/progress.png": b"png",
}
CHECKPOINT = f"{FOLDER}/fold_0/checkpoint_final.pth"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where zips are unpacked."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def zipped(*more: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of a trained model, and more members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in [*MODEL.items(), *more]:
            archive.writestr(name, content)
    return file.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def changed(content: bytes, where: Callable[[bytes], int], new: bytes) -> bytes:
    start = where(content)
    assert start >= 0
    return content[:start] + new + content[start + len(new) :]


def in_the_list(field: int) -> Callable[[bytes], int]:
    """Place of a field of the first member in the list at the end of a zip."""
    return lambda content: content.find(b"PK\x01\x02") + field


def in_the_checkpoint(content: bytes) -> int:
    return zipfile.ZipFile(io.BytesIO(content)).getinfo(CHECKPOINT).header_offset + 160


def test_what_nnunet_writes_is_unpacked_but_for_pictures(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "model.zip").write_bytes(zipped((f"__MACOSX/{FOLDER}/._plans.json", b"x")))
    with unpacked(tmp_path / "model.zip") as folder:
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == {name: content for name, content in MODEL.items() if not name.endswith("png")}
    with unpacked(tmp_path / "model.zip", documents_only=True) as folder:
        assert (folder / CHECKPOINT).parent.is_dir()
        assert list(folder.rglob("*.pth")) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no zip", "not a zip file, or not a whole one: File is not a zip file: copy or download it again"),
        (b"", "not a zip file, or not a whole one"),
        (zipped()[:-30], "not a zip file, or not a whole one"),
        (zipped()[200:], "not a zip file, or not a whole one"),
        (changed(zipped(), in_the_checkpoint, b"\xff" * 20), "not a zip file, or not a whole one: Error -3"),
        (changed(zipped(method=zipfile.ZIP_STORED), in_the_checkpoint, b"\xff"), "Bad CRC-32"),
        (changed(zipped(), in_the_list(10), struct.pack("<H", 99)), "compression method is not supported"),
        (changed(zipped(), in_the_list(8), struct.pack("<H", 1)), "is encrypted: unpack it with its password"),
        (zipped().replace("Größe".encode(), b"Gr\xffsse!"), "not a zip file, or not a whole one: 'utf-8'"),
        (zipped((f"{FOLDER}/../../evil/plans.json", b"")), "leaves the archive's folder: nothing is unpacked"),
        (zipped(("/evil/plans.json", b"")), "leaves the archive's folder: nothing is unpacked"),
        (zipped(("..\\plans.json", b"")), "has a backslash in its name"),
        (zipped((link("Dataset001_Other"), b"/etc")), "is a link: nothing is unpacked"),
        (zipped((f"./{FOLDER}/plans.json", b"")), "two members are called './Dataset001_Größe"),
        (zipped((f"{FOLDER}/plans.json/plans.json", b"")), "cannot be unpacked: File exists"),
        (zipped(("x" * 300 + "/plans.json", b"")), "cannot be unpacked: File name too long"),
    ],
)  # fmt: skip
def test_a_zip_that_is_broken_or_hostile_is_refused_by_its_name(
    tmp_path: Path, temporary: Path, content: bytes, told: str
) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(CheckpointError) as caught, unpacked(tmp_path / "model.zip"):
        pass
    assert str(caught.value).startswith(f"{tmp_path / 'model.zip'}: ")
    assert told in str(caught.value)
    assert str(temporary) not in str(caught.value)
    assert list(temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "temporary"}


@pytest.mark.parametrize("limit", ["MAX_ZIP_BYTES", "MAX_JSON_BYTES", "MAX_MEMBERS"])
def test_a_zip_bomb_is_refused_before_anything_is_unpacked(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    (tmp_path / "model.zip").write_bytes(zipped())
    allowed = {"MAX_ZIP_BYTES": 12 + 2 + 10240 + 2, "MAX_JSON_BYTES": 12, "MAX_MEMBERS": 4}[limit]
    monkeypatch.setattr(zipped_models, limit, allowed)
    with unpacked(tmp_path / "model.zip"):
        pass
    monkeypatch.setattr(zipped_models, limit, allowed - 1)
    with (
        pytest.raises(CheckpointError, match="unpacks to more than trained models have"),
        unpacked(tmp_path / "model.zip"),
    ):
        pass
    assert list(temporary.iterdir()) == []


def test_a_zip_that_has_more_than_it_says_gives_no_more(tmp_path: Path, temporary: Path) -> None:
    first = next(iter(MODEL))
    assert MODEL[first] == b'{"plans": 1}'
    lying = changed(zipped(), in_the_list(24), struct.pack("<I", 5))
    (tmp_path / "model.zip").write_bytes(lying)
    with pytest.raises(CheckpointError, match="Bad CRC-32"), unpacked(tmp_path / "model.zip"):
        pass


def test_a_zip_for_which_there_is_no_room_is_told_before_and_while_it_is_unpacked(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised = changed(zipped(method=zipfile.ZIP_STORED), in_the_list(24), struct.pack("<I", 2**32 - 2))
    (tmp_path / "model.zip").write_bytes(promised)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    monkeypatch.setattr(zipped_models, "MAX_JSON_BYTES", 1 << 40)
    with (
        pytest.raises(OutputError, match=r"unpacks to 4.3 GB, and .*temporary has 1.0 GB left: make room, or set TMP"),
        unpacked(tmp_path / "model.zip"),
    ):
        pass
    (tmp_path / "model.zip").write_bytes(zipped())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with (
        pytest.raises(OutputError, match=r"no room in .*temporary to unpack it: No space left") as caught,
        unpacked(tmp_path / "model.zip"),
    ):
        pass
    assert isinstance(caught.value.__cause__, OSError)
    assert list(temporary.iterdir()) == []


def test_what_is_no_trained_model_says_what_was_expected(tmp_path: Path) -> None:
    empty, without = tmp_path / "empty.zip", tmp_path / "without.zip"
    zipfile.ZipFile(empty, "w").close()
    with zipfile.ZipFile(without, "w") as archive:
        archive.writestr(f"{FOLDER}/plans.json", "{}")
    expected = "expected a folder trainer__plans__configuration with plans.json, dataset.json and fold_"
    for path, found in ((empty, "no plans.json"), (without, f"plans.json without a fold in {Path(FOLDER).name}")):
        with pytest.raises(CheckpointError, match=f"{expected}.*, found {found}$"), opened_results(path):
            pass
    (tmp_path / "checkpoint_final.pth").write_bytes(zipped())
    with (
        pytest.raises(CheckpointError, match="a checkpoint alone does not say"),
        opened_results(tmp_path / "checkpoint_final.pth"),
    ):
        pass
    with (
        pytest.raises(CheckpointError, match="an address: download it first"),
        opened_results(Path("https://x.org/m.zip")),
    ):
        pass
