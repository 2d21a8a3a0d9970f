"""How much memory the cases in flight may take together, and what is too large for all of it."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ctseg.errors import InputError
from ctseg.predict.estimate import MemoryEstimate, gigabytes
from ctseg.predict.memory_limits import Available, available_memory

logger = logging.getLogger(__name__)


class MemoryBudget:
    """Lets cases pass, in the order in which they come, while the sum of their estimates fits.

    A case that is larger than what the cases share, and not than all that there is, passes when no other is in
    flight, and none passes beside it.

    Args:
        total_bytes: What the cases in flight may take together, and what one may take; None: half of what is
            available, and all of it.
        look: Says what is available.
    """

    def __init__(self, total_bytes: int | None = None, look: Callable[[], Available] = available_memory) -> None:
        self._allowed = None if total_bytes is None else Available(total_bytes, "allowed")
        self._look = look
        self._whole = self._allowed or look()
        self._shared = self._whole.size if self._allowed else self._whole.size // 2
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, estimate: MemoryEstimate, case: str) -> Iterator[None]:
        """Wait until a case fits, and hold what it takes meanwhile; tell where no other will run beside it.

        Args:
            estimate: What it takes.
            case: Its name.

        Raises:
            InputError: It is larger than all that there is: at once where no case that ends can help, else when
                its turn comes. The message does not name the case.
        """
        size, turn = estimate.peak_bytes, object()
        with self._changed:
            if size > self._whole.size:
                _check_fits(estimate, self._whole_without_others())
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._fits(size))
                if size > self._shared:
                    _check_fits(estimate, self._allowed or self._look())
                    logger.info("%s: takes about %s: no other case runs beside it", case, estimate)
                self._used += size
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def _whole_without_others(self) -> Available:
        """Return what a case may take at most once those in flight have ended."""
        if self._allowed is not None:
            return self._allowed
        now = self._look()
        return max(self._whole, Available(now.size + self._used, now.bound))

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._shared


def _check_fits(estimate: MemoryEstimate, whole: Available) -> None:
    if estimate.peak_bytes > whole.size:
        raise InputError(
            f"expected a scan that can be segmented in {gigabytes(whole.size)} ({whole.bound}), found one that would "
            f"take {estimate}: is the spacing in the file right? If it is, use a machine with more memory, or allow "
            "more",
            settings=("memory_bytes",),
        )
