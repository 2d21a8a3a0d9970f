"""The curve of a training, from checkpoints and from the text that nnU-Net logs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ctseg.nnunet.training_curve import TrainedEpoch, curve_from_logging, read_training_curve

LOG = """
#######################################################################
Please cite the following paper when using nnU-Net:
#######################################################################
 
2026-11-28 04:38:46.500000: training of fold 0: {'batch_size': 2, 'lr': 0.01, 'epochs': 4, 'seed': None} 
2026-11-28 04:38:46.638747:  
2026-11-28 04:38:46.638747: Epoch 0 
2026-11-28 04:38:46.638747: Current learning rate: 0.01 
2026-11-28 04:38:47.281738: train_loss 0.7706 
2026-11-28 04:38:47.281983: val_loss -0.25 
2026-11-28 04:38:47.282038: Pseudo dice [np.float32(0.25), np.float32(nan)] 
2026-11-28 04:38:47.282123: Epoch time: 8.0 s 
2026-11-28 04:38:47.282166: Yayy! New best EMA pseudo Dice: 0.25 
2026-11-28 04:38:47.928727: Epoch 1 
2026-11-28 04:38:47.928795: Current learning rate: 0.00536 
2026-11-28 04:38:48.575838: train_loss 0.5 
2026-11-28 04:38:48.576002: val_loss 1e-4 
2026-11-28 04:38:48.576039: Pseudo dice [0.75, 0.25] 
2026-11-28 04:38:48.576087: Epoch time: 6.0 s 
2026-11-28 04:38:48.928727: Epoch 2 
2026-11-28 04:38:48.928795: Current learning rate: 0.002 
"""  # noqa: W291, W293 (nnU-Net's)


def logging_of(epochs: int) -> dict[str, list[Any]]:
    """What nnU-Net's logger holds after so many epochs, and the begin of the next."""
    numbers = range(epochs)
    return {
        "mean_fg_dice": [0.5 + number / 16 for number in numbers],
        "ema_fg_dice": [0.25 + number / 16 for number in numbers],
        "dice_per_class_or_region": [[0.5, 0.5 + number / 8] for number in numbers],
        "train_losses": [-number / 4 for number in numbers],
        "val_losses": [-number / 8 for number in numbers],
        "lrs": [0.01 / (1 + number) for number in range(epochs + 1)],
        "epoch_start_timestamps": [100.0 * number for number in range(epochs + 1)],
        "epoch_end_timestamps": [100.0 * number + 3 + number for number in numbers],
    }


def save(path: Path, epochs: int, **more: Any) -> None:
    torch.save({"logging": logging_of(epochs), "current_epoch": epochs, **more}, path)


def test_the_numbers_of_a_checkpoint_are_those_of_nnunets_logger(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint_latest.pth", 2, ctseg_training={"epochs": 5})
    curve = read_training_curve(tmp_path)
    assert curve is not None
    assert curve.epochs == (
        TrainedEpoch(1, 0.0, 0.0, (0.5, 0.5), 0.5, 0.25, 0.01, 3.0),
        TrainedEpoch(2, -0.25, -0.125, (0.5, 0.625), 0.5625, 0.3125, 0.005, 4.0),
    )
    assert (curve.planned, curve.source, curve.rounded) == (5, "checkpoint_latest.pth", False)
    assert curve.left_s == 3 * 3.5


def test_a_log_alone_gives_its_rounded_numbers_after_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_11_28_04_38_46.txt").write_text(LOG)
    curve = read_training_curve(tmp_path)
    assert curve is not None
    first, second = curve.epochs
    assert (first.epoch, first.loss, first.validation_loss) == (1, 0.7706, -0.25)
    assert first.pseudo_dice[0] == 0.25
    assert math.isnan(first.pseudo_dice[1])
    assert (first.mean_dice, first.moving_dice) == (0.25, 0.25)
    assert second == TrainedEpoch(2, 0.5, 1e-4, (0.75, 0.25), 0.5, pytest.approx(0.275), 0.00536, 6.0)
    assert curve.rounded
    assert curve.left_s == 2 * 7.0


def test_what_has_come_furthest_is_taken(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_11_28_04_38_46.txt").write_text(LOG)
    save(tmp_path / "checkpoint_best.pth", 1)
    assert read_training_curve(tmp_path).source.startswith("training_log")
    save(tmp_path / "checkpoint_latest.pth", 2)  # as far as the log, and exact
    assert read_training_curve(tmp_path).source == "checkpoint_latest.pth"


def test_a_log_that_goes_on_takes_the_place_of_epochs_that_were_done_again(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_9_28_04_38_46.txt").write_text(LOG)
    again = LOG[LOG.index("2026-11-28 04:38:47.928727: Epoch 1") :].replace("train_loss 0.5", "train_loss 0.375")
    (tmp_path / "training_log_2026_11_2_04_38_46.txt").write_text(again)  # October sorts before September as text
    curve = read_training_curve(tmp_path)
    assert [(epoch.epoch, epoch.loss) for epoch in curve.epochs] == [(1, 0.7706), (2, 0.375)]
    anew = LOG[: LOG.index("2026-11-28 04:38:47.928727: Epoch 1")].replace("0.7706", "0.5")
    (tmp_path / "training_log_2026_12_1_04_38_46.txt").write_text(anew)
    assert [(epoch.epoch, epoch.loss) for epoch in read_training_curve(tmp_path).epochs] == [(1, 0.5)]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    assert read_training_curve(tmp_path) is None
    save(tmp_path / "checkpoint_best.pth", 1)
    assert read_training_curve(tmp_path).source == "checkpoint_best.pth"


def test_an_epoch_that_is_not_over_is_left_out() -> None:
    assert [epoch.epoch for epoch in curve_from_logging(logging_of(3), planned=None, source="").epochs] == [1, 2, 3]
    assert curve_from_logging(logging_of(0), planned=None, source="").epochs == ()
