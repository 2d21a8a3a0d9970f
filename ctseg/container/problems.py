"""What is wrong with settings, in lines that name the setting."""

import os
from pathlib import Path

from pydantic import ValidationError


def told(error: ValidationError, *, prefix: str) -> list[str]:
    """Return a line for each problem, such as ``CTSEG_TLS=on: expected 'off', 'server' or 'mutual'``.

    Args:
        error: What pydantic found.
        prefix: Of the settings' names: ``CTSEG_`` for variables, which are in capitals, or ``--`` for words.
    """
    lines = []
    for problem in error.errors(include_url=False):
        if problem["type"] == "value_error":  # from a validator of ours, whose message names the setting
            lines.append(str(problem["ctx"]["error"]))
            continue
        name = f"{prefix}{'.'.join(str(part) for part in problem['loc'])}"
        name = name.upper() if prefix.isupper() else name
        lines.append(f"{name}={problem['input']}: {problem['msg'].replace('Input should be', 'expected')}")
    return lines


def problem_of_reading(path: Path) -> str:
    """Return why a file cannot be read by this user; empty when it can."""
    try:
        with path.open("rb"):
            return ""
    except OSError as error:
        return f"{path} cannot be read by user {os.getuid()} ({error.strerror}): mount it, readable for this user"
