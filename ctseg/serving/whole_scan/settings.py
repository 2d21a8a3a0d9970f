"""What whole scans may take on a server: the variables ``CTSEG_SCAN_…`` of Triton's environment."""

import os
from collections.abc import Mapping

from pydantic import Field, ValidationError

from ctseg.documents import Document, told_of_settings
from ctseg.errors import SetupError

_PREFIX = "CTSEG_SCAN_"


class ScanSettings(Document):
    """The settings, each read from the variable of its name in capitals after ``CTSEG_SCAN_``.

    Attributes:
        memory_gb: What all scans of an entry may take together, and any of them, in GiB; None: half of what is free
            together, all of it alone.
        shared_memory_mb: What in-process calls may take of ``/dev/shm``, in MiB; None: half of what is free.
        threads: CPU threads of a compiled kernel; None: all processors.
        lanes: Scans at once, beside small ones.
        most_waiting: Scans that may wait; more are refused.
        most_windows: Windows that a network may have to compute for a scan, mirrored ones not counted; scans with more
            are refused.
    """

    memory_gb: float | None = Field(default=None, gt=0, le=1 << 20)
    shared_memory_mb: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    lanes: int = Field(default=3, ge=1, le=64)
    most_waiting: int = Field(default=64, ge=1, le=10_000)
    most_windows: int = Field(default=1_000_000, ge=1, le=1_000_000)

    @property
    def memory_bytes(self) -> int | None:
        """``memory_gb`` in bytes."""
        return None if self.memory_gb is None else int(self.memory_gb * (1 << 30))

    @property
    def shared_memory_bytes(self) -> int | None:
        """``shared_memory_mb`` in bytes."""
        return None if self.shared_memory_mb is None else self.shared_memory_mb << 20


def read_scan_settings(environment: Mapping[str, str] = os.environ) -> ScanSettings:
    """Read the variables ``CTSEG_SCAN_…``; an empty one counts as not set.

    Raises:
        SetupError: One is unknown, or its value cannot be used; all problems are told at once.
    """
    named = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX) and value
    }
    try:
        return ScanSettings.model_validate(named)
    except ValidationError as error:
        raise SetupError("; ".join(told_of_settings(error, prefix=_PREFIX))) from error
