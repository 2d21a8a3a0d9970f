"""Whether the container has the shared memory that its models can fill."""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.predict.whole_scan import SCAN_SUFFIX
from ctseg.serving.entries import Entry, list_models, read_config, read_recipe
from ctseg.serving.whole_scan.shared_memory import SHARE_OF_CALLS, SHARED_MEMORY, bytes_of_window
from ctseg.triton.configuration import scan_parameters

_PYTHON_BACKEND_OWN_BYTES = 16 << 20
_log = logging.getLogger(__name__)


def shared_memory_needed(entry: Entry, instances: int) -> int:
    """Return what the python backend puts into shared memory at most, in bytes: a full batch for each instance."""
    if entry.backend != "python":
        return 0
    spec = entry.newest.spec
    sent = spec.num_input_channels * spec.input.item_bytes
    answered = spec.num_heads * (spec.output.item_bytes + (1 if spec.votes else 0))
    batch = spec.max_batch_size * math.prod(spec.patch_size) * (sent + answered)
    return instances * (batch + _PYTHON_BACKEND_OWN_BYTES)


def shared_memory_for_scans(networks: Sequence[Entry]) -> int:
    """Return what an entry for whole scans needs of it at least, in bytes.

    Calls take a part of it, and it has to hold one window there and back, of whatever backend the network is. As much
    again is for the tensors of scans: with more, more of them are taken in at once.

    Args:
        networks: The models that it calls.
    """
    window = max(bytes_of_window(entry.newest.spec, entry.backend, votes=True) for entry in networks)
    return int(window / SHARE_OF_CALLS) + _PYTHON_BACKEND_OWN_BYTES


def require_shared_memory(
    entries: Sequence[Entry], scans: Mapping[str, Sequence[Entry]], folder: Path = SHARED_MEMORY
) -> None:
    """Refuse a start with less shared memory than the python backend can fill, or than one window of a scan takes.

    Args:
        entries: The models that are served.
        scans: The models that each entry for whole scans calls, by its name.
        folder: Where the memory is.

    Raises:
        SetupError: With the size to ask for.
    """
    needed = sum(shared_memory_for_scans(networks) for networks in scans.values())
    for entry in entries:
        groups = read_config(entry.folder).instance_group
        needed += shared_memory_needed(entry, sum(max(1, group.count) for group in groups) or 1)
    size = shutil.disk_usage(folder).total
    if needed > size:
        raise SetupError(
            f"{folder} has {size >> 20} MB, the models of the python backend{' and whole scans' if scans else ''} need "
            f"{-(-needed // (1 << 20))} MB of shared memory: run the container with --shm-size "
            f"{-(-needed // (1 << 20))}m or more (Kubernetes: an emptyDir of medium Memory at /dev/shm)"
            f"{'; or build the models without whole scans' if scans else ''}"
        )
    if scans:
        _log.info(
            "%s has %d MB, models need %d MB: scans that wait or are worked on fill the rest, as they were sent",
            folder, size >> 20, -(-needed // (1 << 20)),
        )  # fmt: skip


def networks_of_scans(view: Path, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Return the models that each entry for whole scans calls, by its name.

    Args:
        view: The repository that is served.
        entries: The models in it.
    """
    by_name = {entry.name: entry for entry in entries}
    found = {}
    for name in list_models(view):
        if not scan_parameters(read_config(view / name)):
            continue
        recipe = read_recipe(view / name)
        members = [name.removesuffix(SCAN_SUFFIX)] if recipe is None else [each.model for each in recipe[0].members]
        if networks := [by_name[member] for member in members if member in by_name]:
            found[name] = networks
    return found
