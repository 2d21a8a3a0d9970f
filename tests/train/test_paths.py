"""Folders and names, those of Windows too."""

from pathlib import Path

import pytest

from ctseg.errors import InputError, SetupError
from ctseg.files.dataset_cases import ScanFolders
from ctseg.train.dataset import DatasetDescription, create_dataset
from ctseg.train.paths import NnunetPaths, dataset_name


@pytest.mark.parametrize("name", ["nul", "COM1", "aux.left"])
def test_names_that_windows_keeps_for_its_devices_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"case {name}: Windows has a device of this name"):
        create_named(tmp_path, name)


def test_names_that_are_one_file_on_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="case p1: only upper and lower case tell it from P1") as caught:
        create_named(tmp_path, "P1", "p1", "p2")
    assert "p2: only" not in str(caught.value)


def create_named(folder: Path, *names: str) -> None:
    for part in ("images", "labels"):
        (folder / part).mkdir()
        for name in names:
            (folder / part / f"{name}.nii.gz").write_bytes(b"no scan")
    create_dataset(
        folder / "raw", 9, "Toy", DatasetDescription(("CT",), {"background": 0, "tumor": 1}),
        ScanFolders(folder / "images", folder / "labels"),
    )  # fmt: skip


def test_a_data_set_is_found_by_id_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset007_Toy").mkdir(parents=True)
    (tmp_path / "results" / "Dataset008_Toy").mkdir(parents=True)
    paths = NnunetPaths(raw=tmp_path / "raw", results=tmp_path / "results")
    assert [dataset_name(paths, word) for word in ("7", "007", "Dataset007_Toy", "8")] == [
        "Dataset007_Toy", "Dataset007_Toy", "Dataset007_Toy", "Dataset008_Toy",
    ]  # fmt: skip
    (tmp_path / "results" / "Dataset007_Other").mkdir()
    with pytest.raises(SetupError, match="the id is ambiguous, found Dataset007_Other, Dataset007_Toy"):
        dataset_name(paths, "7")
    with pytest.raises(SetupError, match="expected an id"):
        dataset_name(paths, r"D:\nnUNet_raw\Dataset007_Toy")
