"""Parts of a folder: nnU-Net's cut, what schedulers say, and lists that differ."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from ctseg.errors import SetupError
from ctseg.files.cases import Case, find_cases
from ctseg.predict.folder import segment_cases
from ctseg.predict.options import BatchOptions
from ctseg.predict.ownership import OwnFiles
from ctseg.predict.parts import Part, different_lists, digest_of_list, part_from
from ctseg.predict.report import Report
from ctseg.predict.review import review_folder
from tests.predict.test_ledger import labels_of
from tests.support.threshold import ThresholdPredictor, write_scan

DIFFERENT = "parts saw different lists: "


def cases_named(*names: str) -> list[Case]:
    return [Case(name, ()) for name in names]


def folded(out: Path) -> Report:
    return Report.model_validate_json((out / "report.json").read_bytes())


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def run(scans: Path, out: Path, part: Part, **options: object) -> dict[str, str]:
    cases = find_cases(scans, channels=1, own=OwnFiles)
    report = segment_cases(cases, ThresholdPredictor(), out, BatchOptions(part=part, **options))
    return {case.case: case.status for case in report.cases}


def test_parts_are_nnunets_cut_of_the_list() -> None:
    cases = cases_named(*"abcdefg")
    cut = [[case.name for case in Part(part_id, 3).of(cases)] for part_id in range(3)]
    assert cut == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert Part().of(cases) == cases
    assert not Part(2, 3).of(cases[:2])
    assert str(Part(1, 3)) == "1/3"


@pytest.mark.parametrize(("part_id", "num_parts"), [(-1, 2), (2, 2), (0, 0), (1, 1), (0, -1)])
def test_a_part_that_cannot_be_is_refused(part_id: int, num_parts: int) -> None:
    with pytest.raises(SetupError, match=f"there is no part {part_id} of {num_parts}") as caught:
        Part(part_id, num_parts)
    assert caught.value.settings == ("num_parts", "part_id")


def slurm(task: int, first: int, last: int, step: int, count: int) -> dict[str, str]:
    values = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (slurm(0, 0, 7, 1, 8), Part(0, 8)),
        (slurm(8, 1, 8, 1, 8), Part(7, 8)),
        (slurm(5, 3, 9, 2, 4), Part(1, 4)),
        (slurm(4, 4, 4, 1, 1), Part(0, 1)),
    ],
)
def test_a_task_of_a_slurm_array_is_a_part_wherever_the_array_begins(variables, expected: Part) -> None:
    assert part_from("slurm", variables) == expected


def test_a_task_of_an_array_with_gaps_is_a_part_by_its_own_number_where_the_parts_are_counted() -> None:
    gaps = slurm(5, 1, 7, 1, 3)  # --array=1,5,7
    with pytest.raises(SetupError, match="expected an array without gaps") as caught:
        part_from("slurm", gaps)
    assert caught.value.settings == ("num_parts",)
    assert part_from("slurm", gaps, 8) == Part(5, 8)


def test_a_pod_of_an_indexed_job_is_a_part() -> None:
    assert part_from("kubernetes", {"JOB_COMPLETION_INDEX": "2"}, 5) == Part(2, 5)
    with pytest.raises(SetupError, match="no part 5 of 5"):
        part_from("kubernetes", {"JOB_COMPLETION_INDEX": "5"}, 5)
    with pytest.raises(SetupError, match="number of completions"):
        part_from("kubernetes", {"JOB_COMPLETION_INDEX": "2"})


@pytest.mark.parametrize("text", [None, "", "x", "-1", "1.5", "²"])
def test_variables_that_do_not_say_which_part_are_named(text: str | None) -> None:
    variables = {} if text is None else {"JOB_COMPLETION_INDEX": text}
    with pytest.raises(SetupError, match="expected a number in JOB_COMPLETION_INDEX, "):
        part_from("kubernetes", variables, 5)


def test_the_digest_of_a_list_is_of_its_names_in_their_order() -> None:
    assert digest_of_list(cases_named("a", "b")) == digest_of_list(cases_named("a", "b"))
    others = (cases_named("b", "a"), cases_named("ab"), cases_named("a"), [], cases_named(os.fsdecode(b"a\xe4")))
    assert len({digest_of_list(cases) for cases in (*others, cases_named("a", "b"))}) == 6


def test_parts_at_once_in_one_folder_do_all_cases_once_and_leave_a_finished_report(scans: Path, tmp_path: Path) -> None:
    expected = {f"c{i}": write_scan(scans / f"c{i}.nii.gz", seed=i) for i in range(7)}
    out, statuses = tmp_path / "out", dict[int, dict[str, str]]()
    all_of_them = threading.Barrier(3)

    def one(part_id: int) -> None:
        all_of_them.wait(60)
        statuses[part_id] = run(scans, out, Part(part_id, 3))

    threads = [threading.Thread(target=one, args=(part_id,)) for part_id in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {part_id: list(done) for part_id, done in statuses.items()} == {
        0: ["c0", "c3", "c6"], 1: ["c1", "c4"], 2: ["c2", "c5"],
    }  # fmt: skip
    report = folded(out)
    assert report.finished
    assert {case.case: case.status for case in report.cases} == dict.fromkeys(expected, "ok")
    assert [case.made_by.part for case in report.cases] == [f"{i % 3}/3" for i in range(7)]
    digest = digest_of_list(find_cases(scans, channels=1))
    assert {case.made_by.list_digest for case in report.cases} == {digest}
    for name, labels in expected.items():
        assert np.array_equal(labels_of(out / f"{name}.nii.gz"), labels)
    review = review_folder(out, scans)
    assert (review.left, review.working, review.different_lists) == ((), (), None)


def test_a_part_that_never_began_is_named_by_its_cases(scans: Path, tmp_path: Path) -> None:
    for i in range(5):
        write_scan(scans / f"c{i}.nii.gz")
    for part_id in (0, 2):
        run(scans, tmp_path / "out", Part(part_id, 3))
    assert [case for case, _ in review_folder(tmp_path / "out", scans).left] == ["c1", "c4"]


def test_a_part_of_a_short_list_has_nothing_to_do(scans: Path, tmp_path: Path) -> None:
    write_scan(scans / "a.nii.gz")
    assert run(scans, tmp_path / "out", Part(3, 4)) == {}
    assert folded(tmp_path / "out").finished


def test_parts_that_saw_different_lists_are_told(scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    for name in "abc":
        write_scan(scans / f"{name}.nii.gz")
    run(scans, out, Part(0, 2))
    assert DIFFERENT not in caplog.text
    write_scan(scans / "a0.nii.gz")  # as a host sees it whose mount is newer
    run(scans, out, Part(1, 2))
    assert f"{DIFFERENT}0/2 saw 3 cases; 1/2 saw 4 cases" in caplog.text
    assert different_lists(out) is not None
    assert review_folder(out, scans).different_lists == different_lists(out)
    run(scans, out, Part(0, 2), continue_prediction=True)
    assert different_lists(out) is None
    assert review_folder(out, scans).left == ()


def test_a_folder_that_is_cut_into_other_parts_forgets_the_lists_of_before(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in "ab":
        write_scan(scans / f"{name}.nii.gz")
        run(scans, out, Part(0 if name == "a" else 1, 2))
    assert different_lists(out) is not None
    run(scans, out, Part(0, 3))
    assert different_lists(out) is None


def test_label_maps_beside_the_scans_are_in_no_parts_list(scans: Path) -> None:
    for name in "abcd":
        write_scan(scans / f"{name}_0000.nii.gz")
    for part_id in (0, 1):
        assert len(run(scans, scans, Part(part_id, 2))) == 2
    assert different_lists(scans) is None


def test_a_label_map_that_another_run_is_putting_beside_the_scans_is_no_scan(scans: Path) -> None:
    for name in "ab":
        write_scan(scans / f"{name}_0000.nii.gz")
    listed = OwnFiles(scans)  # asked only after the folder was listed
    run(scans, scans, Part(0, 2))
    assert "a.nii.gz" in listed
    claims = scans / ".ctseg" / "claims"
    (claims / "b-0.json").write_text('{"run": "another", "putting": {"b.nii.gz": "0"}}')
    assert "b.nii.gz" in OwnFiles(scans)
    assert "c.nii.gz" not in OwnFiles(scans)
