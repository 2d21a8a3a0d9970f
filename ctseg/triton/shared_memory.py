"""POSIX shared-memory segments that tell who owns them, so that what a killed process left can be removed.

A segment's name ends with its owner, see :mod:`ctseg.files.owners`.
"""

import logging
import mmap
import os
import secrets
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.files.owners import is_left_behind, owner_tag

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory


def is_available() -> bool:
    """Whether this system has shared memory of the kind that Triton maps."""
    return FOLDER.is_dir() and Path("/proc/self/ns/pid").exists()


def sweep(prefix: str) -> list[str]:
    """Remove the segments with this prefix whose owner is no longer alive.

    Owners in other process namespaces cannot be judged; their segments stay.

    Returns:
        The names of what was removed.
    """
    if not is_available():
        return []
    left = [path for path in FOLDER.glob(f"{prefix}*") if is_left_behind(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


class Segment:
    """A shared-memory segment of this process.

    Its memory lives until :meth:`unlink` was called and the last array made of it is gone.

    Args:
        prefix: Begin of the name.
        size: Bytes; reserved at once, so that a full ``/dev/shm`` is told here and not by a crash.

    Raises:
        OSError: No space, or no permission.
    """

    def __init__(self, prefix: str, size: int) -> None:
        # the letter keeps a token of digits alone from being read as a part of the owner
        self.name = f"{prefix}s{secrets.token_hex(4)}-{owner_tag()}"
        self.size = size
        path = FOLDER / self.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            self._memory = mmap.mmap(descriptor, size)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    @property
    def key(self) -> str:
        """The POSIX name, which another process opens."""
        return f"/{self.name}"

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, offset: int = 0) -> npt.NDArray[Any]:
        """Return a part of the segment as an array, from its begin or from ``offset`` bytes on; a view, not a copy."""
        view: npt.NDArray[Any] = np.ndarray(shape, dtype, buffer=self._memory, offset=offset)
        return view

    def unlink(self) -> None:
        """Remove the name; the memory goes with the last array made of it."""
        (FOLDER / self.name).unlink(missing_ok=True)


class SegmentPool:
    """Segments that are made when needed and used again.

    Args:
        prefix: Begin of their names.
        max_bytes: Most memory of all of them.
    """

    def __init__(self, prefix: str, *, max_bytes: int) -> None:
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._free: list[Segment] = []
        self._all: dict[str, Segment] = {}
        self._is_closed = False
        self._lock = threading.RLock()  # an array may be collected, and its segment given back, inside a call

    def take(self, size: int) -> Segment | None:
        """Return a free segment of at least ``size`` bytes, or None where there is no room for one."""
        with self._lock:
            if self._is_closed:
                return None
            fitting = [segment for segment in self._free if segment.size >= size]
            if fitting:
                segment = min(fitting, key=lambda segment: segment.size)
                self._free.remove(segment)
                return segment
            if sum(segment.size for segment in self._all.values()) + size > self._max_bytes:
                return None
            try:
                segment = Segment(self._prefix, size)
            except OSError as error:
                log.info("no more shared memory: %s", error)
                return None
            self._all[segment.name] = segment
            return segment

    def give_back(self, segment: Segment) -> None:
        """Take a segment back that nobody reads or writes any more."""
        with self._lock:
            if segment.name in self._all:
                self._free.append(segment)

    def retire(self, segment: Segment) -> None:
        """Remove a segment that somebody may still use; its name goes now, it is not used again."""
        with self._lock:
            self._all.pop(segment.name, None)
            segment.unlink()

    def close(self) -> list[Segment]:
        """Remove the names of all segments; arrays that are still held stay readable."""
        with self._lock:
            self._is_closed = True
            segments = list(self._all.values())
            for segment in segments:
                segment.unlink()
            self._all.clear()
            self._free.clear()
            return segments
