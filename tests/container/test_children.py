"""Children end with their parent, and may clean up."""

import signal
import subprocess
import sys
from pathlib import Path

from ctseg.container.children import run_child

CHILD = """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    time.sleep(1)
    Path(sys.argv[1]).write_text("cleaned up")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("building", file=sys.stderr, flush=True)
time.sleep(600)
"""
PARENT = """
import sys
from ctseg.container.children import end_by_signals, run_child
end_by_signals()
run_child([sys.executable, *sys.argv[1:3]], sent="a job", keep_output=True)
"""


def test_a_build_may_clean_up_before_the_container_ends(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", PARENT, str(tmp_path / "child.py"), str(tmp_path / "done")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline() == "building\n"
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(120) == 128 + signal.SIGTERM
    assert (tmp_path / "done").read_text() == "cleaned up"


def test_output_is_kept_and_a_signal_counts_as_a_shell_counts_it() -> None:
    echo = "import sys; print(sys.stdin.read().upper())"
    assert run_child([sys.executable, "-c", echo], sent="job", keep_output=True) == (0, "JOB\n")
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert run_child([sys.executable, "-c", crash])[0] == 128 + signal.SIGSEGV
