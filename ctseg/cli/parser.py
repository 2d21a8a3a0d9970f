"""The dialect of the command line, and how an error becomes a line.

Flags are nnU-Net's letters and words where it has them, else ``--snake_case``; ``--kebab-case`` is
accepted for each.
"""

import argparse
import itertools
from collections.abc import Sequence
from typing import Any, NoReturn

from ctseg.cli.suggestions import meant_flags, meant_word, unknown_flags
from ctseg.errors import CtsegError


class Parser(argparse.ArgumentParser):
    """A parser of one command.

    Abbreviations are not taken: a flag that is added later would change what they mean.

    Attributes:
        words_anywhere: Name of a positional list that takes words after flags, too: ``train 101 3d_fullres
            -tr T 0``, as ``nnUNetv2_train`` does. argparse by itself closes such a list at the first flag.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.words_anywhere: str | None = None
        self.set_defaults(parser=self)

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by the namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See :meth:`argparse.ArgumentParser.parse_known_args`."""
        words = None if args is None else snake_case_flags(args)
        if words is not None:
            # before what is missing is told: it may be what was misspelled
            own = words if self._subparsers is None else itertools.takewhile(lambda word: word.startswith("-"), words)
            self._refuse(unknown_flags(list(own), self._option_string_actions))
        found, left = super().parse_known_args(words, namespace)
        if self.words_anywhere is not None:
            words_left = [word for word in left if not word.startswith("-")]
            setattr(found, self.words_anywhere, [*getattr(found, self.words_anywhere), *words_left])
            left = [word for word in left if word.startswith("-")]
        return found, left

    def _refuse(self, flags: Sequence[str]) -> None:
        told = []
        for flag in dict.fromkeys(flags):
            meant = meant_flags(flag, self._actions)
            told.append(f"unknown flag {flag}{f': did you mean {_either(meant)}?' if meant else ''}")
        if told:
            self.error("; ".join(told))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            meant = meant_word(str(value), map(str, action.choices or ()))
            if meant is not None:
                error.message = f"{value!r} is unknown: did you mean {meant}?"
            raise

    def error(self, message: str) -> NoReturn:
        """Tell in one line what is wrong with the words, and end the process with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def flag_of(self, setting: str) -> str | None:
        """Return the flag that sets a parameter, such as ``--case_timeout_s``; None: this command has none."""
        flags = [flag for action in self._actions if action.dest == setting for flag in action.option_strings]
        return max(flags, key=len, default=None)


def _either(flags: Sequence[str]) -> str:
    return " or ".join(flags)


def snake_case_flags(words: Sequence[str]) -> list[str]:
    """Return the words with every ``--kebab-case`` flag spelled ``--snake_case``; values stay as they are."""
    spelled: list[str] = []
    for position, word in enumerate(words):
        if word == "--":
            return [*spelled, *words[position:]]
        name, equals, value = word.partition("=")
        is_flag = name.startswith("--")
        spelled.append(f"--{name[2:].replace('-', '_')}{equals}{value}" if is_flag else word)
    return spelled


def worded(error: CtsegError, parser: Parser) -> str:
    """Return the line for an error: its kind, its message, and the flags of this command that would help."""
    flags = flags_worded(error.settings, parser)
    return f"{type(error).__name__}: {error}{f' ({flags})' if flags else ''}"


def flags_worded(settings: Sequence[str], parser: Parser) -> str:
    """Return the flags of this command that set the parameters, in words; empty where there are none."""
    flags = [flag for setting in dict.fromkeys(settings) if (flag := parser.flag_of(setting))]
    return f"see {', '.join(flags)}" if flags else ""
