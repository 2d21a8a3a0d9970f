"""The line that an epoch leaves."""

import dataclasses
import math

import pytest

from ctseg.train.epochs import EpochReport, bars


@pytest.mark.parametrize(
    ("left_s", "words"),
    [(89.0, "left 89 s"), (91.0, "left 2 min"), (89 * 60, "left 89 min"), (3 * 3600 + 5 * 60, "left 3 h 05 min")],
)
def test_an_epoch_is_one_line(left_s: float, words: str) -> None:
    report = EpochReport(
        epoch=2, epochs=500, loss=0.25, validation_loss=0.5, pseudo_dice=0.75, moving_dice=0.7, best_dice=0.71,
        learning_rate=1e-4, took_s=12.34, left_s=left_s,
    )  # fmt: skip
    assert str(dataclasses.replace(report, course="▁▆", lowest=("cyst", 0.5))) == (
        "epoch 2/500  loss 0.2500 (validation 0.5000)  pseudo Dice 0.7500 (moving 0.7000, best 0.7100, lowest 0.5000 "
        f"cyst)  ▁▆  lr 1.00e-04  12.3 s, {words}"
    )
    assert str(report) == (
        "epoch 2/500  loss 0.2500 (validation 0.5000)  pseudo Dice 0.7500 (moving 0.7000, best 0.7100)  "
        f"lr 1.00e-04  12.3 s, {words}"
    )


def test_bars_stand_for_shares_from_zero_to_one() -> None:
    assert bars([0.0, 0.124, 0.126, 0.5, math.nan, 0.99, 1.0]) == "▁▁▂▅ ██"
    assert bars([]) == ""
    assert bars([0.3]) == "▃"


def test_many_epochs_are_twenty_bars_of_means() -> None:
    # 60 epochs, three to a bar: the first three have a mean of 0.5, the last three of 0.75
    course = bars([0.0, 0.5, 1.0, *[0.0] * 54, 0.5, 0.75, 1.0])
    assert course == "▅" + "▁" * 18 + "▇"
