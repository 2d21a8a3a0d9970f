"""Whose fault a failure is, the request's or the server's, and what becomes of both."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ctseg.errors import InferenceFailedError, RequestRejectedError, ServerAwayError, ServerTimeoutError
from ctseg.triton.connection import ServerConnection
from ctseg.triton.errors import INTERNAL, KEY_REFUSED, NOT_FOUND, UNAVAILABLE, WRONG, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor
from tests.support.fake_triton import FakeClient, fake_connection
from tests.support.live_triton import wait_for
from tests.support.toy_models import toy_patches

DEAD = CallError(INTERNAL, "Stub process 'toy_0_0' is not healthy.")
INVALID = "StatusCode.INVALID_ARGUMENT"


def predictor_of(*clients: FakeClient, timeout_s: float = 240) -> TritonPredictor:
    """Return a predictor over fake servers; no test that passes waits for the time-out."""
    connections = [fake_connection(client) for client in clients]
    return TritonPredictor(connections, ClientOptions(shared_memory="off", timeout_s=timeout_s))


def patches_of(first: float) -> np.ndarray:
    patches = toy_patches(1)
    patches[0, 0, 0, 0, 0] = first
    return patches


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.mark.parametrize(
    "how",
    [DEAD, CallError(WRONG, "expected 3 heads, found 2"), CallError(INVALID, "unexpected shape")],
)
def test_a_server_that_fails_what_another_computes_loses_no_request_and_is_told(
    how: CallError, caplog: pytest.LogCaptureFixture, pool: ThreadPoolExecutor
) -> None:
    works, broken = FakeClient("works:1", value=1.0), FakeClient("broken:1", value=2.0)
    broken.broken = how
    with predictor_of(works, broken) as predictor:
        values = [float(logits.max()) for logits in pool.map(predictor.predict, [toy_patches(1)] * 60)]
        assert values == [1.0] * 60
        told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(told) == 1
        assert "broken:1 is left aside: it fails what another server computed" in told[0]
        assert how.text in told[0]
        broken.broken = None
        wait_for(lambda: float(predictor.predict(toy_patches(1)).max()) == 2.0)


def test_a_server_that_was_left_aside_is_tried_with_what_another_computed_and_with_nothing_else() -> None:
    works, broken = FakeClient("works:1"), FakeClient("broken:1")
    broken.broken = DEAD
    with predictor_of(works, broken) as predictor:
        wait_for(lambda: predictor.predict(patches_of(7)) is not None and broken.received)
        wait_for(lambda: len(broken.received) >= 3)
        for seed in range(20):
            predictor.predict(patches_of(100 + seed))
        assert set(broken.received) == {7.0}
        assert works.received.count(7.0) >= 1


def test_logits_that_are_not_finite_are_no_answer() -> None:
    works, broken = FakeClient("works:1", value=1.0), FakeClient("broken:1", value=np.nan)
    with predictor_of(works, broken) as predictor:
        for _ in range(20):
            assert (predictor.predict(toy_patches(1)) == 1.0).all()
    for value in (np.nan, np.inf, -np.inf):
        with (
            predictor_of(FakeClient(value=value)) as predictor,
            pytest.raises(InferenceFailedError, match="NaN or infinity: serve the network with a higher precision"),
        ):
            predictor.predict(toy_patches(1))


def test_what_two_servers_fail_is_its_own_fault_and_counts_against_neither(
    caplog: pytest.LogCaptureFixture, pool: ThreadPoolExecutor
) -> None:
    one, two = FakeClient("one:1", value=1.0), FakeClient("two:1", value=2.0)
    with predictor_of(one, two) as predictor:
        while not (one.requests and two.requests):
            predictor.predict(toy_patches(1))
        for client in (one, two):
            client.odd = 7.0
        with pytest.raises(InferenceFailedError, match="this scan is odd"):
            predictor.predict(patches_of(7))
        assert "left aside" not in caplog.text
        assert all(server.is_trusted for server in predictor._rota.servers)
        assert sorted((one.received.count(7.0), two.received.count(7.0))) == [1, 2]


def test_a_broken_server_and_one_that_is_started_again_are_no_fault_of_the_request() -> None:
    for _ in range(8):  # whichever of the two it goes to first
        again, broken = FakeClient("again:1", value=1.0), FakeClient("broken:1", value=2.0)
        with predictor_of(again, broken) as predictor:
            while not (again.requests and broken.requests):
                predictor.predict(toy_patches(1))
            again.failures["infer"] = [DEAD]
            broken.broken = CallError(INVALID, "unexpected shape")
            assert (predictor.predict(patches_of(7)) == 1.0).all()


class Watched(FakeClient):
    """Notes for each odd request whether it holds the lock of those that may be what makes servers fail."""

    def __init__(self) -> None:
        super().__init__()
        self.are_alone: list[bool] = []
        self.predictor: TritonPredictor | None = None

    def infer(self, *arguments: Any, **more: Any) -> None:
        before = len(self.received)
        try:
            super().infer(*arguments, **more)
        finally:
            if self.predictor is not None and self.received[before:] == [self.odd]:
                self.are_alone.append(self.predictor._rota.alone.locked())


def test_a_request_that_failed_where_all_is_well_goes_beside_no_other_of_its_kind() -> None:
    client = Watched()
    with predictor_of(client) as predictor:
        predictor.predict(toy_patches(1))
        client.predictor, client.odd = predictor, 7.0
        with pytest.raises(InferenceFailedError, match="this scan is odd"):
            predictor.predict(patches_of(7))
    assert client.are_alone == [False, False, True]


def test_the_only_server_has_two_more_chances_and_then_it_is_the_request() -> None:
    client = FakeClient()
    with predictor_of(client) as predictor:
        client.failures["infer"] = [CallError(INTERNAL, "a hiccup")]
        predictor.predict(toy_patches(1))
        assert predictor.retries == 1
        client.odd = 7.0
        with pytest.raises(InferenceFailedError, match="this scan is odd"):
            predictor.predict(patches_of(7))
        assert client.received[-5:].count(7.0) == 3
        assert client.received[-1] != 7.0, "the server was asked for what it had computed before"
        client.failures["infer"] = [CallError(INVALID, "unexpected shape")]
        with pytest.raises(RequestRejectedError, match="unexpected shape"):
            predictor.predict(toy_patches(1))
        assert (predictor.predict(toy_patches(1)) == 1.0).all()


def test_a_model_that_fails_what_it_computed_before_is_waited_for(
    caplog: pytest.LogCaptureFixture, pool: ThreadPoolExecutor
) -> None:
    client = FakeClient()
    with predictor_of(client) as predictor:
        predictor.predict(toy_patches(1))
        client.broken = DEAD
        answers = [pool.submit(predictor.predict, patches_of(value)) for value in range(4)]
        wait_for(lambda: "left aside" in caplog.text)
        assert "127.0.0.1:1 is left aside: it fails what was computed before (INTERNAL: Stub process" in caplog.text
        assert caplog.text.count("left aside") == 1
        client.broken = None
        assert all((answer.result(240) == 1.0).all() for answer in answers)


def test_a_model_that_is_started_again_before_it_is_probed_is_no_fault_of_the_request() -> None:
    client = FakeClient()
    with predictor_of(client) as predictor:
        predictor.predict(toy_patches(1))
        client.failures["infer"] = [DEAD, DEAD]  # what comes next is the probe
        assert (predictor.predict(patches_of(7)) == 1.0).all()
        assert client.received[-2:] == [float(toy_patches(1)[0, 0, 0, 0, 0]), 7.0]


def test_a_model_that_stays_unwell_is_away() -> None:
    client = FakeClient()
    with predictor_of(client, timeout_s=1.0) as predictor:
        predictor.predict(toy_patches(1))
        client.broken = DEAD
        with pytest.raises(ServerAwayError, match=r"computed anything for 1 s: 127.0.0.1:1: INTERNAL: Stub process"):
            predictor.predict(toy_patches(1))


def test_wrong_answers_are_no_sign_of_life() -> None:
    client = FakeClient()
    with predictor_of(client, timeout_s=1.0) as predictor:
        predictor.predict(toy_patches(1))
        client.value = np.nan
        with pytest.raises(ServerAwayError, match="NaN or infinity"):
            predictor.predict(toy_patches(1))


def test_a_request_that_kills_the_model_each_time_fails_alone(pool: ThreadPoolExecutor) -> None:
    client = FakeClient()
    client.poison = 666.0
    with predictor_of(client) as predictor:
        predictor.predict(toy_patches(1))
        deadly = pool.submit(predictor.predict, patches_of(666))
        harmless = [pool.submit(predictor.predict, patches_of(value)) for value in range(20)]

        def has_died() -> bool:
            client.broken = None  # as a supervisor that starts it again
            return deadly.done()

        wait_for(has_died)
        client.broken = None
        with pytest.raises(InferenceFailedError, match="the model's process is dead"):
            deadly.result()
        assert client.received.count(666.0) >= 3
        assert all((answer.result(240) == 1.0).all() for answer in harmless)


@pytest.mark.parametrize("is_first", [True, False])
def test_requests_that_kill_the_server_each_time_fail_alone(is_first: bool, pool: ThreadPoolExecutor) -> None:
    client = FakeClient()
    client.lethal = (666.0, 667.0)
    with predictor_of(client) as predictor:
        if not is_first:
            predictor.predict(toy_patches(1))
        deadly = [pool.submit(predictor.predict, patches_of(value)) for value in client.lethal]
        harmless = [pool.submit(predictor.predict, patches_of(value)) for value in range(1, 20)]

        def have_died() -> bool:
            client.gone = None  # as a supervisor that starts it again
            return all(request.done() for request in deadly)

        wait_for(have_died)
        client.gone = None
        for request in deadly:
            with pytest.raises(InferenceFailedError, match="the server died each of the 3 times that it had this"):
                request.result()
        assert all((answer.result(240) == 1.0).all() for answer in harmless)
    assert [client.received.count(value) for value in client.lethal] == [3, 3]


def test_a_server_that_dies_of_every_request_is_away_and_no_request_is_to_blame(pool: ThreadPoolExecutor) -> None:
    client = FakeClient()
    client.lethal = (0.0, 1.0, 2.0)  # 0: the probe
    over = threading.Event()

    def start_again() -> None:
        while not over.wait(0.01):
            client.gone = None

    supervisor = threading.Thread(target=start_again)
    supervisor.start()
    try:
        with predictor_of(client, timeout_s=3) as predictor:
            requests = [pool.submit(predictor.predict, patches_of(value)) for value in (1, 2)]
            for request in requests:
                with pytest.raises(ServerAwayError, match="no server has computed anything for 3 s"):
                    request.result()
    finally:
        over.set()
        supervisor.join()


@pytest.mark.parametrize("status", KEY_REFUSED)
def test_a_key_that_is_refused_in_mid_run_is_no_fault_of_the_request(
    status: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = FakeClient()
    client.broken = CallError(status, "Jwt is expired")
    with (
        predictor_of(client, timeout_s=2) as predictor,
        pytest.raises(ServerAwayError, match=r"Jwt is expired; has a token expired.* with a new one"),
    ):
        predictor.predict(toy_patches(1))
    assert "127.0.0.1:1 is left aside: it refuses the key (" in caplog.text
    assert caplog.text.count("left aside") == 1


def test_a_model_that_is_unloaded_and_loaded_again_loses_no_request(pool: ThreadPoolExecutor) -> None:
    client = FakeClient()
    with predictor_of(client) as predictor:
        predictor.predict(toy_patches(1))
        client.gone = CallError(NOT_FOUND, "Request for unknown model: 'toy' has no available versions")
        answers = [pool.submit(predictor.predict, toy_patches(1)) for _ in range(8)]
        asked = len(client.asked)
        wait_for(lambda: len(client.asked) > asked + 3)
        assert not any(answer.done() for answer in answers)
        client.gone = None
        assert all((answer.result(240) == 1.0).all() for answer in answers)


def test_a_server_that_hangs_and_is_there_is_a_timeout_and_one_that_is_not_there_is_away() -> None:
    for gone, error in ((None, ServerTimeoutError), (CallError(UNAVAILABLE, "Server exiting"), ServerAwayError)):
        client = FakeClient()
        with predictor_of(client, timeout_s=0.3) as predictor:
            client.hold()
            client.failures["is_server_live"] = [] if gone is None else [gone]
            with pytest.raises(error):
                predictor.predict(toy_patches(1))
            client.release()


class Answering(ServerConnection):
    """One that computes other requests all the time."""

    last_answer = property(lambda self: time.monotonic(), lambda self, value: None)


def test_nobody_is_away_while_a_server_computes_other_requests(pool: ThreadPoolExecutor) -> None:
    client = FakeClient()
    with TritonPredictor(
        [fake_connection(client, Answering)], ClientOptions(shared_memory="off", timeout_s=0.1)
    ) as predictor:
        client.gone = CallError(UNAVAILABLE, "Exceeds maximum queue size")
        answer = pool.submit(predictor.predict, toy_patches(1))
        asked = len(client.asked)
        wait_for(lambda: len(client.asked) > asked + 4)
        assert not answer.done()
        client.gone = None
        assert (answer.result(240) == 1.0).all()


def test_closing_ends_who_waits_for_a_server(pool: ThreadPoolExecutor) -> None:
    client = FakeClient()
    predictor = predictor_of(client)
    client.gone = CallError(UNAVAILABLE, "connection refused")
    answer = pool.submit(predictor.predict, toy_patches(1))
    wait_for(lambda: not predictor._rota.servers[0].is_trusted)
    predictor.close()
    with pytest.raises(Exception, match="closed") as caught:
        answer.result(240)
    assert not isinstance(caught.value, ServerAwayError), "nothing is left by the server's fault"
