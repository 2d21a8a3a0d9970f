"""Room in memory for cases that are looked at side by side."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ctseg.errors import CtsegError
from ctseg.files.formats import ChannelFiles, read_channel_header
from ctseg.predict.memory_limits import available_memory
from ctseg.train.scans import READER

_SHARE = 0.5


class MemoryRoom:
    """Lets as many cases at once into memory as there is room for; one alone always.

    Args:
        size: Bytes; None: half of what this process may still take.
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = int(available_memory().size * _SHARE) if size is None else size
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until there is room for so many bytes, and give it back afterwards."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


def bytes_of(channels: Sequence[ChannelFiles | None], *label_maps: ChannelFiles | None) -> int:
    """Return about how much memory it takes to look at a case: its largest channel, and label maps with their masks."""

    def of(files: ChannelFiles | None) -> int:
        if files is None:
            return 0
        try:
            return read_channel_header(files, READER).reading_bytes
        except (CtsegError, OSError):
            return 0  # told when it is read

    return max((of(files) for files in channels), default=0) + 2 * sum(of(files) for files in label_maps)
