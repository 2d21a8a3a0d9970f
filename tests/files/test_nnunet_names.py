"""Names of files in a data set: what is wrong with many of them is told once, by what has to be renamed."""

from pathlib import Path

import pytest

from ctseg.files.dataset_cases import DatasetCases
from ctseg.files.nnunet_names import find_dataset_cases


def find(
    folder: Path, images: list[str], labels: list[str], *, ending: str | None = ".nii.gz", channels: int = 1
) -> DatasetCases:
    for part, names in (("imagesTr", images), ("labelsTr", labels)):
        (folder / part).mkdir()
        for name in names:
            (folder / part / name).write_bytes(b"")
    return find_dataset_cases(folder, file_ending=ending, channels=channels)


def told(found: DatasetCases) -> list[tuple[str, str]]:
    return [(problem.kind, problem.message) for problem in found.problems]


def complete(found: DatasetCases) -> list[str]:
    return [case.name for case in found.cases if case.label is not None and None not in case.channels]


def test_images_without_a_channels_number_are_told_what_to_be_renamed_to(tmp_path: Path) -> None:
    names = [f"case{i}.nii.gz" for i in range(5)]
    found = find(tmp_path, names, names)
    assert told(found) == [
        (
            "channel_number",
            "5 images in imagesTr whose names do not end in the number of a channel (_0000 for the first): rename "
            "case0.nii.gz to case0_0000.nii.gz, case1.nii.gz to case1_0000.nii.gz, case2.nii.gz to case2_0000.nii.gz "
            "and so on (`ctseg dataset create` copies them under right names)",
        )
    ]
    assert complete(found) == ["case0", "case1", "case2", "case3", "case4"]


def test_short_numbers_of_channels_are_told_with_four_digits(tmp_path: Path) -> None:
    found = find(tmp_path, ["a_0.nii.gz", "a_1.nii.gz"], ["a.nii.gz"], channels=2)
    ((kind, text),) = told(found)
    assert kind == "channel_number"
    assert "rename a_0.nii.gz to a_0000.nii.gz, a_1.nii.gz to a_0001.nii.gz (" in text
    assert complete(found) == ["a"]


def test_a_case_whose_name_ends_in_digits_keeps_them(tmp_path: Path) -> None:
    found = find(tmp_path, ["patient_12.nii.gz"], ["patient_12.nii.gz"])
    assert "rename patient_12.nii.gz to patient_12_0000.nii.gz" in told(found)[0][1]


def test_label_maps_with_the_number_of_a_channel_are_told_without(tmp_path: Path) -> None:
    names = ["a_0000.nii.gz", "b_0000.nii.gz"]
    found = find(tmp_path, names, names)
    ((kind, text),) = told(found)
    assert kind == "channel_number"
    assert "2 label maps in labelsTr with the number of a channel: rename a_0000.nii.gz to a.nii.gz, " in text
    assert complete(found) == ["a", "b"]


@pytest.mark.parametrize(
    ("said", "found"),
    [(".nrrd", "file_ending is '.nrrd'"), ("nii.gz", "file_ending is 'nii.gz'"), (None, "is missing")],
)
def test_a_wrong_file_ending_is_one_problem_with_the_right_one(tmp_path: Path, said: str | None, found: str) -> None:
    cases = find(tmp_path, ["a_0000.nii.gz", "b_0000.nii.gz"], ["a.nii.gz", "b.nii.gz"], ending=said)
    ((kind, text),) = told(cases)
    assert kind == "file_ending"
    assert found in text
    assert text.endswith('4 of 4 files end in .nii.gz: write "file_ending": ".nii.gz"')
    assert complete(cases) == ["a", "b"]


def test_many_files_of_other_formats_are_told_together(tmp_path: Path) -> None:
    found = find(tmp_path, ["a_0000.nii.gz", *(f"b{i}_0000.nrrd" for i in range(4))], ["a.nii.gz"])
    assert told(found) == [
        (
            "surplus_file",
            "imagesTr: 4 files, b0_0000.nrrd, b1_0000.nrrd, b2_0000.nrrd and others: expected names like "
            "case_0000.nii.gz; `ctseg dataset create` reads other formats",
        )
    ]


def test_hidden_files_that_nnunet_takes_for_images_are_told(tmp_path: Path) -> None:
    found = find(tmp_path, ["a_0000.nii.gz", "._a_0000.nii.gz"], ["a.nii.gz", "._a.nii.gz"])
    ((kind, text),) = told(found)
    assert kind == "hidden_file"
    assert "1 hidden files, such as ._a_0000.nii.gz, which nnU-Net takes for images: remove them" in text
    assert complete(found) == ["a"]


@pytest.mark.parametrize(
    ("images", "labels", "why"),
    [
        (["a_0000.nii.gz", "b_0000.nii.gz"], ["a_seg.nii.gz", "b_seg.nii.gz"], "the label maps end in '_seg'"),
        (["a_ct_0000.nii.gz"], ["a.nii.gz"], "the images end in '_ct'"),
        (["a_0000.nii.gz"], ["x.nii.gz"], "their names have to be the same"),
    ],
)
def test_names_that_never_agree_are_one_problem(tmp_path: Path, images: list[str], labels: list[str], why: str) -> None:
    found = find(tmp_path, images, labels)
    ((kind, text),) = told(found)
    assert kind == "names"
    assert why in text


def test_a_folder_without_label_maps_is_one_problem(tmp_path: Path) -> None:
    found = find(tmp_path, ["a_0000.nii.gz", "b_0000.nii.gz"], [])
    assert told(found) == [("no_label_maps", f"no label maps in {tmp_path / 'labelsTr'} for a, b")]
