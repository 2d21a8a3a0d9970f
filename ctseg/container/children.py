"""Programs that this process starts and waits for; none outlives it."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ctseg.serving.isolation import isolated_environment

CHILD_TIMEOUT_S = 20.0
"""What a child may take to clean up when the container is stopped."""


def run_child(
    command: Sequence[str], *, sent: str | None = None, keep_output: bool = False, folder: Path | None = None
) -> tuple[int, str]:
    """Run a program; it ends with this process, and looks for nothing in the current folder.

    Args:
        command: The program and its words.
        sent: Text for its standard input; None lets it have this process's.
        keep_output: Return what it writes to standard output, instead of letting it appear.
        folder: Where it starts; None: where this process is.

    Returns:
        Its status, as a shell counts it, and its output.
    """
    with subprocess.Popen(
        command,
        stdin=None if sent is None else subprocess.PIPE,
        stdout=subprocess.PIPE if keep_output else None,
        cwd=folder,
        env=isolated_environment(),
        text=True,
    ) as child:
        try:
            output, _ = child.communicate(sent)
            return child.returncode if child.returncode >= 0 else 128 - child.returncode, output or ""
        finally:
            if child.poll() is None:
                child.terminate()  # it removes what it has half-written
                try:
                    child.wait(CHILD_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    child.kill()


def end_by_signals() -> None:
    """Let SIGTERM and SIGINT end this process: the first process of a container has no default handlers."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (the signature of a handler)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
