"""What a person sees of the stages of a long command."""

import io
import sys

import pytest

from ctseg.cli.stages import LineStages, TerminalStages, clock_time, shown_stages, state_of
from ctseg.stages import Stage, stage, watched


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_time_left_is_that_of_what_is_done_for_the_rest() -> None:
    clock = Clock()
    begun = Stage("PyTorch on the scan", 80, unit="windows", clock=clock)
    assert (begun.left_s, state_of(begun)) == (None, "PyTorch on the scan: 0 of 80 windows, 0:00")
    begun.advance(12)
    clock.now_s += 66
    assert begun.left_s == pytest.approx(66 / 12 * 68)
    assert state_of(begun) == "PyTorch on the scan: 12 of 80 windows, 1:06, 6:14 left"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (600, "10:00"), (3723, "1:02:03")])
def test_times_are_said_as_a_clock_says_them(seconds: float, said: str) -> None:
    assert clock_time(seconds) == said


def test_lines_come_after_ten_seconds_and_then_ever_less_often() -> None:
    clock, lines = Clock(), list[tuple[float, str]]()
    watcher = LineStages(lambda line: lines.append((clock.now_s - 100, line)), clock=clock, wait_s=None)
    outer = Stage("mixed FP16", watcher=watcher, clock=clock)
    inner = Stage("ONNX Runtime", 4, unit="patches", watcher=watcher, clock=clock)
    for second in range(201):
        clock.now_s = 100.0 + second
        if second == 60:
            inner.advance()
        if second == 100:
            inner.end()
        watcher.look()
    outer.end()
    clock.now_s = 1000.0
    watcher.look()
    assert lines == [
        (10, "  mixed FP16: 0:10 > ONNX Runtime: 0 of 4 patches, 0:10"),
        (30, "  mixed FP16: 0:30 > ONNX Runtime: 0 of 4 patches, 0:30"),
        (70, "  mixed FP16: 1:10 > ONNX Runtime: 1 of 4 patches, 1:10, 3:30 left"),
        (130, "  mixed FP16: 2:10"),
        (190, "  mixed FP16: 3:10"),
    ]


def test_stages_are_told_to_nobody_unless_somebody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("torch exports", 2) as begun:
        begun.advance()
    assert begun.done == 1
    assert capsys.readouterr() == ("", "")


def test_short_stages_say_nothing_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_stages() as tell, stage("torch exports"):
        tell("a line of the command")
    assert capsys.readouterr() == ("a line of the command\n", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_stage_and_count_and_leaves_standard_output_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with TerminalStages() as bars, watched(bars), stage("[odd] name", 80, unit="windows") as begun:
        begun.advance(12)
        bars._bars.refresh()
        bars.tell("a line of the command")
    assert "[odd] name" in terminal.getvalue()
    assert "12 of 80 windows" in terminal.getvalue()
    assert capsys.readouterr().out == "a line of the command\n"
