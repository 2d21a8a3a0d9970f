"""How a training went, epoch by epoch, from what nnU-Net leaves in a fold: checkpoints, or the log as text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctseg.errors import CheckpointError
from ctseg.nnunet.checkpoint import read_checkpoint

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""Names of nnU-Net's checkpoints, the most advanced one first where all is as nnU-Net leaves it."""

_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?: (.*)")
_WRAPPED = re.compile(r"np\.float\d+\(([^)]*)\)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf)")
_BEGIN, _PLANNED = re.compile(r"Epoch (\d+)\s*"), re.compile(r"training of fold .*'epochs': (\d+)")
_SCALARS = {"Current learning rate:": "lr", "train_loss": "loss", "val_loss": "validation_loss", "Epoch time:": "took"}


@dataclass(frozen=True)
class TrainedEpoch:
    """What one epoch brought.

    Attributes:
        epoch: Its number, from 1; nnU-Net counts from 0.
        loss: Mean loss of the training batches.
        validation_loss: Mean loss of the validation batches.
        pseudo_dice: Dice of the validation batches, of each label or region in nnU-Net's order; NaN where none had it.
        mean_dice: Their mean, as nnU-Net has it: NaN counts for nothing.
        moving_dice: Moving average of the mean, nnU-Net's.
        learning_rate: Of this epoch.
        took_s: Seconds that it took.
    """

    epoch: int
    loss: float
    validation_loss: float
    pseudo_dice: tuple[float, ...]
    mean_dice: float
    moving_dice: float
    learning_rate: float
    took_s: float


@dataclass(frozen=True)
class TrainingCurve:
    """The epochs of one fold.

    Attributes:
        epochs: In order, those that are done.
        planned: How many there will be; None where nothing says so.
        source: The file or files that the numbers are from.
        rounded: Whether they are from the log's text, which has four decimals.
    """

    epochs: tuple[TrainedEpoch, ...]
    planned: int | None
    source: str
    rounded: bool = False

    @property
    def left_s(self) -> float | None:
        """Seconds that the epochs to come will take, by the mean of the last ten; None where nothing says how many."""
        if self.planned is None or not self.epochs:
            return None
        last = [epoch.took_s for epoch in self.epochs[-10:]]
        return sum(last) / len(last) * max(0, self.planned - self.epochs[-1].epoch)


def read_training_curve(fold_folder: Path, *, record_key: str = "ctseg_training") -> TrainingCurve | None:
    """Return how the training of a fold went, by whichever file has come furthest.

    A checkpoint's numbers are exact. Stock nnU-Net saves one every 50 epochs only, so its log may have come further.
    A checkpoint that cannot be read is passed over: what it says is in the log, too.

    Args:
        fold_folder: ``fold_0`` … of a trained model, whether or not ctseg trained it.
        record_key: Where ctseg's checkpoints keep the options of the training.

    Returns:
        None where no epoch is told of.
    """
    curves = [curve for name in CHECKPOINTS if (curve := _from_checkpoint(fold_folder / name, record_key)) is not None]
    if (logged := _from_logs(fold_folder)) is not None:
        curves.append(logged)
    # of equals the first: exact before rounded
    return max(curves, key=lambda curve: curve.epochs[-1].epoch, default=None)


def curve_from_logging(logging: Mapping[str, Sequence[Any]], *, planned: int | None, source: str) -> TrainingCurve:
    """Return the curve of what nnU-Net's logger holds; an epoch that is not over is left out.

    Args:
        logging: Lists by nnU-Net's names, a value for each epoch.
        planned: How many epochs there will be.
        source: Where the numbers are from.

    Raises:
        KeyError: A list is missing.
        TypeError: A value is no number.
    """
    done = min(len(values) for values in logging.values())
    return TrainingCurve(
        tuple(
            TrainedEpoch(
                epoch=number + 1,
                loss=float(logging["train_losses"][number]),
                validation_loss=float(logging["val_losses"][number]),
                pseudo_dice=tuple(float(value) for value in logging["dice_per_class_or_region"][number]),
                mean_dice=float(logging["mean_fg_dice"][number]),
                moving_dice=float(logging["ema_fg_dice"][number]),
                learning_rate=float(logging["lrs"][number]),
                took_s=float(logging["epoch_end_timestamps"][number] - logging["epoch_start_timestamps"][number]),
            )
            for number in range(done)
        ),
        planned,
        source,
    )


def _from_checkpoint(path: Path, record_key: str) -> TrainingCurve | None:
    if not path.is_file():
        return None
    try:
        content = read_checkpoint(path, mapped=True)
        record = content.get(record_key)
        planned = record.get("epochs") if isinstance(record, Mapping) else None
        curve = curve_from_logging(content["logging"], planned=planned, source=path.name)
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return curve if curve.epochs else None


def _from_logs(folder: Path) -> TrainingCurve | None:
    """Read all logs of a fold, in the order in which they were begun: each may go on with the one before."""
    done: dict[int, dict[str, Any]] = {}
    planned, files = None, []
    for file in sorted(folder.glob("training_log_*.txt"), key=_begun):
        open_epoch: dict[str, Any] = {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if (match := _LINE.fullmatch(line)) is None:
                continue
            said = match[1]
            if begin := _BEGIN.fullmatch(said):
                open_epoch = {"epoch": int(begin[1]) + 1}
                # it begins again, and what came after it is no more
                done = {number: values for number, values in done.items() if number < open_epoch["epoch"]}
            elif told := _PLANNED.match(said):
                planned = int(told[1])
            elif said.startswith("Pseudo dice"):
                open_epoch["pseudo_dice"] = _numbers(said.removeprefix("Pseudo dice"))
            else:
                open_epoch.update({key: _numbers(said) for word, key in _SCALARS.items() if said.startswith(word)})
            if "took" in open_epoch and _is_whole(open_epoch):
                done[open_epoch["epoch"]] = open_epoch
                open_epoch = {}
        files.append(file.name)
    if not done:
        return None
    return TrainingCurve(_epochs_of(done), planned, ", ".join(files), rounded=True)


def _is_whole(epoch: Mapping[str, Any]) -> bool:
    return all(epoch.get(key) for key in ("epoch", "lr", "loss", "validation_loss", "took", "pseudo_dice"))


def _epochs_of(done: Mapping[int, Mapping[str, Any]]) -> tuple[TrainedEpoch, ...]:
    epochs: list[TrainedEpoch] = []
    for number, values in sorted(done.items()):
        dice = [value for value in values["pseudo_dice"] if value == value]
        mean = sum(dice) / len(dice) if dice else float("nan")
        moving = 0.9 * epochs[-1].moving_dice + 0.1 * mean if epochs else mean
        epochs.append(
            TrainedEpoch(
                epoch=number,
                loss=values["loss"][0],
                validation_loss=values["validation_loss"][0],
                pseudo_dice=values["pseudo_dice"],
                mean_dice=mean,
                moving_dice=moving,
                learning_rate=values["lr"][0],
                took_s=values["took"][0],
            )
        )
    return tuple(epochs)


def _numbers(text: str) -> tuple[float, ...]:
    """Return the numbers in a line of the log; numpy 2 writes ``np.float32(0.5)``."""
    return tuple(float(word) for word in _NUMBER.findall(_WRAPPED.sub(r"\1", text)))


def _begun(file: Path) -> list[int]:
    # month and day have no leading zeros in the name
    return [int(part) for part in file.stem.removeprefix("training_log_").split("_") if part.isdecimal()]
