"""Signals end what is at work without a crash, and wait for what cleans up after it."""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ctseg.files.signals import signals_as_exit, signals_later

ENDED_IN_AN_IMPORT = """
import signal, sys, time
from pathlib import Path
from ctseg.files.owned_folder import owned_folder

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
number = int(sys.argv[2])

def in_native_module(frame):
    while frame is not None:
        if frame.f_code.co_name == "create_module" and frame.f_locals["spec"].name == "onnx.onnx_cpp2py_export":
            return True
        frame = frame.f_back

def profile(frame, event, argument):
    if event == "call" and in_native_module(frame):
        sys.setprofile(None)
        print("in its initialisation", flush=True)
        signal.raise_signal(number)

with owned_folder("graph-", Path(sys.argv[1])):
    sys.setprofile(profile)
    try:
        import onnx
        time.sleep(60)
    finally:
        print("whole" if "onnx.onnx_cpp2py_export" in sys.modules else "half", flush=True)
"""
ENDED_TWICE = """
import os, shutil, signal, sys
from pathlib import Path
from ctseg.files.owned_folder import owned_folder

signal.signal(signal.SIGINT, signal.default_int_handler)
number = int(sys.argv[2])
remove = shutil.rmtree

def removing(*arguments, **options):
    os.kill(os.getpid(), number)
    print("told again", flush=True)
    remove(*arguments, **options)

shutil.rmtree = removing
with owned_folder("graph-", Path(sys.argv[1])) as folder:
    (folder / "file").write_bytes(b"1")
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("block", [signals_as_exit, signals_later])
def test_signals_mean_afterwards_what_they_meant_before(block: Callable[[], AbstractContextManager[None]]) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        for number, handler in zip(numbers, (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN), strict=True):
            signal.signal(number, handler)
        with block():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
        found = [signal.getsignal(number) for number in numbers]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert found == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN]


def run(code: str, folder: Path, number: signal.Signals) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(int(number))],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False, timeout=100,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_import_of_a_native_module_which_would_crash(
    tmp_path: Path, number: signal.Signals
) -> None:
    code, said = run(ENDED_IN_AN_IMPORT, tmp_path, number)
    assert code == (-number if number == signal.SIGINT else 128 + number)
    assert said == "in its initialisation\nwhole\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_second_signal_does_not_break_off_the_removal_of_a_folder(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    assert run(ENDED_TWICE, tmp_path, number) == (status, "told again\n")
    assert list(tmp_path.iterdir()) == []
