"""Which files make a case, and what is wrong with those that make none."""

import pytest

from ctseg.errors import InputError
from ctseg.files.cases import find_cases


def touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def found(folder, channels=1):
    """Names of files by case; of a case with a problem, the problem."""
    return {
        case.name: case.problem if case.problem else [path.name for path in case.paths]
        for case in find_cases(folder, channels=channels)
    }


def test_nnunet_names_and_plain_names_side_by_side(tmp_path):
    touch(tmp_path, "b_0000.nii.gz", "a.nii.gz", "c.nrrd", "d_0000.mha", "e.NII.GZ", "f.nii")
    assert found(tmp_path) == {
        "a": ["a.nii.gz"],
        "b": ["b_0000.nii.gz"],
        "c": ["c.nrrd"],
        "d": ["d_0000.mha"],
        "e": ["e.NII.GZ"],
        "f": ["f.nii"],
    }


def test_cases_come_in_the_order_of_their_names(tmp_path):
    touch(tmp_path, "z.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "B.nii.gz")
    assert [case.name for case in find_cases(tmp_path, channels=1)] == ["B", "a", "b", "z"]


def test_channels_come_in_the_order_of_their_numbers(tmp_path):
    touch(tmp_path, "a_0001.nii.gz", "a_0000.nrrd", "b_c_0000.nii.gz", "b_c_0001.nii.gz")
    assert found(tmp_path, channels=2) == {
        "a": ["a_0000.nrrd", "a_0001.nii.gz"],
        "b_c": ["b_c_0000.nii.gz", "b_c_0001.nii.gz"],
    }


def test_number_at_the_end_of_a_plain_name_is_part_of_it(tmp_path):
    touch(tmp_path, "scan_2023.nii.gz", "scan_2024.nii.gz", "p_00001.nii.gz", "_0000.nii.gz")
    assert found(tmp_path) == {
        "_0000": ["_0000.nii.gz"],
        "p_00001": ["p_00001.nii.gz"],
        "scan_2023": ["scan_2023.nii.gz"],
        "scan_2024": ["scan_2024.nii.gz"],
    }


def test_other_files_and_folders_are_passed_over(tmp_path):
    touch(tmp_path, "a.nii.gz", "report.json", "notes.txt", ".hidden.nii.gz", ".a.nii.gz.12.tmp.nii.gz", "nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    assert found(tmp_path) == {"a": ["a.nii.gz"]}


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        (["x_0001.nii.gz"], 2, "add x_0000"),
        (["x_0000.nii.gz"], 3, "add x_0001, x_0002"),
        (["x_0000.nii.gz", "x_0001.nii.gz"], 1, "take the other channels away"),
        (["x_0000.nii.gz", "x_0001.nii.gz", "x_0002.nii.gz"], 2, "take the other channels away"),
        (["x.nii.gz", "x_0000.nii.gz"], 1, "more than one file for channel 0"),
        (["x.nii.gz", "x.nii"], 1, "more than one file for channel 0"),
        (["x_0000.nii.gz", "x_0000.mha"], 1, "more than one file for channel 0"),
        (["x_0000.nii.gz", "x_0001.nii.gz", "x_0001.nii"], 2, "more than one file for channel 1"),
        (["x.nii.gz"], 2, "add the number of the channel"),
        (["x.nii.gz", "x_0000.nii.gz", "x_0001.nii.gz"], 2, "add the number of the channel"),
    ],
    ids=str,
)
def test_bad_case_has_a_problem_and_stops_no_other(names, channels, expected, tmp_path):
    good = [f"good_{channel:04d}.nii.gz" for channel in range(channels)]
    touch(tmp_path, *names, *good)
    cases = found(tmp_path, channels)
    assert cases.pop("good") == good
    problem = cases.pop("x")
    assert not cases  # no two cases would write the same label map
    assert problem.startswith("case x: expected")
    assert expected in problem
    assert all(name in problem for name in names)


def test_one_scan_is_a_case_whatever_lies_beside_it(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "b.mha")
    for name, case in {"a.nii.gz": "a", "a_0000.nii.gz": "a", "a_0001.nii.gz": "a_0001", "b.mha": "b"}.items():
        assert found(tmp_path / name) == {case: [name]}


def test_one_channel_stands_for_its_case(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    assert found(tmp_path / "a_0001.nii.gz", channels=2) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    assert "add b_0001" in found(tmp_path / "b_0000.nii.gz", channels=2)["b"]


def test_nothing_to_segment_is_an_error(tmp_path):
    with pytest.raises(InputError, match="an empty folder"):
        find_cases(tmp_path, channels=1)
    touch(tmp_path, "1.dcm", "2.dcm", "a.txt")
    with pytest.raises(InputError, match=r"2 of \.dcm, 1 of \.txt: convert DICOM"):
        find_cases(tmp_path, channels=1)
    with pytest.raises(InputError, match="convert it"):
        find_cases(tmp_path / "1.dcm", channels=1)
    with pytest.raises(InputError, match="No such file"):
        find_cases(tmp_path / "missing", channels=1)
