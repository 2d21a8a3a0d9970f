"""Command lines of ctseg in processes of their own that need not import torch and nnU-Net first.

A server imports them once and forks for every command; ``python -m ctseg`` takes five seconds to get that far.
"""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_PRELOADED = [
    "ctseg.cli.main",
    "ctseg.train.launch",
    "ctseg.train.planning",
    "ctseg.train.dataset",
    "ctseg.train.verify",
    "ctseg.train.comparison",
    "tests.support.distributed_steps",
]
# read by libraries when they are imported
_AT_IMPORT = {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "PYTHONWARNINGS": "ignore"}


class WarmProcess:
    """A process of its own: environment, session, standard output and error in files.

    Args:
        target: A function of a module, called with ``args``; what it returns is the exit code.
        args: Plain data.
        environment: The whole environment.
        folder: Where ``stdout`` and ``stderr`` are written.
    """

    def __init__(
        self, target: Callable[..., int | None], args: tuple[Any, ...], environment: Mapping[str, str], folder: Path
    ) -> None:
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        given = {name: os.environ.get(name) for name in _AT_IMPORT}
        os.environ.update(_AT_IMPORT)
        try:
            self._process: ForkServerProcess = context.Process(
                target=_run, args=(target, args, dict(environment), str(self._stdout), str(self._stderr))
            )
            self._process.start()
        finally:
            for name, value in given.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    @property
    def pid(self) -> int:
        """Number of the process, and of its group."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return self._stdout.read_text() if self._stdout.exists() else ""

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self._stderr.read_text() if self._stderr.exists() else ""

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.exitcode is None

    def wait(self, timeout_s: float = 500) -> int:
        """Wait for the end, and return the exit code (negative: the signal that ended it)."""
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout_s} s:\n{self.stdout[-3000:]}\n{self.stderr[-3000:]}")
        return code

    def wait_until_said(self, words: str, timeout_s: float = 500) -> None:
        """Wait until it has written ``words`` to standard output."""
        deadline = time.monotonic() + timeout_s
        while words not in self.stdout:
            said = f"{self.stdout[-3000:]}\n{self.stderr[-3000:]}"
            assert self.running, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.join()


def run_ctseg(words: tuple[str, ...]) -> int:
    """What ``python -m ctseg WORDS`` does."""
    from ctseg.cli.main import main

    sys.argv = ["ctseg", *words]
    return main(words)


def _run(
    target: Callable[..., int | None], args: tuple[Any, ...], environment: dict[str, str], stdout: str, stderr: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    # what the command starts, it starts as it would without this server
    multiprocessing.set_start_method(None, force=True)
    # a session of its own, as a shell gives to a job; whoever runs the tests in the background has these ignored
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for descriptor, file in ((1, stdout), (2, stderr)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    warnings.simplefilter("ignore")
    sys.exit(target(*args))
