"""The health check's program needs the standard library only."""

import subprocess
import sys
from pathlib import Path

from ctseg import container

PROBE = Path(container.__file__).with_name("probe.py")


def test_it_runs_without_site_packages_and_says_that_nothing_serves() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", str(PROBE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.partition(":")[0], done.stderr) == (1, "not serving yet", "")
