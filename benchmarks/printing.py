"""What a benchmark says while it runs."""

import logging
import sys


def print_the_log() -> None:
    """Let the lines that say how it goes stand on standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("benchmarks")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
