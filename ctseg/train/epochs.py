"""What an epoch has brought, in one line."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctseg.nnunet.plans import foreground_names
from ctseg.nnunet.training_curve import curve_from_logging

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 20


@dataclass(frozen=True)
class EpochReport:
    """An epoch that is over.

    Attributes:
        epoch: Its number, from 1.
        epochs: How many there will be.
        loss: Mean loss of the training batches.
        validation_loss: Mean loss of the validation batches.
        pseudo_dice: Dice of the validation batches, mean over the foreground.
        moving_dice: Its moving average.
        best_dice: The best moving average so far.
        learning_rate: Of this epoch.
        took_s: Seconds that it took.
        left_s: Seconds that the epochs to come will take, by the mean of the last ten.
        course: The pseudo Dice of all epochs so far, as :func:`bars`.
        lowest: Name of the label whose pseudo Dice is the lowest, and this; None where there is but one.
    """

    epoch: int
    epochs: int
    loss: float
    validation_loss: float
    pseudo_dice: float
    moving_dice: float
    best_dice: float
    learning_rate: float
    took_s: float
    left_s: float
    course: str = ""
    lowest: tuple[str, float] | None = None

    def __str__(self) -> str:
        lowest = "" if self.lowest is None else f", lowest {self.lowest[1]:.4f} {self.lowest[0]}"
        return (
            f"epoch {self.epoch}/{self.epochs}  loss {self.loss:.4f} (validation {self.validation_loss:.4f})  "
            f"pseudo Dice {self.pseudo_dice:.4f} (moving {self.moving_dice:.4f}, best {self.best_dice:.4f}{lowest})  "
            f"{self.course}{'  ' if self.course else ''}"
            f"lr {self.learning_rate:.2e}  {self.took_s:.1f} s, left {duration(self.left_s)}"
        )


def last_epoch(trainer: Any) -> EpochReport:
    """Return what nnU-Net's log says of the epoch that is just over.

    Args:
        trainer: nnU-Net's, after ``on_epoch_end``.
    """
    curve = curve_from_logging(trainer.logger.get_checkpoint(), planned=trainer.num_epochs, source="")
    last = curve.epochs[-1]
    return EpochReport(
        epoch=trainer.current_epoch,
        epochs=trainer.num_epochs,
        loss=last.loss,
        validation_loss=last.validation_loss,
        pseudo_dice=last.mean_dice,
        moving_dice=last.moving_dice,
        best_dice=float(trainer._best_ema),
        learning_rate=last.learning_rate,
        took_s=last.took_s,
        left_s=curve.left_s or 0.0,
        course=bars([epoch.mean_dice for epoch in curve.epochs]),
        lowest=_lowest(foreground_names(trainer.dataset_json), last.pseudo_dice),
    )


def bars(shares: Sequence[float], columns: int = _COLUMNS) -> str:
    """Return numbers from 0 to 1 as a line of bars, from the lowest (0) to the highest (1); NaN is a blank.

    Args:
        shares: One for each epoch.
        columns: At most so many bars: where there are more epochs, each bar is the mean of some.
    """
    count = min(columns, len(shares))
    cuts = [len(shares) * column // count for column in range(count + 1)] if count else [0]
    line = ""
    for first, end in itertools.pairwise(cuts):
        there = [share for share in shares[first:end] if not math.isnan(share)]
        mean = min(1.0, max(0.0, sum(there) / len(there))) if there else math.nan
        line += " " if math.isnan(mean) else _BARS[min(len(_BARS) - 1, int(mean * len(_BARS)))]
    return line


def _lowest(names: Sequence[str], dice: Sequence[float]) -> tuple[str, float] | None:
    there = [(value, name) for name, value in zip(names, dice, strict=False) if not math.isnan(value)]
    if len(dice) < 2 or not there:
        return None
    value, name = min(there)
    return name, value


def duration(seconds: float) -> str:
    """Return how long something takes, for people."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
