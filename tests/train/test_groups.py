"""Folds that keep the scans of a patient together."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ctseg.cli.main import main
from ctseg.errors import InputError, SetupError
from ctseg.train.groups import group_cases, grouped_splits
from tests.support.small_datasets import image, labels, write

SCANS = {"anna": 4, "bert": 1, "carl": 3, "dora": 1, "emil": 2, "finn": 1, "gina": 2, "hans": 1}
CASES = [f"{patient}_{scan}" for patient, scans in SCANS.items() for scan in range(scans)]


def test_no_patient_is_in_training_and_validation_and_folds_are_even() -> None:
    splits = grouped_splits(group_cases(CASES, "[^_]+"))
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(CASES)
    for fold in splits:
        assert sorted([*fold["train"], *fold["val"]]) == sorted(CASES)
        assert not {case.split("_")[0] for case in fold["train"]} & {case.split("_")[0] for case in fold["val"]}
    # 15 cases: anna's four are together, so that 3 in each cannot be
    assert sorted(len(fold["val"]) for fold in splits) == [2, 3, 3, 3, 4]
    assert splits == grouped_splits(group_cases(list(reversed(CASES)), "[^_]+"))


def test_groups_of_one_are_folds_of_one_size_that_follow_no_alphabet() -> None:
    cases = [f"case{i:02d}" for i in range(10)]
    validated = [fold["val"] for fold in grouped_splits(group_cases(cases, ".*"))]
    assert Counter(map(len, validated)) == {2: 5}
    assert [case for fold in validated for case in fold] != cases


def test_what_a_rule_takes_from_a_name_is_the_group() -> None:
    assert group_cases(["s1_anna_2", "s2_anna_1"], r"s\d_([a-z]+)") == {"s1_anna_2": "anna", "s2_anna_1": "anna"}
    assert group_cases(["a1_x", "b2_x"], r"(\w)(\d)") == {"a1_x": "a|1", "b2_x": "b|2"}


def test_a_table_gives_groups_by_its_second_or_a_named_column(tmp_path: Path) -> None:
    table = tmp_path / "scans.csv"
    table.write_text("case,site,patient\nx,A,1\ny,A,2\nz,B,1\n")
    assert group_cases(["x", "y", "z"], str(table)) == {"x": "A", "y": "A", "z": "B"}
    assert group_cases(["x", "y", "z"], f"{table}:patient") == {"x": "1", "y": "2", "z": "1"}
    with pytest.raises(InputError, match=r"no group for w: "):
        group_cases(["x", "w"], str(table))
    with pytest.raises(SetupError, match="no column 'age'"):
        group_cases(["x"], f"{table}:age")


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ("[", SetupError, "is no regular expression"),
        (r"\d", InputError, "no group for anna_0, anna_1, anna_2, anna_3, bert_0 and 10 more"),
        ("gone.csv", SetupError, "gone.csv: no such file of groups"),
    ],
)
def test_rules_that_cannot_be_used_are_told(rule: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        group_cases(CASES, rule)


def test_a_table_with_a_case_in_two_groups_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("case,patient\na,1\nb,2\na,2\n")
    with pytest.raises(InputError, match=r"p\.csv: a is in two groups, 1 and 2"):
        group_cases(["a", "b"], str(tmp_path / "p.csv"))


def test_fewer_groups_than_folds_are_told_with_their_sizes() -> None:
    with pytest.raises(
        InputError, match=r"2 groups are fewer than the five folds .* found a \(2 cases\), b \(1 case\)"
    ):
        grouped_splits({"a1": "a", "a2": "a", "b1": "b"})


def test_create_writes_the_folds_where_nnunet_takes_them_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in CASES:
        write(tmp_path / "images" / f"{case}.nii.gz", image())
        write(tmp_path / "labels" / f"{case}.nii.gz", labels())
    (tmp_path / "raw").mkdir()
    words = ["dataset", "create", "-d", "Dataset009_Toy", "--label", "a=1", "--nnUNet_raw", str(tmp_path / "raw")]
    words += ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    assert main([*words, "--group_by", "[a-d]"]) == 2
    assert "no group for emil_0, emil_1, finn_0, gina_0, gina_1 and 1 more" in (said := capsys.readouterr().err)
    assert "(see --group_by)" in said
    assert main([*words, "--group_by", "[a-z]+"]) == 0
    written = json.loads((tmp_path / "raw" / "Dataset009_Toy" / "splits_final.json").read_text())
    assert written == grouped_splits(group_cases(CASES, "[a-z]+"))
