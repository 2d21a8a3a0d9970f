"""What nnU-Net prints goes into a log file, and its bars are stages that ctseg shows."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ctseg.errors import CtsegError, OutputError, TrainingError
from ctseg.stages import Stage, open_stage
from ctseg.train.checkpoints import NO_SPACE


@contextlib.contextmanager
def output_into(file: Path) -> Iterator[None]:
    """Let what is printed in this process go into a file, which is named where an error comes.

    Args:
        file: Written anew.

    Raises:
        OutputError: It cannot be written, or the disk is full.
        TrainingError: nnU-Net raised what nobody foresaw; the traceback stands in the file.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        log = file.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {error.strerror or error}") from error
    with log:
        try:
            with contextlib.redirect_stdout(log):
                yield
        except CtsegError:
            raise
        except Exception as error:
            traceback.print_exc(file=log)
            what = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise OutputError(f"{error.filename or file.parent}: no space left ({what}): make room") from error
            raise TrainingError(
                f"nnU-Net stopped with {what}: what it said, and where it stopped, stands in {file}; where that tells "
                "nothing, let the voxels of the images be checked, too",
                settings=("verify",),
            ) from error


@contextlib.contextmanager
def bars_as_stages(*modules: Any) -> Iterator[None]:
    """Let the bars of tqdm that these modules of nnU-Net draw be stages instead.

    Args:
        modules: That have ``tqdm`` by name.
    """
    former = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = _StageBar
        yield
    finally:
        for module, drawn in zip(modules, former, strict=True):
            module.tqdm = drawn


class _StageBar:
    """As much of tqdm as nnU-Net uses."""

    def __init__(self, *, desc: str = "", total: int | None = None, **_: object) -> None:
        self._what, self._total = desc, total
        self._stage: Stage | None = None

    def __enter__(self) -> "_StageBar":
        self._stage = open_stage(self._what, self._total, unit="cases")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stage is not None:
            self._stage.end()

    def update(self, count: int = 1) -> None:
        if self._stage is not None:
            self._stage.advance(count)
