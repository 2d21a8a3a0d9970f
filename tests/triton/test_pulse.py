"""Connections that are silent while they owe an answer are written to, and no others."""

import threading

from ctseg.triton.pulse import Pulse


def test_a_silent_connection_that_owes_an_answer_is_written_to_again_and_again() -> None:
    beats, twice = [0, 0], threading.Event()

    def beat() -> None:
        beats[1] += 1
        if beats[1] == 2:
            twice.set()

    pulse = Pulse([lambda: beats.__setitem__(0, 1), beat], silent_s=0.02)
    pulse.sent(0)
    pulse.came(0)
    pulse.sent(1)
    assert twice.wait(240)
    pulse.close()
    assert beats[0] == 0


def test_nothing_is_written_once_it_is_closed() -> None:
    beaten = threading.Event()
    pulse = Pulse([beaten.set], silent_s=0.02)
    pulse.close()
    pulse.sent(0)
    assert not beaten.wait(0.3)
