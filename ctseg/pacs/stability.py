"""When a series is whole, as far as anybody can tell: DICOMweb has no word for it.

A series that arrives grows. It counts as whole once its set of instances has not changed for a while.
"""

import hashlib
import time
from collections.abc import Callable, Hashable


def digest_of_instances(uids: frozenset[str]) -> str:
    """Return what is the same for the same set of SOPInstanceUIDs, and for no other."""
    return hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()


class Stability:
    """Watches sets of instances.

    Args:
        stable_s: For how long a set must not change.
        clock: Seconds that only grow.
    """

    def __init__(self, stable_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stable_s = stable_s
        self._clock = clock
        self._seen: dict[Hashable, tuple[str, float]] = {}

    def is_stable(self, series: Hashable, digest: str) -> bool:
        """Note what a series has now; return whether it has had the same for long enough.

        Args:
            series: Which one.
            digest: Of its instances, see :func:`digest_of_instances`.
        """
        now = self._clock()
        before, since = self._seen.get(series, ("", now))
        if before != digest:
            since = now
        self._seen[series] = (digest, since)
        return now - since >= self._stable_s

    def forget(self, series: Hashable) -> None:
        """Drop what is known of a series."""
        self._seen.pop(series, None)
