"""Folders and names, those of Windows too."""

from pathlib import Path

import pytest

from ctseg.cli.main import main
from ctseg.errors import InputError, SetupError
from ctseg.files.dataset_cases import ScanFolders
from ctseg.train.creation import create_dataset
from ctseg.train.description import DatasetDescription
from ctseg.train.paths import NnunetPaths, dataset_name, new_dataset_folder
from tests.support.small_datasets import pairs


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


@pytest.mark.parametrize("name", ["Lungs", "Dataset501_Lungs", "dataset501_Lungs"])
def test_the_id_in_a_name_is_not_written_twice(tmp_path: Path, name: str) -> None:
    assert new_dataset_folder(tmp_path, 501, name).name == "Dataset501_Lungs"


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [
        (502, "Dataset501_Lungs", "'Dataset501_Lungs' has the id 501, and the data set 502: which is it"),
        (501, "My Lungs", "letters, digits, '_' and '-' only, such as My_Lungs$"),
        (501, "Lungenflügel", "only, such as Lungenfl_gel$"),
        (501, "Dataset501_", "letters, digits, '_' and '-' only$"),
        (1000, "Lungs", "data set id 1000: expected 1 to 999"),
    ],
)
def test_names_that_cannot_be_used_are_told_with_one_that_can(
    tmp_path: Path, number: int, name: str, message: str
) -> None:
    with pytest.raises(SetupError, match=message):
        new_dataset_folder(tmp_path, number, name)


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["-d", "Dataset501_Lungs"], "Dataset501_Lungs"),
        (["-d", "501", "--name", "Dataset501_Lungs"], "Dataset501_Lungs"),
        (["-d", "Dataset501_Lungs", "--name", "Lungs"], "Dataset501_Lungs"),
        (["-d", "501"], "-d 501: the data set needs a name, too: --name Lungs makes Dataset501_Lungs"),
        (["-d", "Lungs"], "-d Lungs: expected an id from 1 to 999, or DatasetXXX_Name"),
        (["-d", "Dataset501_Lungs", "--name", "Liver"], "are two names: give the name once"),
        (["-d", "Dataset501_Lungs", "--name", "Dataset502_Lungs"], "'Dataset502_Lungs' has the id 502"),
    ],
)
def test_a_new_data_set_is_named_by_its_id_its_name_or_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], made: str
) -> None:
    images, labels = pairs(tmp_path)
    (tmp_path / "raw").mkdir()
    folders = ["--images", str(images), "--labels", str(labels), "--nnUNet_raw", str(tmp_path / "raw")]
    code = main(["dataset", "create", *words, *folders, "--label", "tumor=1"])
    if made.startswith("Dataset"):
        assert [folder.name for folder in (tmp_path / "raw").iterdir()] == [made]
    else:
        assert code == 2
        assert made in capsys.readouterr().err
