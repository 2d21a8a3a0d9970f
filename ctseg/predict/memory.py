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


class MemoryLimit:
    """What there is for cases: what a user allows, or what is available. Who owns it locks it.

    Args:
        total_bytes: What is allowed; None: what is available.
        look: Says what is available.

    Attributes:
        is_given: Whether a user has said it.
        whole: All that there is: the most that was seen.
    """

    def __init__(self, total_bytes: int | None = None, look: Callable[[], Available] = available_memory) -> None:
        self._look = look
        self.is_given = total_bytes is not None
        self.whole = look() if total_bytes is None else Available(total_bytes, "allowed")

    def now(self) -> Available:
        """Return what one more case may take at most now; what is allowed stays, whoever uses it."""
        if self.is_given:
            return self.whole
        now = self._look()
        self.whole = max(self.whole, now)
        return now

    def check(self, estimate: MemoryEstimate, used_bytes: int) -> None:
        """Refuse a case that is larger than all that there is once those in flight have ended.

        Args:
            estimate: What it takes.
            used_bytes: What those in flight take together.

        Raises:
            InputError: It is. The message does not name the case.
        """
        if estimate.peak_bytes > self.whole.size:
            now = self.now()
            check_fits(estimate, self.whole if self.is_given else max(self.whole, now.with_more(used_bytes)))


def check_fits(estimate: MemoryEstimate, whole: Available) -> None:
    """Refuse a case that is larger than something.

    Raises:
        InputError: It is. The message does not name the case.
    """
    if estimate.peak_bytes > whole.size:
        raise InputError(
            f"expected a scan that can be segmented in {gigabytes(whole.size)} ({whole.bound}), found one that would "
            f"take {estimate}: is the spacing in the file right? If it is, use a machine with more memory, or allow "
            "more",
            settings=("memory_bytes",),
        )


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
        self._limit = MemoryLimit(total_bytes, look)
        self._shared = self._limit.whole.size if self._limit.is_given else self._limit.whole.size // 2
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
            self._limit.check(estimate, self._used)
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._fits(size))
                if size > self._shared:
                    check_fits(estimate, self._limit.now())
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

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._shared
