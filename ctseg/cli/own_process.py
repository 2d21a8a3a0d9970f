"""What a process of the command line does before anything else: no terminal, pipe or folder can hurt its work."""

import io
import os
import select
import sys
import warnings
from typing import Any

from ctseg.serving.isolation import isolated_environment


def prepare() -> None:
    """Make standard input and output safe, and the search paths of whatever this process starts.

    Standard output and error swallow what nobody reads any more or no disk takes: a case is never lost with a
    terminal, and the exit status stays that of the work.
    """
    _open_closed_streams()
    sys.stdout = _lasting(1)
    sys.stderr = _lasting(2)
    # torchvision's, which nnU-Net loads and no command reads pictures with
    warnings.filterwarnings("ignore", message="Failed to load image Python extension")
    isolated = isolated_environment()
    for name in set(os.environ) - set(isolated):
        del os.environ[name]
    os.environ.update(isolated)


class _LastingFile(io.FileIO):
    """A file for writing in which nothing fails."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
            while written is None:  # it was made non-blocking by somebody who shares it
                select.select([], [self], [])
                written = super().write(data)
        except OSError:
            return len(data)
        return written


def _lasting(descriptor: int) -> io.TextIOWrapper:
    old = sys.stdout if descriptor == 1 else sys.stderr
    if old is not None:
        old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LastingFile(descriptor, "w", closefd=False)),
        encoding=getattr(old, "encoding", None),
        errors="backslashreplace",  # names of files may hold anything
        line_buffering=descriptor == 2 or os.isatty(descriptor),
        write_through=False,
    )


def _open_closed_streams() -> None:
    """Open the standard streams that are closed, so that no file of the work gets their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)))
