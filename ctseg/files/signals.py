"""What must be cleaned up: signals as exceptions, or as what waits, and forked children that leave it alone."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import ParamSpec

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_IMPORTING = "<frozen importlib._bootstrap_external>"
_AGAIN_S = 0.05

_Arguments = ParamSpec("_Arguments")


@contextlib.contextmanager
def signals_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack like exceptions while the block runs, unless somebody has taken them.

    Only around what leaves something behind: Python runs a handler when native code returns, so that elsewhere,
    as in a compiler at work, the default, which ends the process at once, is better. ``nohup`` keeps its meaning.

    A native module that is being imported is waited for, with Ctrl-C too: an exception in its initialisation ends
    the process by SIGSEGV where the module does not expect one, as ``onnx`` does not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        if _in_native_import(frame):
            again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    former = {number: signal.getsignal(number) for number in (signal.SIGINT, *_SIGNALS)}
    taken = {
        number: handler
        for number, handler in former.items()
        if handler == (signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    }
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP wait for the end of the block, a short one that they must not break off.

    Whoever ends a process often does it twice: Ctrl-C pressed again, a launcher beside its scheduler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, *_SIGNALS)}
    # another's than Python's cannot be put back
    taken = {number: handler for number, handler in former.items() if callable(handler)}
    for number in taken:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _in_native_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def only_in_this_process(function: Callable[_Arguments, object]) -> Callable[_Arguments, None]:
    """Return a function that does nothing in a forked child, which leaves ``with`` blocks but owns nothing there."""
    owner = os.getpid()

    def call(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> None:
        if os.getpid() == owner:
            function(*arguments, **options)

    return call
