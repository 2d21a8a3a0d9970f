"""Python whose kernel refuses flock, as that of a network file system without locks does."""

import subprocess
import sys
from pathlib import Path

REFUSING = """
import ctypes, platform, struct
flock, audit = {"x86_64": (73, 0xC000003E), "aarch64": (32, 0xC00000B7)}[platform.machine()]
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
filter = b"".join(struct.pack("HBBI", *step) for step in (
    (LOAD, 0, 0, 4), (EQUAL, 0, 3, audit),
    (LOAD, 0, 0, 0), (EQUAL, 0, 1, flock),
    (RETURN, 0, 0, 0x00050000 | NUMBER), (RETURN, 0, 0, 0x7FFF0000),
))
kept = ctypes.create_string_buffer(filter, len(filter))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(filter) // 8, ctypes.addressof(kept)), 16)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "no new privileges"
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, f"no seccomp filter: {ctypes.get_errno()}"
"""
"""Lets the kernel answer each flock of this process, and of its children, with an error number, by seccomp."""


def started(code: str, *words: object, refusal: int | None) -> "subprocess.Popen[str]":
    """Start Python code in a process of its own.

    Args:
        code: What it runs.
        words: Its ``sys.argv[1:]``.
        refusal: What the kernel answers to flock there; None leaves flock as it is.
    """
    before = "" if refusal is None else REFUSING.replace("NUMBER", str(refusal))
    command = [sys.executable, "-c", before + code, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def output_of(process: "subprocess.Popen[str]") -> str:
    """Wait for a process and return what it printed; its log too, where it has failed."""
    printed, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return printed
