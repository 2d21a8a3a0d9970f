"""What many cases have in common is told once."""

from ctseg.files.dataset_cases import DatasetProblem
from ctseg.train.problem_lines import counted, problem_lines


def surplus(case: str, value: int, voxels: int) -> DatasetProblem:
    text = f"case {case}: labels {value} ({voxels} voxels) are none of the data set's, which are 0, 1"
    return DatasetProblem(case, "unexpected_label", text)


def test_the_same_in_many_cases_is_one_line_with_their_number_and_names() -> None:
    problems = [surplus(f"s{i:02}", 255, 100 + i) for i in range(20)]
    (line,) = problem_lines(problems, kinds=True)
    assert line == (
        "[unexpected_label] case s00: labels 255 (100 voxels) are none of the data set's, which are 0, 1; the same is "
        "wrong with 19 other cases: s01, s02, s03, s04, s05, s06, s07, s08, s09, s10, s11, s12 and 7 more"
    )


def test_another_value_among_many_has_its_own_line() -> None:
    problems = [*(surplus(f"s{i}", 255, i) for i in range(4)), surplus("t", 7, 3)]
    assert problem_lines(problems)[1] == problems[-1].message
    assert len(problem_lines(problems)) == 2


def test_few_cases_have_a_line_each_and_what_is_of_no_case_stays() -> None:
    whole = [DatasetProblem(None, "num_training", f"dataset.json: number {i}") for i in range(5)]
    problems = [surplus("a", 2, 1), surplus("b", 2, 9), surplus("c", 2, 5), *whole]
    assert problem_lines(problems) == [problem.message for problem in problems]


def test_names_of_files_and_millimetres_do_not_tell_cases_apart() -> None:
    problems = [
        DatasetProblem(f"s{i}", "unreadable", f"case s{i}: s{i}_0000.nii.gz: {0.5 * i:.4g} mm apart") for i in range(4)
    ]
    assert problem_lines(problems) == [
        "case s0: s0_0000.nii.gz: 0 mm apart; the same is wrong with 3 other cases: s1, s2, s3"
    ]


def test_a_number_has_its_plural() -> None:
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
