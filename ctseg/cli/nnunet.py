"""What the commands share that work in nnU-Net's folders."""

import argparse
import sys
from collections.abc import Callable

from ctseg.cli.console import log_to_standard_output
from ctseg.nnunet.variables import VARIABLES


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Add ``--nnUNet_raw``, ``--nnUNet_preprocessed`` and ``--nnUNet_results``."""
    group = parser.add_argument_group("folders", "taken from the environment unless given")
    for variable in VARIABLES:
        group.add_argument(f"--{variable}", metavar="DIR", default=None)


def given_folders(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the folders that the command line names, by variable; None: not given."""
    return {variable: getattr(args, variable) for variable in VARIABLES}


def prepare_nnunet() -> None:
    """Do what has to happen before nnU-Net is imported; and what ctseg logs is shown beside what nnU-Net prints."""
    from ctseg.train.worker_processes import limit_worker_processes

    limit_worker_processes()
    log_to_standard_output("ctseg.train")


def told_on_terminal() -> Callable[[int, int], None] | None:
    """Return what tells how many cases are done, of how many; None where standard error is no terminal."""

    def tell(done: int, total: int) -> None:
        print(f"\r{done} of {total} cases", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return tell if sys.stderr.isatty() else None
