"""Loads modules of compiled kernels when they are first needed.

numba takes longer to import than everything else of the client together, so nothing imports it
before a case is prepared.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Iterable
from types import ModuleType

from ctseg.errors import SetupError


def load_kernels(name: str) -> ModuleType:
    """Return a module of kernels, compiled or read from the compile cache.

    Args:
        name: The module's full name; its functions are declared by :func:`ctseg.compiled.declaring.kernel`.

    Raises:
        SetupError: numba is missing, or cannot compile on this machine.
    """
    # numba's colours swap sys.stdout and sys.stderr while it compiles, and with them what other threads print
    os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SetupError(
            f"the numeric kernels cannot be compiled: {type(error).__name__}: {error}; expected a working numba and "
            "llvmlite in this environment: install both again, and set NUMBA_CACHE_DIR to a writable folder if the "
            "message speaks of a cache"
        ) from error


def load_kernels_ahead(names: Iterable[str]) -> None:
    """Begin to load modules of kernels on a thread, while something else is waited for.

    What fails here fails again, and is told, where the kernels are needed.
    """

    def load() -> None:
        with contextlib.suppress(SetupError):
            for name in names:
                load_kernels(name)

    threading.Thread(target=load, name="ctseg-load-kernels").start()
