"""Declares compiled kernels; imports numba, so only modules of kernels import this.

Every kernel has one signature, compiled when its module is first imported and cached after that; releases
the interpreter lock; and works on a range of units, so that the caller splits them over threads.
Arithmetic is never reordered or contracted (no fast-math): where nnU-Net rounds, these round.
"""

# mypy: disable-error-code="attr-defined"

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numba
from numba import types
from numba.core.caching import _CacheLocator

from ctseg.compiled.cache import copy_shipped_kernels, find_cache_home

_log = logging.getLogger(__name__)

f4, f8, i8, i2, boolean = types.float32, types.float64, types.int64, types.int16, types.boolean
i4, u8, u2, u1 = types.int32, types.uint64, types.uint16, types.uint8


def kernel(*arguments: Any, returns: Any = types.void) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles a function for one signature, or loads it from the compile cache.

    Args:
        arguments: numba's types of the parameters.
        returns: numba's type of the result.
    """
    signature = returns(*arguments)

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        is_cached, folder = _cache_of(function.__code__.co_filename)
        before = numba.config.CACHE_DIR
        if folder is not None:
            numba.config.CACHE_DIR = folder
        try:
            compiled: Callable[..., Any] = numba.njit(signature, nogil=True, cache=is_cached, error_model="numpy")(
                function
            )
        finally:
            numba.config.CACHE_DIR = before
        return compiled

    return compile_it


def array(dtype: Any, ndim: int, layout: Literal["A", "C"] = "C") -> Any:
    """Return numba's type of an array that the kernel may write."""
    return types.Array(dtype, ndim, layout)


def read_only(dtype: Any, ndim: int, layout: Literal["A", "C"] = "C") -> Any:
    """Return numba's type of an array that the kernel only reads."""
    return types.Array(dtype, ndim, layout, readonly=True)


@cache
def _cache_of(file: str) -> tuple[bool, str | None]:
    """Whether kernels of a source file are cached, and in which folder; None: where numba itself puts them."""
    source = Path(file)
    try:
        home = find_cache_home(source)
    except OSError as error:
        _log.warning("%s; they are compiled again in every process: set NUMBA_CACHE_DIR", error)
        return False, None
    if home is None:
        return True, None
    copy_shipped_kernels(source, home / _CacheLocator.get_suitable_cache_subpath(str(source)))  # type: ignore[no-untyped-call]
    return True, str(home)
