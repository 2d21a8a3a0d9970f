"""The command line: parses, calls, prints; nothing else.

Every layer adds its own commands (``add_commands``) and imports its heavy libraries only when a
command runs, so that ``ctseg --help`` stays fast and the client never loads torch.

Exit codes: 0 all done; 1 some cases failed (each is in the report); 2 wrong usage or setup.
"""

import argparse
import sys
from collections.abc import Sequence

from ctseg.cli import deploy as deploy_cli
from ctseg.cli import predict as client_cli
from ctseg.cli import train as train_cli
from ctseg.errors import CtsegError

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each leaves its function in ``args.run``."""
    from ctseg import __version__

    parser = argparse.ArgumentParser(
        prog="ctseg",
        description="CT segmentation from data to production: train nnU-Net, export, serve with Triton, segment.",
        epilog="Software for research and engineering; not a medical device.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ctseg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train_cli.add_commands(commands)
    deploy_cli.add_commands(commands)
    client_cli.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``ctseg``; the process's own when None.

    Returns:
        The exit code (see the module's docstring).
    """
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except CtsegError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
