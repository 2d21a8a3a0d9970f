"""What whole scans take of ``/dev/shm``: their own tensors, and those of calls to networks, pass through it.

Triton 24.10 reserves what it takes there, and keeps it for later: where there is no more, a request or a call fails by
an error, and no process ends. But an answer that finds no room is lost, and whoever waits for it is told nothing: so
the tensors of a request are let go before its answer is written, for a label map is never larger.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from ctseg.errors import InferenceFailedError, ServerUnavailableError
from ctseg.model_spec import ModelSpec

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux keeps POSIX shared memory)
SHARE_OF_CALLS = 0.5
"""Of what is free: for calls to networks. The rest is for the tensors of requests and answers."""
_SMALL_BYTES = 64 << 10


class SharedMemoryUse:
    """What one entry may take of ``/dev/shm``.

    Args:
        most_bytes: What calls may take together; None: half of what is free now.
        free: Says what is free.
    """

    def __init__(
        self, most_bytes: int | None = None, free: Callable[[], int] = lambda: shutil.disk_usage(SHARED_MEMORY).free
    ) -> None:
        found = free()
        self._free = free
        self.most_bytes = int(found * SHARE_OF_CALLS) if most_bytes is None else most_bytes
        self._most_held = max(0, found - self.most_bytes)
        self._used = 0
        self._peak = 0
        self._kept = 0
        self._largest = 0
        self._held = 0
        self._changed = threading.Condition()

    def take(self, size: int, what: str) -> None:
        """Wait until a call fits, and hold what it takes until it is given back.

        Args:
            size: In bytes.
            what: For messages.

        Raises:
            InferenceFailedError: It never fits.
            ServerUnavailableError: Others have filled the memory.
        """
        if size > self.most_bytes:
            raise InferenceFailedError(
                f"{what}: one call takes {_megabytes(size)} of shared memory, and all may take "
                f"{_megabytes(self.most_bytes)} of {SHARED_MEMORY}: start the server with more of it (docker run "
                "--shm-size, an emptyDir of medium Memory)"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self.most_bytes)
            growth = self._used + size - self._peak  # what was taken before is kept by Triton, and used again
            if growth > 0 and growth > (free := self._free()):
                raise ServerUnavailableError(
                    f"{what}: one call takes {_megabytes(size)} of shared memory, and {SHARED_MEMORY} has "
                    f"{_megabytes(free)} free: others have filled it, or the server needs more of it"
                )
            self._used += size
            self._peak = max(self._peak, self._used)

    def expect(self, size: int) -> None:
        """Leave room for a call of so many bytes, whatever is kept: who keeps it may wait for the call."""
        self._largest = max(self._largest, size)

    def keep(self, size: int) -> bool:
        """Whether an answer may stay where it lies until it is used: half of the memory is for calls, or more."""
        with self._changed:
            if self._kept + size > min(self.most_bytes // 2, self.most_bytes - self._largest):
                return False
            self._kept += size
            return True

    def give_back(self, size: int, *, kept: bool = False) -> None:
        """Let others have what a call took, or a kept answer."""
        with self._changed:
            self._used -= size
            self._kept -= size if kept else 0
            self._changed.notify_all()

    def hold(self, size: int) -> None:
        """Count the tensors of a scan, which lie there until it is answered, and then its label map.

        One scan by itself may be larger than what all may take: it lies there already. Small ones, such as readiness
        sends, leave enough to others.

        Args:
            size: Of all of them, in bytes.

        Raises:
            ServerUnavailableError: With those of others they would leave too little for calls.
        """
        with self._changed:
            if self._held and size > _SMALL_BYTES and self._held + size > self._most_held:
                raise ServerUnavailableError(
                    f"expected scans that take at most {_megabytes(self._most_held)} of {SHARED_MEMORY} together until "
                    f"they are answered, found {_megabytes(self._held + size)} with this one: ask again later, or "
                    "another server"
                )
            self._held += size

    def let_go(self, size: int) -> None:
        """Count them no more."""
        with self._changed:
            self._held -= size


def bytes_of_window(spec: ModelSpec, backend: str, *, votes: bool) -> int:
    """Return what a call with one window takes of shared memory, there and back.

    Args:
        spec: Of the network.
        backend: Triton's name of its backend: a python backend has a part of its own, which the tensors pass, too.
        votes: Whether votes are asked for; they take nothing where the network has none.
    """
    answered = spec.logits_bytes + (spec.votes_bytes if votes else 0)
    return (2 if backend == "python" else 1) * (spec.patch_bytes + answered)


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MB"
