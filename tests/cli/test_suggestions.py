"""What is misspelled is told with what may be meant, by every command."""

import argparse

import pytest

from ctseg.cli.main import build_parser, main
from ctseg.cli.parser import Parser
from ctseg.cli.suggestions import meant_flags, meant_word, unknown_flags


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train 101 3d_fullres 0 --num_epochs 5", "ctseg train: unknown flag --num_epochs: did you mean --epochs?"),
        ("train 101 3d_fullres 0 --learning-rate 1", "unknown flag --learning_rate: did you mean --lr?"),
        (
            "train 101 3d_fullres 0 --num_epoch=5 --itertions_per_epoch 2",
            "mean --epochs?; unknown flag --itert",
        ),
        ("train 101 3d_fullres 0 --continue", "did you mean --c?"),
        ("train 101 3d_fullres -chk x", "ctseg train: unknown flag -chk (see"),
        ("train 101 3d_fullres 0 -device gpu", "'gpu' is unknown: did you mean cuda?"),
        # the misspelled flag is told, not what is missing because of it
        ("predict --inptu in -o out", "ctseg predict: unknown flag --inptu: did you mean --input?"),
        ("find-best 101 --fold 0", "did you mean -f?"),
        ("build --backend tensort", "'tensort' is unknown: did you mean tensorrt?"),
        ("tran 101", "ctseg: argument COMMAND: 'tran' is unknown: did you mean train?"),
        ("nnUNetv2_train 101 3d_fullres 0", "did you mean train?"),
        ("find_best 101", "did you mean find-best?"),
        ("dataset creat", "ctseg dataset: argument ACTION: 'creat' is unknown: did you mean create?"),
        ("--verbos predict", "ctseg: unknown flag --verbos"),
        ("qqqq", "invalid choice: 'qqqq'"),
    ],
)
def test_a_misspelled_word_is_told_with_what_may_be_meant(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words.split())
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [leaf for child in set(action.choices.values()) for leaf in commands(child)]
    return found or [parser]


def test_every_flag_of_every_command_is_found_again_with_a_letter_too_few() -> None:
    missed = []
    for command in commands(build_parser()):
        assert isinstance(command, Parser)
        for action in command._actions:
            for option in (flag for flag in action.option_strings if len(flag) > 6):
                meant = meant_flags(option[:-2] + option[-1], command._actions)
                missed += [] if set(meant) & set(action.option_strings) else [f"{command.prog} {option}"]
    assert missed == []


@pytest.mark.parametrize(
    ("words", "unknown"),
    [
        (["-f0", "-f", "-1", "-np", "4", "--c", "--lr=-1e-3"], []),
        (["-chk", "x", "-npz", "--", "--foo"], ["-chk", "-npz"]),
        (["--lrr=1", "a b", "-"], ["--lrr"]),
    ],
)
def test_numbers_and_values_are_no_flags(words: list[str], unknown: list[str]) -> None:
    assert unknown_flags(words, ["-f", "-c", "-np", "--c", "--lr", "-n"]) == unknown


def test_far_words_mean_nothing() -> None:
    assert meant_word("triton", ["train", "predict"]) != "predict"
    assert meant_word("zzz", ["train", "predict"]) is None
