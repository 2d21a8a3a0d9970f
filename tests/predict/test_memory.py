"""The memory that cases in flight may take together."""

import threading
import time

import pytest

from ctseg.errors import InputError
from ctseg.predict.estimate import MemoryEstimate
from ctseg.predict.memory import MemoryBudget
from ctseg.predict.memory_limits import Available

PATIENCE_S = 300.0


def estimate(size: int) -> MemoryEstimate:
    return MemoryEstimate(size, (459, 2509, 2048), (3.27, 0.977, 0.977))


class Machine:
    """Has so much memory left as a test says, and counts who asks."""

    def __init__(self, size: int) -> None:
        self.size, self.looks = size, 0

    def __call__(self) -> Available:
        self.looks += 1
        return Available(self.size, "free on this machine")


class Holder(threading.Thread):
    """Reserves on a thread, and holds until told."""

    def __init__(self, budget: MemoryBudget, size: int) -> None:
        super().__init__(daemon=True)
        self._budget, self._size = budget, size
        self.entered, self.leave, self.refused = threading.Event(), threading.Event(), None
        self.start()

    def run(self) -> None:
        try:
            with self._budget.reserved(estimate(self._size), "a"):
                self.entered.set()
                assert self.leave.wait(PATIENCE_S)
        except InputError as error:
            self.refused = str(error)

    def is_in(self) -> bool:
        return self.entered.wait(PATIENCE_S)

    def end(self) -> None:
        self.leave.set()
        self.join(PATIENCE_S)


def wait_until_queued(budget: MemoryBudget, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(budget._waiting) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_cases_share_half_of_what_there_is():
    budget = MemoryBudget(look=Machine(200))
    first, second = Holder(budget, 40), Holder(budget, 60)
    assert first.is_in()
    assert second.is_in()
    third = Holder(budget, 1)
    wait_until_queued(budget, 1)
    assert not third.entered.is_set()
    first.end()
    assert third.is_in()
    for holder in (second, third):
        holder.end()


def test_a_case_that_is_larger_than_the_share_runs_alone_and_is_not_overtaken():
    budget = MemoryBudget(look=Machine(200))
    small = Holder(budget, 10)
    assert small.is_in()
    large = Holder(budget, 150)
    wait_until_queued(budget, 1)
    later = Holder(budget, 10)  # would fit beside the first, and waits behind the large one
    wait_until_queued(budget, 2)
    assert not large.entered.is_set()
    assert not later.entered.is_set()
    small.end()
    assert large.is_in()
    assert not later.entered.is_set()
    large.end()
    assert later.is_in()
    later.end()


def test_what_is_larger_than_all_there_is_is_refused_at_once_and_stops_nobody():
    budget = MemoryBudget(look=Machine(2 << 30))
    first = Holder(budget, 1 << 20)
    assert first.is_in()
    with (
        pytest.raises(
            InputError,
            match=r"in 2 GB \(free on this machine\), found one that would take 21 GB: 459 x 2509 x 2048 voxels",
        ) as caught,
        budget.reserved(estimate(21 << 30), "a"),
    ):
        pass
    assert caught.value.settings == ("memory_bytes",)
    second = Holder(budget, 1 << 20)
    assert second.is_in()
    for holder in (first, second):
        holder.end()


def test_memory_that_has_become_free_since_the_start_counts():
    machine = Machine(100)
    budget = MemoryBudget(look=machine)
    machine.size = 300
    with budget.reserved(estimate(250), "a"):
        pass


def test_memory_that_others_have_taken_since_counts_when_the_turn_of_a_large_case_comes():
    machine = Machine(200)
    budget = MemoryBudget(look=machine)
    first = Holder(budget, 10)
    assert first.is_in()
    large = Holder(budget, 150)
    wait_until_queued(budget, 1)
    later = Holder(budget, 10)
    machine.size = 140
    first.end()
    large.join(PATIENCE_S)
    assert "would take" in large.refused
    assert later.is_in()
    later.end()


def test_small_cases_do_not_ask_what_is_left():
    machine = Machine(200)
    budget = MemoryBudget(look=machine)
    for _ in range(10):
        with budget.reserved(estimate(50), "a"):
            pass
    assert machine.looks == 1


def test_what_the_user_allows_is_the_limit_and_the_share():
    budget = MemoryBudget(100)
    first, second = Holder(budget, 60), Holder(budget, 40)
    assert first.is_in()
    assert second.is_in()
    with pytest.raises(InputError, match=r"in 9\.31e-08 GB \(allowed\)"), budget.reserved(estimate(101), "a"):
        pass
    for holder in (first, second):
        holder.end()
    with budget.reserved(estimate(100), "a"):
        pass
    with pytest.raises(InputError, match=r"\(allowed\)"), budget.reserved(estimate(101), "a"):
        pass
