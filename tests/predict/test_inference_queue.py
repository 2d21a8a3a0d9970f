"""Batches of several cases: in order of their priority, as many at once as the network takes."""

import itertools
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from ctseg.errors import InferenceFailedError
from ctseg.nnunet.plans import spec_from_plans
from ctseg.predict.inference_queue import InferenceQueue
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
