"""Runs a piece of Python as a user who may not write everywhere, also where the tests are root's."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
_DROP = f"""
import os
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
"""


@contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder that everybody may look into and nobody but root may write to."""
    with tempfile.TemporaryDirectory() as folder:  # not below tmp_path, which only its owner may enter
        Path(folder).chmod(0o555)
        yield Path(folder)


def error_of(before: str, then: str) -> str:
    """Run ``before`` with the rights of the tests and ``then`` without; return the error that ended it, in one line."""
    code = f"{before}\n{_DROP}\n{then}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""
