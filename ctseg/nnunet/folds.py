"""The words by which folds are named on the command line, the same in training, export and find-best.

``all`` is five folds after ``-f``; as a positional word it means "train on every case" in nnU-Net,
and the two are easily confused, so there it is refused. The training on every case is ``full``.
"""

from collections.abc import Sequence
from typing import Literal

from ctseg.errors import SetupError

Fold = int | Literal["all"]
"""A fold as nnU-Net names it: ``fold_0`` … or ``fold_all`` (trained on every case)."""

CROSS_VALIDATION_FOLDS: tuple[int, ...] = (0, 1, 2, 3, 4)


def parse_folds(words: Sequence[str], *, positional: bool = False) -> tuple[Fold, ...]:
    """Turn words into folds, in the order given, each once.

    Args:
        words: Numbers, ``all`` (the five folds of the cross-validation) or ``full`` (every case).
        positional: The words stand where ``nnUNetv2_train`` has its fold.

    Raises:
        SetupError: A word is none of these, or ``all`` stands where its meaning is ambiguous.
    """
    folds: dict[Fold, None] = {}
    for word in words:
        if word == "all" and positional:
            raise SetupError(
                "fold 'all' is ambiguous: `-f all` trains the five folds of the cross-validation; "
                "`full` trains one network on every case, which is what nnU-Net means by `all` here"
            )
        if word == "all":
            folds.update(dict.fromkeys(CROSS_VALIDATION_FOLDS))
        elif word == "full":
            folds["all"] = None
        elif word.isdecimal():
            folds[int(word)] = None
        else:
            raise SetupError(f"fold {word!r} is unknown: give a number, `-f all` (five folds) or `full` (every case)")
    return tuple(folds)
