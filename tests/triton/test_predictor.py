"""The Triton predictor: which server gets a request, when it is sent again, and how failures are told."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient

from ctseg.errors import (
    InferenceFailedError,
    ModelNotFoundError,
    ServerAwayError,
    ServerTimeoutError,
    ServerUnavailableError,
    SpecError,
)
from ctseg.model_spec import KeepLargest
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.triton.configuration import spec_parameter
from ctseg.triton.connection import ServerConnection
from ctseg.triton.errors import UNAVAILABLE, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor, connect
from tests.support.fake_triton import FakeClient, fake_connection
from tests.support.live_triton import ANSWER, HeldPatches, connected, free_port, wait_for
from tests.support.predictor_contract import check_predictor
from tests.support.toy_models import PATCH, toy_logits, toy_patches, toy_spec, write_foreign_entry, write_toy_entry

live = pytest.mark.live

OPEN = ServerOptions(is_private=False, prove=False)
CHANGED = toy_spec(postprocessing=(KeepLargest(labels=(1,)),))


class BusyServer(ServerConnection):
    """One that answers others all the time, so that waiting for it never ends by itself."""

    last_answer = property(lambda self: time.monotonic(), lambda self, value: None)


def fake_predictor(*servers: ServerConnection, **options: float) -> TritonPredictor:
    return TritonPredictor(servers, ClientOptions(shared_memory="off", **options))


@live
@pytest.mark.parametrize("transport", ["on", "off"])
@pytest.mark.parametrize("model", ["toy", "half"])
def test_the_server_passes_the_contract_of_predictors(server: RunningServer, model: str, transport: str) -> None:
    with connected(server, model, shared_memory=transport) as predictor:
        check_predictor(predictor)


@live
def test_wrong_patches_are_the_callers_mistake(server: RunningServer) -> None:
    with connected(server) as predictor:
        for wrong in (
            toy_patches(5),
            toy_patches(1)[:, :1],
            toy_patches(1).astype(np.float64),
            np.moveaxis(toy_patches(1), 2, 3),
            np.empty((0, 2, *PATCH), np.float32),
        ):
            with pytest.raises(ValueError, match="toy: expected"):
                predictor.predict(wrong)


# --- failures


@live
def test_an_exception_in_the_model_is_told_with_model_server_and_shapes(server: RunningServer) -> None:
    with connected(server, "broken") as predictor, pytest.raises(InferenceFailedError) as caught:
        predictor.predict(toy_patches(2))
    for part in ("broken version 1", server.url, "(2, 2, 6, 10, 14)", "INTERNAL", "out of luck"):
        assert part in str(caught.value)


@live
def test_a_model_process_that_dies_fails_its_requests_by_name_and_hangs_nobody(server: RunningServer) -> None:
    deadly = toy_patches(1)
    deadly[0, 0, 0, 0, 0] = 77
    with connected(server, "mortal") as predictor:
        for patches in (deadly, toy_patches(1)):  # this release does not start the process again
            with pytest.raises(InferenceFailedError, match=r"mortal version 1 .* not healthy"):
                predictor.predict(patches)


@live
def test_a_model_process_that_dies_under_way_is_told_at_once_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_toy_entry(tmp_path / "models")
    with (
        embedded_server(tmp_path / "models", options=OPEN) as server,
        connect([server.url], "toy", options=ClientOptions(timeout_s=3)) as predictor,
    ):
        predictor.predict(toy_patches(1))
        (stub,) = (child for child in psutil.Process(server.pid).children() if "python_backend_stub" in child.name())
        stub.kill()
        with pytest.raises(ServerAwayError, match=r"INTERNAL: Stub process .* is not healthy"):
            predictor.predict(toy_patches(1))
        with InferenceServerClient(server.url) as client:  # Triton 2.51 calls it ready all the same
            assert client.is_model_ready("toy", "1")
        assert f"{server.url} is left aside: it fails what was computed before (INTERNAL: Stub process" in caplog.text


@live
def test_a_model_that_hangs_is_given_up_after_the_timeout(server: RunningServer, held: HeldPatches) -> None:
    with connected(server, "held", timeout_s=0.5) as predictor:
        with pytest.raises(ServerTimeoutError, match=r"nothing was answered for 0\.5 s"):
            predictor.predict(held.patches)
        held.release()


def test_a_queue_that_is_longer_than_the_timeout_is_no_timeout() -> None:
    client = FakeClient()
    with (
        fake_predictor(fake_connection(client, BusyServer), timeout_s=0.1) as predictor,
        ThreadPoolExecutor() as threads,
    ):
        client.hold()
        answer = threads.submit(predictor.predict, toy_patches(1))
        client.wait_until_held()
        time.sleep(0.5)  # five timeouts in which the server answers others
        assert not answer.done()
        client.release()
        assert (answer.result(240) == 1.0).all()
        assert predictor.retries == 0


def test_an_answer_moves_the_time_until_which_others_wait() -> None:
    server = fake_connection(FakeClient())
    with fake_predictor(server) as predictor:
        before = time.monotonic()
        predictor.predict(toy_patches(1))
        assert before <= server.last_answer <= time.monotonic()


@live
def test_close_ends_waiting_requests_and_does_not_hang(server: RunningServer, held: HeldPatches) -> None:
    predictor = connect([server.url], "held", options=ClientOptions(headers=server.headers))
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(predictor.predict, held.patches)
        held.wait_until_begun()
        closing = threads.submit(predictor.close)
        with pytest.raises(ServerUnavailableError, match="closed"):
            answer.result(240)  # the model has not answered yet
        held.release()
        closing.result(240)


# --- several servers, and servers that come and go


@live
def test_two_servers_with_different_specs_are_refused_and_both_named(server: RunningServer, tmp_path: Path) -> None:
    root = tmp_path / "models"
    spec = write_toy_entry(root, CHANGED)
    with embedded_server(root, options=OPEN) as other, pytest.raises(SpecError) as caught:
        connect([server.url, other.url], "toy", options=ClientOptions(headers=server.headers))
    for part in (server.url, other.url, toy_spec().digest[:12], spec.digest[:12]):
        assert part in str(caught.value)
    assert caught.value.settings == ("urls",)


@live
def test_work_goes_to_both_servers_and_on_with_one_when_the_other_dies(server: RunningServer, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_toy_entry(root)
    patches = [toy_patches(1, seed) for seed in range(200)]
    with (
        embedded_server(root, options=OPEN) as other,
        connect([server.url, other.url], "toy", options=ClientOptions(headers=server.headers)) as predictor,
        ThreadPoolExecutor(4) as threads,
    ):
        assert predictor.max_in_flight == 4
        assert predictor.identity.transport == "shared memory and grpc"  # an open server takes no shared memory
        answers = [threads.submit(predictor.predict, item) for item in patches[:100]]
        answers[10].result()
        os.kill(other.pid, signal.SIGKILL)  # while requests are on their way
        answers += [threads.submit(predictor.predict, item) for item in patches[100:]]
        for item, answer in zip(patches, answers, strict=True):
            np.testing.assert_allclose(answer.result(), toy_logits(item), rtol=1e-6, atol=1e-6)
        assert predictor.retries >= 1


def test_a_hung_server_loses_no_window_while_another_answers_and_gets_work_when_it_answers_again() -> None:
    works, hangs = FakeClient("works:1", value=1.0), FakeClient("hangs:1", value=2.0)
    hangs.hold()
    servers = (fake_connection(works, BusyServer), fake_connection(hangs))
    with fake_predictor(*servers, timeout_s=0.2) as predictor, ThreadPoolExecutor(4) as threads:
        values = [float(logits.max()) for logits in threads.map(predictor.predict, [toy_patches(1)] * 60)]
        assert values == [1.0] * 60
        assert predictor.retries == hangs.requests >= 1
        before = hangs.requests
        list(threads.map(predictor.predict, [toy_patches(1)] * 60))
        assert hangs.requests == before, "a silent server got another request"
        hangs.release()
        wait_for(lambda: float(predictor.predict(toy_patches(1)).max()) == 2.0)


@live
@pytest.mark.full
def test_a_real_server_that_hangs_loses_no_window_and_gets_work_when_it_answers_again(tmp_path: Path) -> None:
    parameters = {spec_parameter(1): toy_spec().to_json()}
    hangs_once = (
        f"import os\nopen('{tmp_path}/begun', 'w').close()\n"
        f"while not os.path.exists('{tmp_path}/released'):\n    time.sleep(0.02)\n"
        f"{ANSWER}"
    )
    write_foreign_entry(tmp_path / "works", "toy", ANSWER, parameters=parameters)
    write_foreign_entry(tmp_path / "hangs", "toy", hangs_once, parameters=parameters)

    def predict(seed: int) -> None:
        patches = toy_patches(1, seed)
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)

    def predict_until_repeated() -> None:
        while predictor.retries == 0:
            predict(0)

    with (
        embedded_server(tmp_path / "works", options=OPEN) as works,
        embedded_server(tmp_path / "hangs", options=OPEN) as hangs,
        connect([works.url, hangs.url], "toy", options=ClientOptions(timeout_s=20)) as predictor,
        ThreadPoolExecutor(4) as threads,
        InferenceServerClient(hangs.url) as client,
    ):
        for future in [threads.submit(predict_until_repeated) for _ in range(4)]:
            future.result()
        assert (tmp_path / "begun").exists()
        list(threads.map(predict, range(30)))
        (tmp_path / "released").touch()
        wait_for(lambda: predict(1) or client.get_inference_statistics("toy").model_stats[0].inference_count > 4)


@live
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "restarted"])
def test_a_server_that_goes_and_comes_back_loses_no_window(tmp_path: Path, end: signal.Signals) -> None:
    root, port = tmp_path / "models", free_port()
    write_toy_entry(root)
    patches = [toy_patches(1, seed) for seed in range(60)]
    options = ServerOptions(is_private=False, prove=False, grpc_port=port)
    with ThreadPoolExecutor(2) as threads:
        with embedded_server(root, options=options) as first:
            predictor = connect([first.url], "toy")
            answers = [threads.submit(predictor.predict, item) for item in patches[:40]]
            answers[5].result()
            os.kill(first.pid, end)  # while requests are on their way
            answers += [threads.submit(predictor.predict, item) for item in patches[40:]]
            wait_for(lambda: predictor.retries >= 1)
        with embedded_server(root, options=options), predictor:
            received = [answer.result().copy() for answer in answers]
    np.testing.assert_allclose(np.concatenate(received), toy_logits(np.concatenate(patches)), rtol=1e-6, atol=1e-6)


def test_a_server_that_goes_and_stays_away_is_unavailable() -> None:
    client = FakeClient()
    with fake_predictor(fake_connection(client), timeout_s=0.3) as predictor:
        predictor.predict(toy_patches(1))
        client.gone = CallError(UNAVAILABLE, "connection refused")
        told = r"toy: no server has computed anything for 0\.3 s: 127.*connection refused"
        with pytest.raises(ServerAwayError, match=told) as caught:
            predictor.predict(toy_patches(1))
        assert caught.value.settings == ("timeout_s",)


@live
@pytest.mark.full
def test_a_killed_server_that_stays_away_is_unavailable(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_toy_entry(root)
    with (
        embedded_server(root, options=OPEN) as server,
        connect([server.url], "toy", options=ClientOptions(timeout_s=20)) as predictor,
    ):
        predictor.predict(toy_patches(1))
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerAwayError, match="toy: no server has computed anything for 20 s: 127"):
            predictor.predict(toy_patches(1))


@live
def test_a_new_version_under_way_does_not_disturb_and_a_lost_one_is_named(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_toy_entry(root)
    patches = toy_patches(1)
    with (
        embedded_server(root, options=ServerOptions(is_private=False, watch=True)) as server,
        connect([server.url], "toy") as old,
    ):
        write_toy_entry(root, CHANGED, 2)
        wait_for(lambda: _newest(server) == 2)
        np.testing.assert_allclose(old.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        assert old.identity.version == 1
        with connect([server.url], "toy") as new:
            write_toy_entry(root, CHANGED, 3)  # now only 2 and 3 are served
            write_toy_entry(root, CHANGED, 4)  # and now 3 and 4
            wait_for(lambda: _newest(server) == 4)
            new.predict(patches)
            assert new.identity.version == 4  # the same digest goes on
        with pytest.raises(ModelNotFoundError, match=r"version 1 .* is gone .* start the folder again"):
            old.predict(patches)


def _newest(server: RunningServer) -> int:
    with connect([server.url], "toy") as predictor:
        return predictor.identity.version
