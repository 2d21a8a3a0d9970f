"""Batches of several cases: in order of their priority or in fair shares, as many at once as the network takes."""

import heapq
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from ctseg.errors import InferenceFailedError
from ctseg.nnunet.plans import spec_from_plans
from ctseg.predict.inference_queue import FairShare, InferenceQueue, InferenceThreads, Tag
from ctseg.predict.predictor import Identity
from tests.support.nnunet_plans import make_dataset, make_plans


class RecordingPredictor:
    """Answers with its input, one channel doubled; records the order and how many ran at once."""

    spec = spec_from_plans(make_plans(), make_dataset(), "3d_fullres", name="m", mirror_axes=())
    identity = Identity(spec.name, 1, spec.digest, (), "in process")
    max_batch_size = 2

    def __init__(self, max_in_flight: int = 1) -> None:
        self.max_in_flight = max_in_flight
        self.order: list[float] = []
        self.running = self.most_running = 0
        self.gate = threading.Event()
        self.both_run = threading.Barrier(max_in_flight)
        self.lock = threading.Lock()

    def predict(self, patches):
        self.gate.wait(10)
        with self.lock:
            self.running += 1
            self.most_running = max(self.running, self.most_running)
            self.order.append(float(patches.flat[0]))
        if self.max_in_flight > 1:
            self.both_run.wait(10)
        with self.lock:
            self.running -= 1
        if patches.flat[0] < 0:
            raise InferenceFailedError("m: negative")
        return np.concatenate([patches, 2 * patches], axis=1)


def batch(value: float) -> np.ndarray:
    return np.full((1, 1, 2, 2, 2), value, dtype=np.float32)


def test_earlier_cases_go_first_and_equal_ones_in_order():
    predictor = RecordingPredictor()
    inference = InferenceQueue(predictor)
    first = inference.submit(batch(0), priority=9)  # taken at once, held by the gate
    while inference.threads._waiting.qsize():
        pass
    futures = [inference.submit(batch(v), priority=p) for v, p in [(21, 2), (11, 1), (22, 2), (12, 1)]]
    predictor.gate.set()
    for future in [first, *futures]:
        future.result(10)
    inference.close()
    assert predictor.order == [0, 11, 12, 21, 22]


def test_every_future_gets_its_own_logits():
    predictor = RecordingPredictor()
    predictor.gate.set()
    inference = InferenceQueue(predictor)
    futures = [inference.submit(batch(v), priority=0) for v in range(5)]
    for value, future in enumerate(futures):
        logits = future.result(10)
        assert logits.shape == (1, 2, 2, 2, 2)
        assert (logits[:, 0] == value).all()
        assert (logits[:, 1] == 2 * value).all()
    inference.close()


def test_as_many_run_at_once_as_the_predictor_asks_for():
    predictor = RecordingPredictor(max_in_flight=2)
    predictor.gate.set()
    inference = InferenceQueue(predictor)
    for future in [inference.submit(batch(v), priority=0) for v in range(4)]:
        future.result(10)
    inference.close()
    assert predictor.most_running == 2


def test_an_error_reaches_its_own_case_and_no_other():
    predictor = RecordingPredictor()
    predictor.gate.set()
    inference = InferenceQueue(predictor)
    bad, good = inference.submit(batch(-1), priority=0), inference.submit(batch(3), priority=1)
    with pytest.raises(InferenceFailedError, match="negative"):
        bad.result(10)
    assert good.result(10)[0, 1, 0, 0, 0] == 6
    inference.close()


def test_a_cancelled_batch_is_never_sent():
    predictor = RecordingPredictor()
    inference = InferenceQueue(predictor)
    held = inference.submit(batch(0), priority=0)
    while inference.threads._waiting.qsize():
        pass
    dropped, kept = inference.submit(batch(1), priority=0), inference.submit(batch(2), priority=0)
    assert dropped.cancel()
    predictor.gate.set()
    held.result(10)
    kept.result(10)
    inference.close()
    assert predictor.order == [0, 2]


def test_abort_waits_for_nothing():
    predictor = RecordingPredictor()
    inference = InferenceQueue(predictor)
    sent, waiting = inference.submit(batch(0), priority=0), inference.submit(batch(1), priority=1)
    while not sent.running():
        pass
    inference.abort()
    inference.close()
    for future in (sent, waiting):
        with pytest.raises(CancelledError):
            future.result(1)
    with pytest.raises(CancelledError):
        inference.submit(batch(2), priority=0)
    predictor.gate.set()


def test_a_batch_that_is_submitted_just_when_the_queue_is_aborted_is_dropped_too():
    predictor = RecordingPredictor()
    inference = InferenceQueue(predictor)
    sent = inference.submit(batch(0), priority=0)  # holds the only thread
    while not sent.running():
        pass

    def order():
        inference.abort()
        yield 1

    inference.threads._order = itertools.chain(order(), itertools.count(2))
    assert inference.submit(batch(1), priority=1).cancelled()
    predictor.gate.set()
    inference.close()


class SteppedPredictor:
    """Sends one batch after the other, each when the test says so; records the cases in order."""

    spec = RecordingPredictor.spec
    identity = RecordingPredictor.identity
    max_batch_size = 4

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.sent: list[int] = []
        self._changed = threading.Condition()
        self._allowed = 0

    def predict(self, patches):
        with self._changed:
            self.sent.append(int(patches.flat[0]))
            self._changed.notify_all()
            mine = len(self.sent)
            assert self._changed.wait_for(lambda: mine <= self._allowed, 300)
        return np.concatenate([patches, patches], axis=1)

    def wait_for_sent(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) >= count, 300)

    def answer(self, count: int) -> None:
        """Answer so many batches more, in order, and wait until the next ones are sent."""
        for _ in range(count):
            with self._changed:
                self._allowed += 1
                self._changed.notify_all()
            self.wait_for_sent(self._allowed + self.max_in_flight)

    def let_go(self) -> None:
        """Answer all that come."""
        with self._changed:
            self._allowed = 2**62
            self._changed.notify_all()


@pytest.mark.parametrize(("running", "max_in_flight"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_with_fair_shares_a_newcomer_waits_for_one_window_of_each_running_case_and_gets_its_share_then(
    running: int, max_in_flight: int
):
    predictor = SteppedPredictor(max_in_flight)
    inference = InferenceQueue(predictor, threads=InferenceThreads(FairShare()))
    for case in range(running):
        for _ in range(40):
            inference.submit(batch(case), priority=case)
    predictor.wait_for_sent(max_in_flight)
    predictor.answer(3 * running + 1)
    sent_before = len(predictor.sent)
    for _ in range(40):
        inference.submit(batch(99), priority=99)
    predictor.answer(5 * (running + 1))
    sent = predictor.sent[sent_before : sent_before + 5 * (running + 1)]
    assert 99 in sent[:running]
    assert sent.count(99) in {5, 6}
    inference.abort()
    predictor.let_go()


Batches = list[tuple[int, int]]
"""The case and the windows of each."""


def serve(arrivals: Callable[[Batches], Batches], count: int) -> Batches:
    """Return the batches that are sent, where ``arrivals`` says, by those that were, what comes before the next."""
    turns, waiting, sent, order = FairShare(), [], [], itertools.count()
    while len(sent) < count:
        for case, windows in arrivals(sent):
            heapq.heappush(waiting, (turns.tag(case, windows), next(order), (case, windows)))
        tag, _, item = heapq.heappop(waiting)
        turns.taken(tag)
        sent.append(item)
    return sent


@pytest.mark.parametrize("cases", [2, 3, 5])
def test_of_equal_cases_none_gets_under_half_its_share_at_any_time(cases: int):
    predictor = SteppedPredictor(2)
    inference = InferenceQueue(predictor, threads=InferenceThreads(FairShare()))

    def submit(case: int) -> None:
        future = inference.submit(batch(case), priority=case)
        future.add_done_callback(lambda done: submit_next(case, done))

    def submit_next(case: int, done: "Future[np.ndarray]") -> None:
        if not done.cancelled() and done.exception() is None:
            submit(case)

    for case in range(cases):
        for _ in range(4):  # on their way at once, as for any case
            submit(case)
    predictor.wait_for_sent(2)
    predictor.answer(30 * cases)
    inference.abort()
    predictor.let_go()
    for count in range(2 * cases, 30 * cases):
        served = Counter(predictor.sent[:count])
        assert min(served[case] for case in range(cases)) >= count / cases / 2


def test_shares_are_of_windows_not_of_batches():
    sent = serve(lambda sent: [] if sent else [(0, 4)] * 100 + [(1, 1)] * 400, 300)
    for count in range(len(sent)):
        windows = Counter(itertools.chain.from_iterable([case] * size for case, size in sent[:count]))
        assert abs(windows[0] - windows[1]) <= 5


def test_a_case_that_sent_nothing_for_a_while_gets_no_more_than_its_share():
    def arrivals(sent: Batches) -> Batches:
        if not sent:
            return [(0, 1)] * 100 + [(1, 1)] * 100 + [(2, 1)]
        return [(2, 1)] * 30 if len(sent) == 90 else []

    back = [case for case, _ in serve(arrivals, 120)[90:]]
    assert set(back[:3]) == {0, 1, 2}
    assert back.count(2) == 10


def test_no_stream_of_newcomers_keeps_a_case_waiting():
    def arrivals(sent: Batches) -> Batches:
        if not sent:
            return [(0, 1)] * 100 + [(1000, 1), (1001, 1)]
        return [(1001 + len(sent), 1)] if sent[-1][0] else []  # two wait always

    assert [case for case, _ in serve(arrivals, 90)].count(0) == 30


def test_mirrored_windows_count_as_often_as_the_network_runs():
    predictor = RecordingPredictor()
    predictor.gate.set()
    costs = []

    class Recording(FairShare):
        def tag(self, priority: int, cost: int) -> Tag:
            costs.append(cost)
            return super().tag(priority, cost)

    predictor.spec = spec_from_plans(make_plans(), make_dataset(), "3d_fullres", name="m", mirror_axes=(0, 1))
    threads = InferenceThreads(Recording())
    for mirroring in (True, False):
        inference = InferenceQueue(predictor, mirroring=mirroring, threads=threads)
        inference.submit(np.zeros((2, 1, 2, 2, 2), np.float32), priority=0).result(300)
    threads.close()
    assert costs == [8, 2]
