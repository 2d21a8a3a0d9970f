"""Bundles are found, and their entries made fresh, by one server of a repository at a time."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import Timeout

from ctseg.container.build_process import BuildJob, BuiltVersions
from ctseg.container.children import run_child
from ctseg.container.settings import Settings
from ctseg.errors import OutputError, SetupError
from ctseg.files.folders import require_writable
from ctseg.files.locking import acquired, holder_of
from ctseg.model_spec import SPEC_NAME
from ctseg.recipe import RECIPE_NAME
from ctseg.serving.isolation import empty_folder, python_command

_HEADS = (SPEC_NAME, RECIPE_NAME)
_LOCK_NAME = ".ctseg-start.lock"
_log = logging.getLogger(__name__)


def find_bundles(folder: Path) -> list[Path]:
    """Return the bundles in a folder: itself, or the folders in it. A recipe's bundle counts as one.

    Raises:
        SetupError: It cannot be read.
    """
    try:
        if not folder.is_dir():
            return []
        if any((folder / head).is_file() for head in _HEADS):
            return [folder]
        found = {path.parent for head in _HEADS for path in folder.glob(f"*/{head}")}
        return sorted(path for path in found if path.name[0] != ".")
    except OSError as error:
        raise SetupError(
            f"{error.filename or folder}: cannot be read by user {os.getuid()} ({error.strerror}): make the mounted "
            f"bundles readable, or run with --user of their owner"
        ) from error


@contextlib.contextmanager
def repository_lock(settings: Settings) -> Iterator[None]:
    """Hold the lock that servers with the same repository share.

    Raises:
        SetupError: The repository cannot be written, or another server builds for too long.
    """
    _require_own(settings.models)
    path = settings.models / _LOCK_NAME
    try:
        lock = acquired(path, timeout_s=0)
    except Timeout:
        _log.info("waiting for another server that builds into %s", settings.models)
        try:
            lock = acquired(path, timeout_s=settings.lock_timeout_s)
        except Timeout as error:
            raise SetupError(
                f"{settings.models}: another server has been building for {settings.lock_timeout_s} s: look at its "
                f"log, or raise CTSEG_LOCK_TIMEOUT_S; {holder_of(error.lock_file)} holds {error.lock_file}"
            ) from error
    try:
        yield
    finally:
        lock.release()


def build_entries(settings: Settings, bundles: Sequence[Path]) -> dict[str, int]:
    """Make each bundle's entry fresh: built only where none was built from it, by these tools, for this machine.

    Returns:
        The version that was built for this machine, by the name of the model or recipe.

    Raises:
        SetupError: A build failed; it has told why.
    """
    words = settings.build_words
    built: dict[str, int] = {}
    for bundle in bundles:
        _log.info("%s: %s, %s", bundle, words.backend, words.precision)
        job = BuildJob(bundle=bundle.absolute(), repository=settings.models.absolute(), words=words)
        command = python_command("-m", "ctseg.container.build_process")
        with empty_folder("ctseg-build-") as folder:
            status, answer = run_child(command, sent=job.model_dump_json(), keep_output=True, folder=folder)
        if status:
            raise SetupError(f"{bundle}: its build ended with status {status}: nothing is served")
        built.update(BuiltVersions.model_validate_json(answer).versions)
    return built


def members_of(bundles: Sequence[Path]) -> list[Path]:
    """Return the bundles of single models, those within a recipe's bundle too."""
    return [
        member
        for bundle in bundles
        for member in (find_bundles_within(bundle) if (bundle / RECIPE_NAME).is_file() else [bundle])
    ]


def find_bundles_within(recipe: Path) -> list[Path]:
    """Return the bundles of a recipe's members."""
    return sorted(path.parent for path in recipe.glob(f"*/{SPEC_NAME}"))


def _require_own(folder: Path) -> None:
    """Refuse a repository that is missing or cannot be written to."""
    if not folder.is_dir():
        raise SetupError(f"{folder}: no such folder: mount a volume there for the model repository")
    try:
        require_writable(folder)
    except OutputError as error:
        owner = folder.stat()
        raise SetupError(
            f"{error}: `chown {os.getuid()}:{os.getgid()}` the mounted folder, or run with "
            f"--user {owner.st_uid}:{owner.st_gid}"
        ) from error
