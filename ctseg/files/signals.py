"""What must be cleaned up: SIGTERM and SIGHUP as exceptions, and forked children that leave it alone."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, ParamSpec

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_Arguments = ParamSpec("_Arguments")


@contextlib.contextmanager
def signals_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack like exceptions while the block runs, unless somebody has taken them.

    Only around what leaves something behind: Python runs a handler when native code returns, so that elsewhere,
    as in a compiler at work, the default, which ends the process at once, is better. ``nohup`` keeps its meaning.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (the signature of a handler)
        raise SystemExit(128 + number)

    taken = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def only_in_this_process(function: Callable[_Arguments, object]) -> Callable[_Arguments, None]:
    """Return a function that does nothing in a forked child, which leaves ``with`` blocks but owns nothing there."""
    owner = os.getpid()

    def call(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> None:
        if os.getpid() == owner:
            function(*arguments, **options)

    return call
