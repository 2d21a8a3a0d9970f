"""The checkpoints of a training: written whole or not at all, and how far they have come."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ctseg.errors import OutputError
from ctseg.files import atomic
from ctseg.nnunet.checkpoint import read_checkpoint
from ctseg.train.options import RECORD_KEY, TrainingOptions

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a used-up quota, and a file beyond what is allowed."""
FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"


class _Remembering:
    """An open file that keeps the error of a failed write: torch replaces it by one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(
    path: Path, checkpoint: Mapping[str, Any], *, save: Callable[[Any, Any], object] = torch.save
) -> None:
    """Write a checkpoint so that ``path`` is always a whole file: the former one, or this one.

    Args:
        path: Where the checkpoint goes.
        checkpoint: What nnU-Net's ``load_checkpoint`` expects.
        save: Writes an object into an open file.

    Raises:
        OutputError: The disk is full, or the folder cannot be written to; the former file is intact.
    """
    for leftover in path.parent.glob(f".{path.name}.*.tmp{path.suffix}"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    with atomic.replacing(path) as part:
        remembering = None
        try:
            with part.open("wb") as file:
                remembering = _Remembering(file)
                save(dict(checkpoint), remembering)
                file.flush()
                os.fsync(file.fileno())  # some file systems tell only here that they are full
        except (OSError, RuntimeError) as error:
            cause = remembering.error if remembering is not None and remembering.error is not None else error
            raise _not_written(path, cause) from error


def _not_written(path: Path, error: Exception) -> OutputError:
    is_kept = path.is_file()
    kept = f"; the former {path.name} is intact, and the training can go on from it" if is_kept else ""
    settings = ("resume",) if is_kept else ()
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        free_mb = shutil.disk_usage(path.parent).free / 2**20
        return OutputError(
            f"{path}: no space left for the checkpoint ({free_mb:.0f} MiB free): make room{kept}", settings=settings
        )
    return OutputError(f"{path}: the checkpoint could not be written ({error}){kept}", settings=settings)


@dataclass(frozen=True)
class TrainingState:
    """How far a training has come.

    Attributes:
        file: The checkpoint.
        epochs_done: Completed epochs.
        options: What the training was started with; None for a checkpoint of nnU-Net's own commands.
    """

    file: Path
    epochs_done: int
    options: TrainingOptions | None


@contextlib.contextmanager
def replacing(fold_folder: Path) -> Iterator[None]:
    """Keep the training in a fold until the one that begins inside has saved a checkpoint.

    The fold is moved aside, and comes back where the new training does not get that far.
    """
    settle(fold_folder)
    if fold_folder.exists():
        fold_folder.rename(_aside(fold_folder))
    try:
        yield
    finally:
        settle(fold_folder)


def settle(fold_folder: Path) -> None:
    """Decide between a fold and the former one beside it: a fold with a checkpoint stays, one without goes.

    Nothing happens where no former one lies aside.
    """
    former = _aside(fold_folder)
    if not former.exists():
        return
    if any((fold_folder / name).is_file() for name in (FINAL, LATEST, BEST)):
        shutil.rmtree(former, ignore_errors=True)
        return
    if fold_folder.exists():
        shutil.rmtree(fold_folder)
    former.rename(fold_folder)


def _aside(fold_folder: Path) -> Path:
    # nnU-Net takes every folder whose name begins with fold_ for a fold
    return fold_folder.with_name(f"replaced_{fold_folder.name}")


def training_state(fold_folder: Path) -> TrainingState | None:
    """Return the most advanced checkpoint of a fold; None where there is none.

    nnU-Net takes ``final``, then ``latest``, then ``best``, whichever is first there: an extended or
    repeated training would lose what it has done since.

    Raises:
        CheckpointError: A checkpoint is unreadable.
    """
    states = []
    for name in (FINAL, LATEST, BEST):
        file = fold_folder / name
        if file.is_file():
            checkpoint = read_checkpoint(file)
            record = checkpoint.get(RECORD_KEY)
            states.append(
                TrainingState(
                    file,
                    int(checkpoint["current_epoch"]),
                    None if record is None else TrainingOptions.from_record(record),
                )
            )
    return max(states, key=lambda state: state.epochs_done, default=None)
