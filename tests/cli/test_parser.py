"""One dialect of flags; errors that name the flags of their command."""

import argparse
import re
from collections.abc import Iterator

import pytest

from ctseg.cli.main import build_parser, main
from ctseg.cli.parser import Parser, snake_case_flags, worded
from ctseg.errors import ServerTimeoutError, SetupError

NNUNETS = {"-i", "-o", "-m", "-d", "-c", "-f", "-p", "-tr", "-chk", "-pl", "-np", "-h", "-step_size", "-device"}
NNUNETS |= {
    "-pretrained_weights",
    "-num_gpus",
    "-num_parts",
    "-val_best",
    "-part_id",
    "--nnUNet_raw",
    "--nnUNet_preprocessed",
    "--nnUNet_results",
    "-prev_stage_predictions",
}
NNUNETS |= {"-djfile", "-pfile", "-l", "-il"}  # of its evaluation
OURS = {"-r"}
"""References: no command of nnU-Net's has a letter for them."""


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in set(action.choices.values()):
                yield from parsers(child)


def flags() -> list[tuple[argparse.ArgumentParser, str]]:
    return [(p, flag) for p in parsers(build_parser()) for action in p._actions for flag in action.option_strings]


def test_every_flag_is_snake_case_or_nnunets() -> None:
    strange = {
        flag
        for _, flag in flags()
        if flag not in NNUNETS | OURS and not re.fullmatch(r"--[a-z0-9]+(_[a-z0-9]+)*", flag)
    }
    assert strange == set()
    assert len(flags()) > 100


def test_every_command_is_of_the_dialect() -> None:
    assert all(isinstance(parser, Parser) for parser in parsers(build_parser()))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["build", "--max-batch-size", "4"], ["build", "--max_batch_size", "4"]),
        (["--max-batch-size=4", "-step_size", "0.5"], ["--max_batch_size=4", "-step_size", "0.5"]),
        (["--name=a-b", "a-b", "--", "--not-a-flag"], ["--name=a-b", "a-b", "--", "--not-a-flag"]),
        (["-tr", "my-trainer", "-pretrained_weights", "x-y"], ["-tr", "my-trainer", "-pretrained_weights", "x-y"]),
    ],
)
def test_kebab_case_is_respelled_and_values_stay(words: list[str], expected: list[str]) -> None:
    assert snake_case_flags(words) == expected


def test_old_spellings_of_build_are_accepted() -> None:
    words = ["build", "b", "--repository", "r", "--max-batch-size", "3", "--max-queue-delay-us=7", "--accept-unproven"]
    words += ["--workspace-mb", "9", "--builder-level", "1", "--timing-cache", "t", "--server-tensorrt", "11.0"]
    args = build_parser().parse_args(words)
    assert (args.max_batch_size, args.max_queue_delay_us, args.accept_unproven) == (3, 7, True)
    assert (args.workspace_mb, args.builder_level, str(args.timing_cache)) == (9, 1, "t")
    assert args.server_tensorrt == "11.0"


@pytest.mark.parametrize("word", ["--no-amp", "--no_amp"])
def test_mixed_precision_is_on_off_or_unsaid(word: str) -> None:
    parser = build_parser()
    assert parser.parse_args(["train", "1", "2d", "0"]).amp is None
    assert parser.parse_args(["train", "1", "2d", "0", "--amp"]).amp is True
    assert parser.parse_args(["train", "1", "2d", "0", word]).amp is False


def test_folds_may_stand_after_flags_as_for_nnunet() -> None:
    args = build_parser().parse_args(["train", "101", "3d_fullres", "-tr", "T", "0", "--epochs", "3", "1"])
    assert args.positional_folds == ["0", "1"]
    assert (args.dataset, args.configuration, args.trainer, args.epochs) == ("101", "3d_fullres", "T", 3)


def test_an_unknown_flag_is_refused_also_where_words_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["train", "101", "3d_fullres", "0", "--epocs", "3"])
    assert caught.value.code == 2
    assert "--epocs" in capsys.readouterr().err


def test_abbreviations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["predict", "-i", "a", "-o", "b", "-m", "c", "--time", "3"])
    assert "--time" in capsys.readouterr().err


def test_an_error_is_worded_with_the_flags_that_the_command_has() -> None:
    error = ServerTimeoutError("m: too slow", settings=("case_timeout_s", "urls", "trust_checkpoint"))
    predict = build_parser().parse_args(["predict", "-i", "a", "-o", "b", "-m", "c"]).parser
    export = build_parser().parse_args(["export", "-o", "b"]).parser
    assert worded(error, predict) == "ServerTimeoutError: m: too slow (see --case_timeout_s, --url)"
    assert worded(error, export) == "ServerTimeoutError: m: too slow (see --trust_checkpoint)"
    assert worded(SetupError("m: no"), predict) == "SetupError: m: no"


def test_main_words_an_error_and_exits_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise SetupError("no server", settings=("urls",))

    monkeypatch.setattr("ctseg.cli.predict._run", fail)
    assert main(["predict", "-i", "a", "-o", "b", "-m", "c"]) == 2
    assert capsys.readouterr().err == "SetupError: no server (see --url)\n"
