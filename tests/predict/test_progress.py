"""Stages: what is told, and what is counted."""

import pytest

from ctseg.predict.progress import Progress, StageClock


class Recorder(Progress):
    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def stage_began(self, case, stage) -> None:
        self.told.append(("began", case, stage))

    def stage_ended(self, case, stage) -> None:
        self.told.append(("ended", case, stage))


def test_stages_are_told_in_order_also_when_one_fails():
    recorder = Recorder()
    clock = StageClock("c1", recorder)
    with clock.stage("read"):
        pass
    with pytest.raises(OSError, match="gone"), clock.stage("network"):
        raise OSError("gone")
    assert recorder.told == [
        ("began", "c1", "read"),
        ("ended", "c1", "read"),
        ("began", "c1", "network"),
        ("ended", "c1", "network"),
    ]


def test_a_stage_that_is_entered_again_is_counted_again(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 10.0, 14.0, 20.0])
    monkeypatch.setattr("ctseg.predict.progress.time.monotonic", lambda: next(now))
    clock = StageClock("c1")  # 0
    for _ in range(2):
        with clock.stage("restore"):  # 1 to 3, 10 to 14
            pass
    seconds = clock.seconds  # 20
    assert (seconds.restore, seconds.network, seconds.total) == (6.0, 0.0, 20.0)
