"""CTSEG_BUILD_OPTIONS takes the words of `ctseg build`, and means the same by them."""

import argparse
from typing import Any

import pytest

from ctseg.cli.main import build_parser
from ctseg.container.build_words import BuildWords
from ctseg.deploy.build import BuildOptions

NOT_FOR_A_SERVER = {"help", "bundle", "repository", "output", "quiet", "verbose"}


def actions_of_build() -> list[argparse.Action]:
    (commands,) = (item for item in build_parser()._actions if isinstance(item, argparse._SubParsersAction))
    return [item for item in commands.choices["build"]._actions if item.dest not in NOT_FOR_A_SERVER]


def test_they_are_the_words_of_the_command_with_its_defaults() -> None:
    expected: dict[str, Any] = {item.dest: item.default for item in actions_of_build()}
    # a server has defaults of its own for these
    expected.update(backend="tensorrt", if_needed=True)
    assert BuildWords().model_dump() == expected


def test_words_become_the_options_of_a_build() -> None:
    words = BuildWords.from_text(
        "--backend python --device gpu --runtime=openvino --max-batch-size 2 --instances 3 --warmup --builder_level 5"
    )
    options = words.options()
    assert options.plan is not None
    assert (options.plan.opt_batch, options.plan.max_batch, options.plan.optimization_level) == (2, 2, 5)
    assert options == BuildOptions(
        backend="python",
        device="gpu",
        runtime="openvino",
        max_batch_size=2,
        instance_count=3,
        warmup=True,
        if_needed=True,
        plan=options.plan,
    )


def test_a_value_may_hold_spaces_and_dashes() -> None:
    words = BuildWords.from_text("--timing_cache '/a folder/with-dashes' --server-tensorrt 11.2")
    assert (str(words.timing_cache), words.server_tensorrt) == ("/a folder/with-dashes", "11.2")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--runtim openvino", "--runtim openvino: no words of `ctseg build`"),
        ("--repository /other", "no words of `ctseg build` that a server may take"),
        ("--runtime torch --threads -1", "--runtime=torch: expected .*; --threads=-1: expected"),
        ("--threads", "--threads: expected one argument"),
        ("--help", "no words"),
        ("--name 'open", "No closing quotation"),
    ],
)
def test_what_is_no_word_of_a_build_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BuildWords.from_text(text)
