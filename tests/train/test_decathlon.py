"""Tasks of the Medical Segmentation Decathlon become the data sets that nnU-Net's own converter makes of them."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctseg.cli.main import main
from ctseg.train.decathlon import read_decathlon_task
from tests.support.small_datasets import affine, image, labels, pairs, write


def task(folder: Path, *, channels: int = 2) -> Path:
    """Write ``Task09_Toy`` as it is unpacked on a Mac."""
    made = folder / "Task09_Toy"
    for i in range(3):
        joined = np.stack([image(10 * channel + i) for channel in range(channels)])
        write(made / "imagesTr" / f"toy_{i:03d}.nii.gz", joined if channels > 1 else joined[0])
        write(made / "labelsTr" / f"toy_{i:03d}.nii.gz", labels())
        for part in ("imagesTr", "labelsTr"):
            (made / part / f"._toy_{i:03d}.nii.gz").write_bytes(b"\x00\x05\x16\x07 of a Mac")
    joined = np.stack([image(10 * channel + 7) for channel in range(channels)])
    write(made / "imagesTs" / "toy_007.nii.gz", joined if channels > 1 else joined[0])
    content = {
        "name": "Toy", "licence": "CC-BY-SA 4.0", "tensorImageSize": "4D", "numTraining": 3, "numTest": 1,
        "modality": {"0": "T2", "1": "ADC"} if channels == 2 else {"0": "CT"},
        "labels": {"0": "background", "1": "lung"},
        "training": [{"image": f"./imagesTr/toy_{i:03d}.nii.gz", "label": "…"} for i in range(3)],
        "test": ["./imagesTs/toy_007.nii.gz"],
    }  # fmt: skip
    (made / "dataset.json").write_text(json.dumps(content))
    return made


def create(folder: Path, *words: str) -> int:
    (folder / "raw").mkdir(exist_ok=True)
    return main(["dataset", "create", "--nnUNet_raw", str(folder / "raw"), *words])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_task_becomes_what_nnunets_converter_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    from nnunetv2.dataset_conversion import convert_MSD_dataset

    source = task(tmp_path, channels=channels)
    (tmp_path / "theirs").mkdir()
    monkeypatch.setattr(convert_MSD_dataset, "nnUNet_raw", str(tmp_path / "theirs"))
    monkeypatch.setattr(convert_MSD_dataset, "find_candidate_datasets", lambda _: [])
    convert_MSD_dataset.convert_msd_dataset(str(source), None, 1)
    assert create(tmp_path, "--msd", str(source)) == 0
    theirs, ours = tmp_path / "theirs" / "Dataset009_Toy", tmp_path / "raw" / "Dataset009_Toy"
    files = sorted(str(file.relative_to(theirs)) for file in theirs.rglob("*.nii.gz"))
    assert files == sorted(str(file.relative_to(ours)) for file in ours.rglob("*.nii.gz"))
    assert len(files) == 4 * channels + 3
    for file in files:
        one, other = nibabel.load(theirs / file), nibabel.load(ours / file)
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
        assert one.get_data_dtype() == other.get_data_dtype()
    said, said_by_theirs = (json.loads((place / "dataset.json").read_text()) for place in (ours, theirs))
    assert said == {key: said_by_theirs[key] for key in ("channel_names", "labels", "numTraining", "file_ending")}


def test_a_channel_of_four_dimensions_lies_where_it_lay(tmp_path: Path) -> None:
    assert create(tmp_path, "--msd", str(task(tmp_path)), "-d", "12", "--name", "Other") == 0
    second = nibabel.load(tmp_path / "raw" / "Dataset012_Other" / "imagesTr" / "toy_002_0001.nii.gz")
    np.testing.assert_array_equal(np.asarray(second.dataobj).T, image(12))
    np.testing.assert_allclose(second.affine, affine(), atol=1e-4)


def test_a_file_with_other_channels_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = task(tmp_path)
    write(source / "imagesTr" / "toy_001.nii.gz", image())
    assert create(tmp_path, "--msd", str(source)) == 2
    said = capsys.readouterr().err
    assert "case toy_001: toy_001.nii.gz: expected 2 channels, found a file of 7 x 6 x 5" in said
    assert not any((tmp_path / "raw").iterdir())


def test_the_flag_is_named_where_a_task_is_given_as_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = task(tmp_path)
    for images, found in ((source, "no images in"), (source / "imagesTr", "expected a 3-D volume")):
        words = ["--images", str(images), "--labels", str(source / "labelsTr"), "--label", "lung=1"]
        assert create(tmp_path, "-d", "Dataset009_Toy", *words) == 2
        said = capsys.readouterr().err
        assert f"--msd {source} takes it whole" in said
        assert found in said


def test_what_is_no_task_and_what_the_task_says_itself_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(tmp_path / "pairs")
    assert create(tmp_path, "--msd", str(tmp_path / "pairs")) == 2
    assert "no dataset.json, imagesTr, labelsTr: expected a folder of the Decathlon" in capsys.readouterr().err
    assert create(tmp_path, "--msd", str(task(tmp_path)), "--label", "lung=1") == 2
    assert "--msd says it all: leave --label out" in capsys.readouterr().err


def test_channels_are_joined_unless_every_image_is_one_of_them(tmp_path: Path) -> None:
    made = task(tmp_path)
    assert read_decathlon_task(made).folders.joined_channels
    write(made / "imagesTr" / "toy_003_0000.nii.gz", image(0))
    assert read_decathlon_task(made).folders.joined_channels
    for i in range(3):
        (made / "imagesTr" / f"toy_{i:03d}.nii.gz").rename(made / "imagesTr" / f"toy_{i:03d}_0001.nii.gz")
    assert not read_decathlon_task(made).folders.joined_channels
