"""Which versions of a model this server may load, which ones servers hold, and which are superseded."""

import contextlib
import fcntl
import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.errors import CtsegError
from ctseg.files.locking import flock_serves
from ctseg.serving.entries import BUILD_NAME, Entry, EntryVersion, RecipeEntry, list_recipes
from ctseg.serving.upkeep import remove_leftovers, remove_versions

_log = logging.getLogger(__name__)


def builds_of(version: EntryVersion) -> list[Mapping[str, Any]]:
    """Return what is recorded of each build in a version: one, or one for each GPU type."""
    others = sorted(version.folder.glob("build_sm*.json"))
    return [version.build, *(json.loads(file.read_text(encoding="utf-8")) for file in others)]


def served_versions(entry: Entry, fitting: int | None) -> list[EntryVersion]:
    """Return the versions that a server may load, oldest first: the one for its machine, and the one before.

    Of a model of TensorRT the one before counts only if it has plans of the same TensorRT for the same GPUs: a plan
    that does not load keeps the whole server from starting.

    Args:
        entry: A model of the repository.
        fitting: The version that was built for this machine; None takes the newest.
    """
    versions = [item for item in entry.versions if fitting is None or item.version <= fitting][-2:]
    if entry.backend != "tensorrt":
        return versions
    plans = [{(build.get("tensorrt"), build.get("gpu")) for build in builds_of(item)} for item in versions]
    return [item for item, its_plans in zip(versions, plans, strict=True) if its_plans >= plans[-1]]


def mark_as_served(versions: Iterable[EntryVersion]) -> None:
    """Mark versions as served until this process ends, also after it has become tritonserver.

    A shared lock on ``build.json`` is the mark; the open files are inherited, and nobody closes them.
    """
    for version in versions:
        file = os.open(version.folder / BUILD_NAME, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: there nothing is removed either
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.set_inheritable(file, True)


def may_be_served(version: EntryVersion) -> bool:
    """Whether a server serves a version, or may do so: always, where flock does not reach every host."""
    try:
        if not flock_serves(version.folder.parent.parent):
            return True
        with (version.folder / BUILD_NAME).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def superseded(entry: Entry) -> list[EntryVersion]:
    """Return the versions for whose machines there are two newer ones each."""
    machines = [{str(build.get("gpu") or build.get("machine")) for build in builds_of(item)} for item in entry.versions]
    return [
        item
        for i, item in enumerate(entry.versions)
        if all(sum(machine in newer for newer in machines[i + 1 :]) >= 2 for machine in machines[i])
    ]


def remove_superseded(repository: Path, entries: Sequence[Entry]) -> None:
    """Remove what killed builds have left, and superseded versions that are older than all that servers hold.

    Newer ones than those may have been loaded while a server runs. What a recipe names stays.

    Args:
        repository: Triton's model repository.
        entries: What it holds.
    """
    try:
        remove_leftovers(repository)
        recipes = list_recipes(repository)
        for entry in entries:
            old = superseded(entry)
            free = itertools.takewhile(lambda version: not may_be_served(version), entry.versions)
            numbers = [version.version for version in free if version in old]
            for number, recipe in _named(entry, recipes).items():
                if number in numbers:
                    _log.warning("%s: version %d is old, but recipe %s names it: it stays", entry.name, number, recipe)
                    numbers.remove(number)
            if numbers:
                _log.info("%s: versions %s are superseded and removed", entry.name, ", ".join(map(str, numbers)))
                remove_versions(repository, entry.name, numbers)
    except CtsegError as error:
        _log.warning("what is old stays: %s", error)


def _named(entry: Entry, recipes: Iterable[RecipeEntry]) -> Mapping[int, str]:
    """Return the versions of a model that recipes name by their specs, each with a recipe."""
    newest = {item.spec.digest: item.version for item in entry.versions}
    return {
        newest[member.digest]: recipe.name
        for recipe in recipes
        for member in recipe.recipe.members
        if member.model == entry.name and member.digest in newest
    }
