"""The words that name folds."""

import pytest

from ctseg.errors import SetupError
from ctseg.nnunet.folds import parse_folds


def test_all_after_f_is_the_five_folds() -> None:
    assert parse_folds(["all"]) == (0, 1, 2, 3, 4)
    assert parse_folds(["3", "all"]) == (3, 0, 1, 2, 4)


def test_full_is_nnunets_fold_all() -> None:
    assert parse_folds(["full"], positional=True) == ("all",)


def test_positional_all_is_refused_with_both_meanings() -> None:
    with pytest.raises(SetupError, match=r"`-f all` trains the five folds.*`full` trains one network on every case"):
        parse_folds(["all"], positional=True)


@pytest.mark.parametrize("word", ["-1", "1.5", "fold_0", ""])
def test_anything_else_is_refused(word: str) -> None:
    with pytest.raises(SetupError, match="is unknown"):
        parse_folds([word])
