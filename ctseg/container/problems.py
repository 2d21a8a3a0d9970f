"""Whether files that settings name can be read."""

import os
from pathlib import Path


def problem_of_reading(path: Path) -> str:
    """Return why a file cannot be read by this user; empty when it can."""
    try:
        with path.open("rb"):
            return ""
    except OSError as error:
        return f"{path} cannot be read by user {os.getuid()} ({error.strerror}): mount it, readable for this user"
