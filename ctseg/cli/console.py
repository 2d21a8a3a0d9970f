"""What goes to the terminal: log lines, on standard error, or beside those that nnU-Net prints."""

import argparse
import logging
import sys

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


_on_standard_output: set[str] = set()
"""Rooms whose log lines go there."""


class _Formatter(logging.Formatter):
    """Lets no character out of a file's name move the cursor or colour the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return without_controls(super().format(record))


class _StderrHandler(logging.Handler):
    """Writes to whatever standard error is now, so that a progress bar can put itself below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


class _StdoutHandler(logging.Handler):
    """Writes to whatever standard output is now, between the lines that nnU-Net prints there itself."""

    def emit(self, record: logging.LogRecord) -> None:
        # a terminal that cannot show a character must not end what is told of
        encoding = sys.stdout.encoding or "utf-8"
        print(self.format(record).encode(encoding, "replace").decode(encoding), flush=True)


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` and ``--verbose``."""
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument("--verbose", action="store_true", help="tell more, with tracebacks of unexpected errors")


def configure_logging(*, quiet: bool = False, verbose: bool = False) -> None:
    """Let ctseg's log lines go to standard error."""
    for room in _on_standard_output:  # by a command that ran before in this process
        log = logging.getLogger(room)
        log.handlers, log.propagate = [], True
        log.setLevel(logging.NOTSET)
    _on_standard_output.clear()
    handler = _StderrHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("ctseg")
    root.handlers = [handler]
    root.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


def without_controls(text: str) -> str:
    r"""Return a text with control characters as ``\\xNN``, all but line breaks and tabs."""
    return text.translate(_CONTROLS)


def log_to_standard_output(room: str) -> None:
    """Let the log lines of a room, such as ``ctseg.train``, go to standard output, and not to standard error."""
    _on_standard_output.add(room)
    log = logging.getLogger(room)
    log.handlers, log.propagate = [_StdoutHandler()], False
    log.setLevel(logging.INFO)
