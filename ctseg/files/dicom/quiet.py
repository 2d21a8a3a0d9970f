"""No word of pydicom's or highdicom's own: their warnings quote what stands in the tags, patients' names too."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import config

_LOUD = r"(pydicom|highdicom)(\..*)?"
_LOGGERS = (logging.getLogger("pydicom"), logging.getLogger("highdicom"))
_lock = threading.Lock()
_inside = 0
_before: tuple[int, int] = (0, 0)
_levels: tuple[int, ...] = ()
_filter: Any = None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep both libraries silent in the block, in every thread; what is wrong with a value, ctseg says itself.

    Blocks may overlap in several threads: what was set before comes back when the last of them ends.

    Raises:
        OSError: The system's own, where pydicom makes another of it, whose text is the trace of its calls.
    """
    _enter()
    try:
        yield
    except OSError as error:
        raise _first_of(error) from None
    finally:
        _leave()


def _first_of(error: OSError) -> OSError:
    while error.errno is None and isinstance(error.__cause__, OSError):
        error = error.__cause__
    return error


def _enter() -> None:
    global _inside, _before, _filter, _levels
    with _lock:
        _inside += 1
        if _inside > 1:
            return
        settings = config.settings
        _before = (settings.reading_validation_mode, settings.writing_validation_mode)
        settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
        warnings.filterwarnings("ignore", module=_LOUD)
        _filter = warnings.filters[0]
        _levels = tuple(logger.level for logger in _LOGGERS)
        for logger in _LOGGERS:
            logger.setLevel(logging.CRITICAL + 1)  # of those below it, too, which a filter would let pass


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside:
            return
        config.settings.reading_validation_mode, config.settings.writing_validation_mode = _before
        if _filter in warnings.filters:
            warnings.filters.remove(_filter)  # type: ignore[attr-defined]  # typed as a sequence, is a list
        for logger, level in zip(_LOGGERS, _levels, strict=True):
            logger.setLevel(level)
