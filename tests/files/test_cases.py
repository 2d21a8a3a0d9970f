"""Which files make a case, and what is wrong with those that make none."""

import logging
import os
import sys

import pytest

from ctseg.errors import InputError, SetupError
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
    touch(tmp_path, "1.dcm", "2.DCM", "a.txt")
    with pytest.raises(
        InputError, match=r"expected scans \(DICOM, .*\), found 2 files ending in \.dcm, 1 file ending in \.txt"
    ):
        find_cases(tmp_path, channels=1)
    with pytest.raises(InputError, match=r"found a file ending in \.dcm: convert it"):
        find_cases(tmp_path / "1.dcm", channels=1)
    with pytest.raises(InputError, match=r"found a file ending in \.txt: convert it"):
        find_cases(tmp_path / "a.txt", channels=1)
    with pytest.raises(InputError, match="No such file"):
        find_cases(tmp_path / "missing", channels=1)


def test_one_warning_counts_what_was_passed_over_by_kind(tmp_path, caplog):
    touch(
        tmp_path, "a.nii.gz", "b.mhd", "b.raw", "x.hdr", "x.img", "y.HDR", "._a.nii.gz", "._b", ".hidden.nii", "n.txt"
    )
    touch(tmp_path, ".DS_Store", "scans.zip", "report.json")
    (tmp_path / "patient").mkdir()
    touch(tmp_path / "patient", "scan.nii.gz")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with caplog.at_level(logging.INFO):
        cases = find_cases(tmp_path, channels=1, own=lambda _: {"report.json"})
    assert [case.name for case in cases] == ["a", "b"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{tmp_path}: passed over 1 archive (unpack it), 3 files of Analyze or NIfTI in two pieces (convert .hdr and "
        ".img to .nii.gz), 1 file ending in .txt, 1 file without an ending, 2 hidden files of macOS (._…), 1 hidden "
        "scan; 1 folder with scans (looked into only when that is asked for)"
    )


def test_a_folder_of_scans_alone_is_not_warned_of(tmp_path, caplog):
    touch(tmp_path, "a.nii.gz", "b.nhdr", "b.raw.gz")
    (tmp_path / "empty").mkdir()
    find_cases(tmp_path, channels=1)
    assert not caplog.records


def test_folders_of_patients_are_told_with_what_would_help(tmp_path):
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
        touch(tmp_path / name, "scan.nii.gz")
    with pytest.raises(InputError, match=r"2 folders, in which lie scans in p1 and others: give one") as caught:
        find_cases(tmp_path, channels=1)
    assert caught.value.settings == ("recursive",)


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found_below(folder, **options):
    return {
        case.name: case.problem or [str(path.relative_to(folder)) for path in case.paths]
        for case in find_cases(folder, recursive=True, **{"channels": 1, **options})
    }


def test_cases_of_sub_folders_are_named_by_their_place(tmp_path):
    tree(tmp_path, "a.nii.gz", "p1/ct_0000.nii.gz", "p1/late/ct.mha", "p2/ct.nii", "p2/0001.nii.gz", ".git/x.nii.gz")
    assert found_below(tmp_path) == {
        "a": ["a.nii.gz"],
        "p1_ct": ["p1/ct_0000.nii.gz"],
        "p1_late_ct": ["p1/late/ct.mha"],
        "p2_0001": ["p2/0001.nii.gz"],
        "p2_ct": ["p2/ct.nii"],
    }


def test_channels_lie_in_one_folder_and_two_scans_of_one_name_are_both_named(tmp_path):
    tree(tmp_path, "a/x_0000.nii.gz", "a/x_0001.nii.gz", "b/c_d_0000.nii.gz", "b/c_d_0001.nii.gz", "b_c/d_0000.nii.gz")
    cases = found_below(tmp_path, channels=2)
    assert cases.pop("a_x") == ["a/x_0000.nii.gz", "a/x_0001.nii.gz"]
    problem = cases.pop("b_c_d")
    assert problem.startswith("case b_c_d: expected a name of its own for each label map")
    assert all(name in problem for name in ("b/c_d_0000.nii.gz", "b/c_d_0001.nii.gz", "b_c/d_0000.nii.gz"))
    assert not cases


def test_outputs_hidden_folders_and_circles_of_links_are_not_entered(tmp_path, caplog):
    tree(tmp_path, "p/x.nii.gz", "out/y.nii.gz", "p/done.nii.gz", ".ctseg/z.nii.gz")
    (tmp_path / "p" / "up").symlink_to(tmp_path)
    (tmp_path / "a_link").symlink_to("p")
    (tmp_path / "a_circle").symlink_to("a_circle")
    own = {tmp_path / "p": {"done.nii.gz"}}
    cases = found_below(tmp_path, not_into=(tmp_path / "out",), own=lambda folder: own.get(folder, ()))
    assert cases == {"p_x": ["p/x.nii.gz"]}
    assert "2 links to a folder that has been looked into" in caplog.text


def test_what_lies_behind_a_link_is_found(tmp_path):
    tree(tmp_path, "elsewhere/ct.nii.gz", "in/a.nii.gz")
    (tmp_path / "in" / "p7").symlink_to(tmp_path / "elsewhere")
    assert sorted(found_below(tmp_path / "in")) == ["a", "p7_ct"]


def test_a_sub_folder_that_cannot_be_read_fails_by_its_name_and_the_others_go_on(tmp_path, monkeypatch):
    tree(tmp_path, "p1/ct.nii.gz", "p2/ct.nii.gz")
    really = os.scandir

    def scandir(folder):
        if str(folder).endswith("p1"):
            raise PermissionError(13, "Permission denied", str(folder))
        return really(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    cases = found_below(tmp_path)
    assert cases.pop("p2_ct") == ["p2/ct.nii.gz"]
    assert cases.pop("p1").startswith("case p1: ")
    assert not cases


def test_scans_that_need_simpleitk_are_told_by_name_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    touch(tmp_path, "a.nii.gz", "b.MHA")
    cases = found(tmp_path)
    assert cases["a"] == ["a.nii.gz"]
    assert "case b: b.MHA: a .MHA file needs SimpleITK" in cases["b"]
    with pytest.raises(SetupError, match=r"b\.MHA: a \.MHA file needs SimpleITK"):
        find_cases(tmp_path / "b.MHA", channels=1)


def test_links_that_lead_nowhere_are_cases_all_the_same(tmp_path):
    touch(tmp_path, "good.nii.gz")
    (tmp_path / "gone.nii.gz").symlink_to("nowhere")
    (tmp_path / "self.nii.gz").symlink_to("self.nii.gz")
    assert sorted(found(tmp_path)) == ["gone", "good", "self"]
    for name in ("gone", "self"):
        with pytest.raises(InputError, match=f"{name}.nii.gz: expected a scan or a folder of scans: "):
            find_cases(tmp_path / f"{name}.nii.gz", channels=1)


def test_one_scan_that_is_no_file_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match="is a named pipe, not a file"):
        find_cases(tmp_path / "x.nii.gz", channels=1)
