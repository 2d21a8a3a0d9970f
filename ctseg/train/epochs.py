"""What an epoch has brought, in one line."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_SHOWN = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs")


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

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}/{self.epochs}  loss {self.loss:.4f} (validation {self.validation_loss:.4f})  "
            f"pseudo Dice {self.pseudo_dice:.4f} (moving {self.moving_dice:.4f}, best {self.best_dice:.4f})  "
            f"lr {self.learning_rate:.2e}  {self.took_s:.1f} s, left {_duration(self.left_s)}"
        )


def last_epoch(trainer: Any) -> EpochReport:
    """Return what nnU-Net's log says of the epoch that is just over.

    Args:
        trainer: nnU-Net's, after ``on_epoch_end``.
    """
    loss, validation_loss, dice, moving, rate = (float(trainer.logger.get_value(key, step=-1)) for key in _SHOWN)
    starts = trainer.logger.get_value("epoch_start_timestamps", step=None)
    ends = trainer.logger.get_value("epoch_end_timestamps", step=None)
    seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    return EpochReport(
        epoch=trainer.current_epoch,
        epochs=trainer.num_epochs,
        loss=loss,
        validation_loss=validation_loss,
        pseudo_dice=dice,
        moving_dice=moving,
        best_dice=float(trainer._best_ema),
        learning_rate=rate,
        took_s=seconds[-1],
        left_s=float(np.mean(seconds[-10:])) * (trainer.num_epochs - trainer.current_epoch),
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
