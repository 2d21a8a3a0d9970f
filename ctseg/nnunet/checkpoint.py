"""Checkpoints of nnU-Net, read without running anything that is in them.

A checkpoint is a pickle, and a pickle can name any function to call. Here it is read by torch's weights-only
unpickler, which calls nothing but what is on a list; :func:`safe_globals` adds what nnU-Net needs beside tensors.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

from ctseg.errors import CheckpointError

TRUST_HINT = (
    "if you know where it comes from, it can be trusted and loaded all the same; code inside it then runs with your "
    "rights"
)
"""For callers that offer the choice."""

_DTYPES = (
    "bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip


def safe_globals() -> list[Any]:
    """Return what a checkpoint may name beside torch's own list, in the form of ``torch.serialization.safe_globals``.

    numpy's functions have had two places, and a checkpoint names the one of the numpy that wrote it.
    """
    import numpy as np

    scalar = np.float32(0).__reduce__()[0]
    reconstruct = np.zeros(1).__reduce__()[0]
    return [
        # losses and Dice in the trainer's log, and the best of them (`_best_ema`), are numpy scalars
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        # each scalar and array names its dtype, which is rebuilt by its class
        np.dtype,
        *(type(np.dtype(name)) for name in _DTYPES),
        # trainers that log the values of all labels at once leave arrays of them
        np.ndarray,
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    ]


def read_checkpoint(
    path: Path, *, mapped: bool = False, trust: bool = False, trust_setting: str | None = None
) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: A file that ``torch.save`` wrote.
        mapped: Map the tensors instead of reading them, so that what is never looked at costs nothing; the file
            must stay as it is while they are used.
        trust: Load whatever the file asks for, and run what is in it.
        trust_setting: Name of the setting by which the user could ask for ``trust``; None where there is none.

    Raises:
        CheckpointError: The file is missing, damaged, no dictionary, or names what is not on the list.
    """
    import torch

    try:
        with torch.serialization.safe_globals(safe_globals()):
            # what torch wrote before 1.6 is no zip file, and cannot be mapped
            is_mapped = mapped and zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=is_mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than weights and numbers, which could run code: {_first_line(error)}"
            + (f"; {TRUST_HINT}" if trust_setting else ""),
            settings=(trust_setting,) if trust_setting else (),
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged or not copied whole, it cannot be read as a checkpoint: {_first_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected nnU-Net's dictionary, found {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    """Return the line of torch's message that names what was refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__)
