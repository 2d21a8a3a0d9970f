"""The door: finds the command, runs it, words its errors.

Each module here adds its own commands (``add_commands``) and imports heavy libraries only when a command
runs, so that ``ctseg --help`` stays fast and the client never loads torch.
"""

import errno
import sys
from collections.abc import Sequence

from ctseg.cli import dataset, deploy, deployment, dicom, evaluate, own_process, predict, recipe, report, train, watch
from ctseg.cli.console import configure_logging, without_controls
from ctseg.cli.exit_codes import INTERRUPTED, WENT_AWAY, WRONG_SETUP
from ctseg.cli.parser import Parser, worded
from ctseg.errors import CtsegError, OutputError, PacsAwayError, ServerAwayError

_AWAY = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOTCONN})
"""A disk that is full or lost; what is forbidden or read-only from the start is wrong setup."""


def build_parser() -> Parser:
    """Return the parser of all commands; each leaves its function in ``args.run``, its parser in ``args.parser``."""
    from ctseg import __version__

    parser = Parser(
        prog="ctseg",
        description="CT segmentation from data to production: train nnU-Net, export, serve with Triton, segment.",
        epilog="Software for research and engineering; not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"ctseg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (dataset, train, deploy, deployment, recipe, predict, watch, evaluate, report, dicom):
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``ctseg``; the process's own when None.

    Returns:
        The exit status, see :mod:`ctseg.cli.exit_codes`.
    """
    if argv is None:
        own_process.prepare()
    args = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    configure_logging(quiet=getattr(args, "quiet", False), verbose=getattr(args, "verbose", False))
    try:
        return int(args.run(args))
    except CtsegError as error:
        print(without_controls(worded(error, args.parser)), file=sys.stderr)
        return WENT_AWAY if _went_away(error) else WRONG_SETUP
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _went_away(error: CtsegError) -> bool:
    """Whether the same command is worth trying again."""
    if isinstance(error, OutputError):
        return isinstance(error.__cause__, OSError) and error.__cause__.errno in _AWAY
    return isinstance(error, PacsAwayError | ServerAwayError)
