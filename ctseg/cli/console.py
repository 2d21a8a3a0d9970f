"""What goes to the terminal: log lines, on standard error, or beside those that nnU-Net prints."""

import argparse
import logging
import sys


class _StderrHandler(logging.Handler):
    """Writes to whatever standard error is now, so that a progress bar can put itself below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


class _StdoutHandler(logging.Handler):
    """Writes to whatever standard output is now, between the lines that nnU-Net prints there itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` and ``--verbose``."""
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument("--verbose", action="store_true", help="tell more, with tracebacks of unexpected errors")


def configure_logging(*, quiet: bool = False, verbose: bool = False) -> None:
    """Let ctseg's log lines go to standard error."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("ctseg")
    root.handlers = [handler]
    root.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def log_to_standard_output(room: str) -> None:
    """Let the log lines of a room, such as ``ctseg.train``, go to standard output, and not to standard error."""
    log = logging.getLogger(room)
    log.handlers, log.propagate = [_StdoutHandler()], False
    log.setLevel(logging.INFO)
