"""Which scans begin when, without threads: what has begun runs when the test says so."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import pytest

from ctseg.errors import InferenceFailedError, InputError, ServerUnavailableError
from ctseg.predict.estimate import MemoryEstimate
from ctseg.predict.memory_limits import Available
from ctseg.serving.whole_scan.admission import LANES, SMALL_LANES, SMALL_WINDOWS, Admission, Demand

TOTAL = 800
"""A hundred of them are for small scans."""
PATIENCE_S = 300.0


def demand(windows: int, size: int = 100, waiting_bytes: int = 0) -> Demand:
    return Demand(MemoryEstimate(size, (4, 5, 6), (1.0, 1.0, 1.0)), windows, waiting_bytes)


CHEST, ONE_WINDOW = demand(400, 200), demand(1, 50)


@dataclass
class Scan:
    name: str
    demand: Demand
    error: Exception | None = None

    def __call__(self) -> str:
        if self.error is not None:
            raise self.error
        return self.name


class Bench:
    """An admission, and the scans that have begun and not ended, in order."""

    def __init__(self, total_bytes: int | None = TOTAL, **options: object) -> None:
        self.admission = Admission(self._start, total_bytes, **options)
        self.begun: list[str] = []
        self.scans: dict[str, Scan] = {}
        self._runs: dict[str, Callable[[], None]] = {}

    def _start(self, run: "partial[None]") -> None:
        scan: Scan = run.args[0].work
        self.begun.append(scan.name)
        self.scans[scan.name], self._runs[scan.name] = scan, run

    def offer(self, name: str, asked: Demand, error: Exception | None = None) -> "Future[str]":
        return self.admission.offer(asked, Scan(name, asked, error))

    @property
    def running(self) -> list[str]:
        return list(self._runs)

    @property
    def used(self) -> int:
        return sum(self.scans[name].demand.estimate.peak_bytes for name in self._runs)

    def end(self, name: str) -> None:
        self._runs.pop(name)()

    def end_all(self) -> None:
        while self._runs:
            self.end(self.running[0])


class Machine:
    """Has so much memory left as a test says."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> Available:
        return Available(self.size, "free on this machine")


def test_three_scans_run_at_once_and_the_next_begins_when_one_ends():
    bench = Bench()
    futures = [bench.offer(str(number), CHEST) for number in range(5)]
    assert bench.running == ["0", "1", "2"]
    assert (bench.admission.running, bench.admission.waiting) == (3, 2)
    bench.end("1")
    assert bench.running == ["0", "2", "3"]
    assert futures[1].result(0) == "1"
    bench.end_all()
    assert (bench.admission.running, bench.admission.waiting) == (0, 0)
    assert [future.result(0) for future in futures] == ["0", "1", "2", "3", "4"]


def test_a_scan_of_one_window_behind_many_chests_begins_at_once():
    bench = Bench()
    for number in range(20):
        bench.offer(f"chest {number}", CHEST)
    bench.offer("small", ONE_WINDOW)
    assert bench.running == ["chest 0", "chest 1", "chest 2", "small"]


def test_a_small_scan_begins_before_a_large_one_whose_turn_it_is_where_both_will_fit():
    machine = Machine(1600)
    bench = Bench(None, look=machine)
    for number in range(3):
        bench.offer(f"chest {number}", CHEST)
        machine.size -= 200
    bench.offer("large", demand(9, 1400))
    for number in range(2):
        bench.offer(f"small {number}", demand(8, 50))
    assert bench.running == ["chest 0", "chest 1", "chest 2", "small 0", "small 1"]


def test_small_scans_leave_the_ordinary_lanes_to_the_others():
    bench = Bench()
    for number in range(4):
        bench.offer(f"small {number}", ONE_WINDOW)
    for number in range(2):
        bench.offer(f"chest {number}", CHEST)
    assert bench.running == ["small 0", "small 1", "small 2", "small 3", "chest 0"]
    bench.end("small 0")  # a lane for small ones is free, and no small one waits
    assert bench.running == ["small 1", "small 2", "small 3", "chest 0"]
    bench.end("small 2")
    assert bench.running == ["small 1", "small 3", "chest 0", "chest 1"]


@pytest.mark.parametrize("asked", [demand(SMALL_WINDOWS + 1, 10), demand(1, TOTAL // 8 + 1)])
def test_a_scan_of_many_windows_or_much_memory_is_not_small(asked: Demand):
    bench = Bench()
    for number in range(3):
        bench.offer(f"chest {number}", CHEST)
    bench.offer("other", asked)
    assert "other" not in bench.running


def test_short_scans_overtake_a_long_one_until_as_many_windows_have_begun_as_it_has():
    bench = Bench(lanes=1)
    bench.offer("first", demand(100))
    bench.offer("long", demand(250))
    for number in range(5):
        bench.offer(f"short {number}", demand(100))
        bench.end(bench.running[0])
    bench.end_all()
    assert bench.begun == ["first", "short 0", "short 1", "long", "short 2", "short 3", "short 4"]


def test_a_large_scan_runs_alone_and_is_not_overtaken_for_its_memory():
    bench = Bench()
    bench.offer("a", demand(10, 300))
    bench.offer("large", demand(9, 750))
    bench.offer("b", demand(100, 300))  # would fit beside the first
    bench.offer("early", demand(1, 60))  # comes before the large one in the order
    bench.offer("late", demand(8, 20))  # would leave it less than it takes, as long as the early one runs
    assert bench.running == ["a", "early"]
    bench.end("a")
    assert bench.running == ["early"]
    bench.end("early")
    assert bench.running == ["late", "large"]
    bench.end("large")
    assert bench.running == ["late", "b"]


def test_a_scan_that_is_larger_than_all_there_is_is_refused_at_once_with_the_figures():
    bench = Bench(1 << 30)
    with pytest.raises(InputError, match=r"in 1 GB \(allowed\), found one that would take 2 GB: 4 x 5 x 6 voxels"):
        bench.offer("huge", demand(1, 2 << 30))
    assert (bench.admission.running, bench.admission.waiting) == (0, 0)


def test_more_scans_than_may_wait_are_refused_and_asked_to_come_again():
    bench = Bench(lanes=1, most_waiting=2)
    for number in range(3):
        bench.offer(str(number), CHEST)
    with pytest.raises(ServerUnavailableError, match=r"at most 2 waiting scans of 4 GB, found 3 of 0 GB.*ask again"):
        bench.offer("refused", CHEST)
    assert bench.admission.waiting == 2
    bench.offer("small", ONE_WINDOW)  # begins at once: it does not wait
    bench.end("0")
    bench.offer("later", CHEST)
    bench.end_all()
    assert bench.begun == ["0", "small", "1", "2", "later"]


def test_waiting_scans_hold_no_more_than_they_may_but_one_always_may_wait():
    bench = Bench(lanes=1, most_waiting_bytes=1 << 30)
    bench.offer("runs", demand(10, 100, 3 << 30))
    bench.offer("waits", demand(10, 100, 2 << 30))
    with pytest.raises(ServerUnavailableError, match=r"of 1 GB, found 2 of 2\.5 GB"):
        bench.offer("refused", demand(10, 100, 1 << 29))
    bench.end_all()
    assert bench.begun == ["runs", "waits"]


def test_a_waiting_scan_that_is_given_up_never_begins_and_is_counted_no_more():
    bench = Bench(lanes=1)
    bench.offer("runs", CHEST)
    future = bench.offer("given up", CHEST)
    bench.offer("waits", CHEST)
    assert future.cancel()
    assert wait([future], 0).done == {future}
    assert bench.admission.waiting == 1
    bench.end_all()
    assert bench.begun == ["runs", "waits"]
    with pytest.raises(CancelledError):
        future.result(0)


def test_whoever_waited_for_the_turn_of_one_that_is_given_up_begins():
    bench = Bench()
    bench.offer("a", demand(10, 300))
    large = bench.offer("large", demand(10, 750))
    bench.offer("b", demand(100, 300))
    assert large.cancel()
    assert bench.running == ["a", "b"]


def test_a_scan_that_is_given_up_just_when_it_begins_does_not_run_and_leaves_its_lane():
    bench = Bench(lanes=1)
    future = bench.offer("begins", CHEST)
    bench.offer("waits", CHEST)
    assert future.cancel()
    bench.end("begins")
    assert bench.running == ["waits"]


def test_closing_fails_those_that_wait_and_leaves_those_that_run():
    bench = Bench(lanes=1)
    runs, waits = bench.offer("runs", CHEST), bench.offer("waits", CHEST)
    bench.admission.close()
    with pytest.raises(ServerUnavailableError, match="stopping"):
        waits.result(0)
    with pytest.raises(ServerUnavailableError, match="stopping"):
        bench.offer("later", CHEST)
    bench.end("runs")
    assert runs.result(0) == "runs"
    assert bench.begun == ["runs"]
    assert (bench.admission.running, bench.admission.waiting) == (0, 0)


def test_an_error_belongs_to_its_scan_and_leaves_its_lane():
    bench = Bench(lanes=1)
    bad, good = bench.offer("bad", CHEST, InferenceFailedError("m: NaN")), bench.offer("good", CHEST)
    bench.end_all()
    with pytest.raises(InferenceFailedError, match="NaN"):
        bad.result(0)
    assert good.result(0) == "good"


def test_a_scan_that_cannot_be_started_fails_and_leaves_its_lane():
    with ThreadPoolExecutor(1) as pool:
        admission = Admission(pool.submit, TOTAL, lanes=1)
        assert admission.offer(CHEST, lambda: 1).result(PATIENCE_S) == 1
    future = admission.offer(CHEST, lambda: 2)
    with pytest.raises(RuntimeError, match="shutdown"):
        future.result(0)
    assert admission.running == 0


def test_a_scan_has_not_ended_before_its_answer_is_sent():
    bench = Bench(lanes=1)
    seen = []
    bench.offer("a", CHEST).add_done_callback(lambda _: seen.append(bench.admission.running))
    bench.end("a")
    assert seen == [1]
    assert bench.admission.running == 0


def test_whoever_counts_is_told_of_each_change():
    told = []
    bench = Bench(lanes=1, on_change=lambda waiting, running: told.append((waiting, running)))
    bench.offer("a", CHEST)
    bench.offer("b", CHEST)
    given_up = bench.offer("given up", CHEST)
    assert told == [(0, 1), (1, 1), (2, 1)]
    given_up.cancel()
    assert told[-1] == (1, 1)
    bench.end("a")
    assert told[-1] == (0, 1)
    bench.end("b")
    assert told[-1] == (0, 0)
    bench.offer("c", CHEST)
    bench.offer("d", CHEST)
    bench.admission.close()
    assert told[-1] == (0, 1)


def test_scans_share_half_of_what_is_available_and_one_alone_takes_all_of_it():
    machine = Machine(1600)
    bench = Bench(None, look=machine)
    for name, size in (("a", 400), ("b", 300), ("c", 10)):
        bench.offer(name, demand(10, size))
    assert bench.running == ["a", "b"]
    bench.end_all()
    bench.offer("alone", demand(10, 1600))
    bench.offer("small", demand(1, 10))
    assert bench.running == ["alone"]


def test_memory_that_others_have_taken_since_the_start_is_not_given_again():
    machine = Machine(1600)
    bench = Bench(None, look=machine)
    bench.offer("a", demand(10, 300))
    machine.size = 500  # 300 by this one, 800 by others: 800 for all of ours, of which they share half
    bench.offer("b", demand(10, 100))
    assert bench.running == ["a"]
    machine.size = 1300
    bench.offer("c", demand(10, 100))
    assert bench.running == ["a", "b", "c"]


def test_a_scan_that_does_not_fit_now_waits_for_those_that_run():
    machine = Machine(1600)
    bench = Bench(None, look=machine)
    bench.offer("small", demand(1, 90))
    machine.size = 0
    bench.offer("waits", demand(10, 30))
    assert bench.running == ["small"]
    machine.size = 90
    bench.end("small")
    assert bench.running == ["waits"]


def test_where_others_have_taken_the_memory_a_scan_is_asked_to_come_again_and_stops_nobody():
    machine = Machine(2 << 30)
    bench = Bench(None, look=machine)
    machine.size = 1 << 30
    future = bench.offer("large", demand(10, 3 << 29))
    with pytest.raises(ServerUnavailableError, match=r"expected 1\.5 GB for a scan, found 1 GB \(free on this machine"):
        future.result(0)
    bench.offer("fits", demand(10, 1 << 20))
    assert bench.running == ["fits"]


def random_demand(chance: random.Random) -> Demand:
    windows = chance.choice((1, 5, 18, 60, 400))
    return demand(windows, min(TOTAL, chance.choice((10, 30, 90, 200, 500, 700, TOTAL))), chance.randrange(50))


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_the_memory_is_never_exceeded_nobody_starves_and_everybody_is_answered(seed: int):
    chance = random.Random(seed)
    bench = Bench(most_waiting=30, most_waiting_bytes=600)
    futures: dict[str, Future[str]] = {}
    came: dict[str, tuple[Demand, int]] = {}
    windows_begun = refused = 0
    for step in range(400):
        known = len(bench.begun)
        action = chance.random()
        if action < 0.6:
            name, asked = str(step), random_demand(chance)
            came[name] = (asked, windows_begun)
            try:
                futures[name] = bench.offer(name, asked)
            except ServerUnavailableError:
                refused += 1
                del came[name]
        elif action < 0.65 and futures:
            chance.choice(list(futures.values())).cancel()
        elif bench.running:
            bench.end(chance.choice(bench.running))
        assert bench.used <= TOTAL
        assert len(bench.running) == bench.admission.running <= LANES + SMALL_LANES
        assert sum(came[name][0].windows > SMALL_WINDOWS for name in bench.running) <= LANES
        waiting = [name for name, future in futures.items() if name not in bench.begun and not future.done()]
        assert len(waiting) == bench.admission.waiting
        for name in bench.begun[known:]:
            asked, windows_before = came[name]
            for other in waiting:
                its, windows_before_it = came[other]
                assert asked.windows <= SMALL_WINDOWS or windows_before - windows_before_it < its.windows
            windows_begun += asked.windows
    bench.end_all()
    assert refused
    for name, future in futures.items():
        assert future.cancelled() or future.result(0) == name


@pytest.mark.parametrize("seed", range(20))
def test_what_runs_always_fits_in_what_other_processes_leave(seed: int):
    """Also while a scan has taken any part of what it will take, which nobody can see."""
    chance = random.Random(seed)
    whole, others = 1600, 0
    machine = Machine(whole)
    bench = Bench(None, look=machine)
    taken: dict[str, int] = {}
    for step in range(400):
        if chance.random() < 0.1:
            others = chance.randrange(whole - bench.used + 1)
        for name in bench.running:
            size = bench.scans[name].demand.estimate.peak_bytes
            taken[name] = chance.randint(taken.get(name, 0), size)
        machine.size = whole - others - sum(taken[name] for name in bench.running)
        if chance.random() < 0.5:
            bench.offer(str(step), random_demand(chance))
        elif bench.running:
            name = chance.choice(bench.running)
            machine.size += taken[name]
            bench.end(name)
        assert bench.used + others <= whole


@pytest.mark.parametrize("clients", [2, 4, 5, 16])
def test_of_equal_clients_that_send_one_scan_after_the_other_none_gets_under_half_its_share(clients: int):
    windows = 30
    bench = Bench()
    left: dict[str, int] = {}
    served: Counter[int] = Counter()

    def send(client: int) -> None:
        name = f"{client}-{served[client]}"
        left[name] = windows
        bench.offer(name, demand(windows))

    for client in range(clients):
        send(client)
    for count in range(1, 40 * windows * clients):
        name = bench.running[count % len(bench.running)]  # the network is shared fairly
        client = int(name.split("-")[0])
        left[name] -= 1
        served[client] += 1
        if not left[name]:
            bench.end(name)
            send(client)
        if count >= 2 * windows * clients:  # scans are not cut into parts
            assert min(served[client] for client in range(clients)) >= count / clients / 2


def test_scans_that_come_from_many_threads_each_run_once():
    ran: Counter[int] = Counter()
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            ran[number] += 1
        return number

    with ThreadPoolExecutor(LANES + SMALL_LANES) as pool, ThreadPoolExecutor(8) as clients:
        admission = Admission(pool.submit, TOTAL, most_waiting=1000)

        def send(number: int) -> "Future[int]":
            return admission.offer(demand(1 + number % 20, 10 + number % 300), partial(work, number))

        futures = list(clients.map(send, range(300)))
        assert [future.result(PATIENCE_S) for future in futures] == list(range(300))
    assert ran == Counter(range(300))
    assert (admission.running, admission.waiting) == (0, 0)
