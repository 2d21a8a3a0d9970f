"""A command is measured with everything that it starts. No time is asserted that a busy machine could change."""

import sys

import pytest

from benchmarks import measured_process
from benchmarks.measured_process import run_measured
from ctseg.errors import SetupError

GRANDCHILD = """
import time
held = bytearray(b"x") * (200 << 20)
until = time.process_time() + 0.5
while time.process_time() < until:
    pass
time.sleep(1.5)
"""
PARENT = f"""
import subprocess, sys
print("before", flush=True)
subprocess.run([sys.executable, "-c", {GRANDCHILD!r}], check=True)
"""


def test_memory_and_cpu_of_grandchildren_count(monkeypatch):
    monkeypatch.setattr(measured_process, "LARGEST_SHARE_OF_SAMPLING", 1.0)  # a busy machine samples slowly
    measured, marker_s = run_measured([sys.executable, "-c", PARENT], marker="before")
    assert 200 <= measured.peak_mb < 400
    assert 0.5 <= measured.cpu_s < 3
    assert measured.client_cpu_s < measured.cpu_s
    assert marker_s is not None
    assert marker_s < measured.wall_s


def test_a_watched_file_is_noted_when_it_appears(tmp_path):
    path = tmp_path / "made"
    code = f"import time; time.sleep(0.5); open({str(path)!r}, 'w').close(); time.sleep(0.3)"
    measured, _ = run_measured([sys.executable, "-c", code], watch=[path, tmp_path / "never"])
    assert 0.5 <= measured.watched_s[path] <= measured.wall_s
    assert tmp_path / "never" not in measured.watched_s


def test_a_failed_command_tells_the_end_of_its_output():
    with pytest.raises(SetupError, match=r"status 3.*\n.*the reason"):
        run_measured([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"])


def test_a_command_that_takes_too_long_is_ended_with_its_children():
    with pytest.raises(SetupError, match="not done within"):
        run_measured([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"], timeout_s=1.0)
