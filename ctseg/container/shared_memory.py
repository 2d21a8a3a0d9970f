"""Whether the container has the shared memory that its models can fill."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.serving.entries import Entry, read_config

FOLDER = Path("/dev/shm")  # noqa: S108 (where Linux keeps POSIX shared memory)
_PYTHON_BACKEND_OWN_BYTES = 16 << 20


def shared_memory_needed(entry: Entry, instances: int) -> int:
    """Return what the python backend puts into shared memory at most, in bytes: a full batch for each instance."""
    if entry.backend != "python":
        return 0
    spec = entry.newest.spec
    sent = spec.num_input_channels * spec.input.item_bytes
    answered = spec.num_heads * spec.output.item_bytes
    batch = spec.max_batch_size * math.prod(spec.patch_size) * (sent + answered)
    return instances * (batch + _PYTHON_BACKEND_OWN_BYTES)


def require_shared_memory(entries: Sequence[Entry], folder: Path = FOLDER) -> None:
    """Refuse a start with less shared memory than the python backend can fill.

    Raises:
        SetupError: With the size to ask for.
    """
    needed = 0
    for entry in entries:
        groups = read_config(entry.folder).instance_group
        needed += shared_memory_needed(entry, sum(max(1, group.count) for group in groups) or 1)
    size = shutil.disk_usage(folder).total
    if needed > size:
        raise SetupError(
            f"{folder} has {size >> 20} MB, the models of the python backend need {-(-needed // (1 << 20))} MB of "
            f"shared memory: run the container with --shm-size {-(-needed // (1 << 20))}m or more (Kubernetes: an "
            "emptyDir of medium Memory at /dev/shm)"
        )
