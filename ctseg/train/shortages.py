"""A GPU or a disk that is full, met in the middle of a training: what to do about it."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ctseg.errors import OutputError, TrainingError
from ctseg.train.checkpoints import NO_SPACE
from ctseg.train.options import Training


@contextlib.contextmanager
def explaining_full_gpu(training: Training, plans: Mapping[str, Any]) -> Iterator[None]:
    """Turn a full GPU into advice with numbers.

    Raises:
        TrainingError: torch found no memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{_advice(training, plans)} ({error})", settings=("batch_size", "gradient_accumulation_steps", "resume")
        ) from error


@contextlib.contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk, met by any of the files that nnU-Net writes, into a message.

    Args:
        folder: Of the trained model.

    Raises:
        OutputError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free_mb = shutil.disk_usage(folder.parents[1]).free / 2**20
        raise OutputError(
            f"{error.filename or folder}: no space left ({error.strerror}, {free_mb:.0f} MiB free): make room; "
            "what was saved is intact: continue the training then",
            settings=("resume",),
        ) from error


def _advice(training: Training, plans: Mapping[str, Any]) -> str:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = PlansManager(plans).get_configuration(training.configuration)
    batch = training.options.batch_size or int(configuration.batch_size)
    steps = training.options.gradient_accumulation_steps or 1
    advice = []
    if batch > 1:
        advice.append(
            f"a batch size of {batch // 2} with {steps * 2} gradient accumulation steps takes about half the memory "
            f"for the same {batch * steps} patches a step"
        )
    kwargs = configuration.network_arch_init_kwargs
    if "SwinUNETR" in configuration.network_arch_class_name and not kwargs.get("use_checkpoint"):
        advice.append(
            "`ctseg plan` for the memory of your GPU turns gradient checkpointing on where needed "
            '(or set "use_checkpoint": true in the plans\' arch_kwargs)'
        )
    else:
        advice.append("`ctseg plan` for less memory plans a smaller patch")
    patch = " x ".join(str(side) for side in configuration.patch_size)
    return (
        f"the GPU's memory does not suffice for batches of {batch} patches of {patch}: {'; '.join(advice)}. "
        "What was saved is intact: the training can be continued"
    )
