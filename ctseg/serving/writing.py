"""How a model repository is written: one writer at a time, and nothing half-written where a server looks."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout

from ctseg.errors import OutputError, SetupError
from ctseg.files import atomic
from ctseg.files.locking import acquired, holder_of
from ctseg.files.signals import signals_as_exit, signals_later
from ctseg.model_spec import SPEC_NAME, ModelSpec
from ctseg.serving.entries import CONFIG_NAME
from ctseg.triton.configuration import text_from_config

_LOCK_NAME = ".ctseg.lock"
_LOCK_TIMEOUT_S = 600.0


@contextlib.contextmanager
def writing(repository: Path, name: str) -> Iterator[None]:
    """Be the only writer of a repository while the block runs; the folder is made if it is missing.

    Args:
        repository: Folder of the repository.
        name: What is written, for messages.

    Raises:
        SetupError: Another writer holds the lock for ten minutes.
        OutputError: The repository cannot be written, here or in the block.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquired(repository / _LOCK_NAME, timeout_s=_LOCK_TIMEOUT_S)
        except Timeout as error:
            held = f"{holder_of(error.lock_file)} has held {error.lock_file} for {_LOCK_TIMEOUT_S:.0f} s"
            raise SetupError(f"{name}: {held}: try again later") from error
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise OutputError(f"{name}: cannot write into {repository}: {error}") from error


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """Yield a folder on the repository's file system where no server looks for models or versions.

    Triton takes every folder of the repository for a model, and loads a model again whenever anything
    in its folder changes. The parts are therefore put together beside the repository, where that is
    the same file system and may be written; else in a hidden folder, which a watching server reports
    and passes over. The folder is removed afterwards, and what killed writers have left before: the caller
    holds the repository by :func:`writing`.
    """
    beside = repository.absolute().parent
    parent = beside if _can_rename_between(beside, repository) else repository
    prefix = f".ctseg-staging-{repository.name}-"
    for stale in parent.glob(f"{prefix}*"):  # a killed writer's: this one holds the lock
        shutil.rmtree(stale, ignore_errors=True)
    with signals_as_exit():
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            folder.chmod(0o755)
            yield folder
        finally:
            with signals_later():
                shutil.rmtree(folder, ignore_errors=True)


def write_head(folder: Path, config: Any, newest: ModelSpec) -> None:
    """Write what stands above the versions of a model: its configuration, and its newest spec for people."""
    atomic.write_text(folder / SPEC_NAME, pretty_json(json.loads(newest.to_json())))
    atomic.write_text(folder / CONFIG_NAME, text_from_config(config))


def pretty_json(content: Mapping[str, Any]) -> str:
    """Return JSON for people and programs, the same for the same content."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _can_rename_between(parent: Path, repository: Path) -> bool:
    return os.access(parent, os.W_OK) and parent.stat().st_dev == repository.stat().st_dev
