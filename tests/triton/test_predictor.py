"""The Triton client against a real server, and its errors one by one."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ctseg.errors import (
    InferenceFailedError,
    ModelNotFoundError,
    RequestRejectedError,
    ServerTimeoutError,
    ServerUnavailableError,
    SetupError,
    SpecError,
)
from ctseg.model_spec import KeepLargest
from ctseg.serving.process import RunningServer, ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.triton import shared_memory
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor, connect
from ctseg.triton.transport import SEGMENT_PREFIX, batch_limit
from tests.predict.test_predictor import check_predictor
from tests.support.toy_models import PATCH, toy_logits, toy_patches, toy_spec, write_foreign_entry, write_toy_entry

pytestmark = pytest.mark.live

SPEC_KEY = "ctseg_spec.1"
GOOD = "return self.respond(self.logits(patches))"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("live") / "models"
    write_toy_entry(root)
    write_toy_entry(
        root, toy_spec("half", input={"name": "input", "dtype": "FP16"}, output={"name": "logits", "dtype": "FP16"})
    )
    write_foreign_entry(root, "no_spec", GOOD)
    future = toy_spec("future").to_json().replace('"schema_version":1', '"schema_version":99')
    write_foreign_entry(root, "future", GOOD, parameters={SPEC_KEY: future})
    write_foreign_entry(root, "other_heads", GOOD, parameters={SPEC_KEY: toy_spec("other_heads").to_json()}, heads=4)
    write_foreign_entry(root, "misnamed", GOOD, parameters={SPEC_KEY: toy_spec("toy").to_json()})
    cascade = toy_spec("cascade", previous_stage="3d_lowres").to_json()
    write_foreign_entry(root, "cascade", GOOD, parameters={SPEC_KEY: cascade})
    broken = 'raise RuntimeError("out of luck")'
    write_foreign_entry(root, "broken", broken, parameters={SPEC_KEY: toy_spec("broken").to_json()})
    mortal = f"if patches[0, 0, 0, 0, 0] == 77: import os; os._exit(1)\n{GOOD}"
    write_foreign_entry(root, "mortal", mortal, parameters={SPEC_KEY: toy_spec("mortal").to_json()})
    empty = 'return pb_utils.InferenceResponse([pb_utils.Tensor("logits", self.logits(patches))])'
    write_foreign_entry(root, "empty", empty, parameters={SPEC_KEY: toy_spec("empty").to_json()})
    slow = f"time.sleep(2.0 if patches[0, 0, 0, 0, 0] == 99 else 0.05)\n{GOOD}"
    write_foreign_entry(root, "slow", slow, parameters={SPEC_KEY: toy_spec("slow").to_json()})
    with embedded_server(root, options=ServerOptions(prove=False)) as running:
        yield running
    assert not list(shared_memory.FOLDER.glob(f"*-{os.getpid()}-*"))


@contextlib.contextmanager
def connected(server: RunningServer, model: str = "toy", **options: object) -> Iterator[TritonPredictor]:
    with connect([server.url], model, options=ClientOptions(headers=server.headers, **options)) as predictor:
        yield predictor


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- answers


@pytest.mark.parametrize("transport", ["on", "off"])
@pytest.mark.parametrize("model", ["toy", "half"])
def test_the_server_passes_the_contract_of_predictors(server: RunningServer, model: str, transport: str) -> None:
    with connected(server, model, shared_memory=transport) as predictor:
        check_predictor(predictor)


@pytest.mark.parametrize("transport", ["on", "off"])
def test_the_logits_are_those_of_the_network(server: RunningServer, transport: str) -> None:
    patches = toy_patches(3)
    with connected(server, shared_memory=transport) as predictor:
        assert predictor.identity.transport == {"on": "shared memory", "off": "grpc"}[transport]
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        assert predictor.bytes_sent == patches.nbytes
        assert predictor.bytes_received == patches.nbytes * 3 // 2  # two channels in, three heads out


def test_fp16_answers_come_as_float32_and_are_half_the_bytes(server: RunningServer) -> None:
    patches = toy_patches(2)
    with connected(server, "half") as predictor:
        logits = predictor.predict(patches)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, toy_logits(patches), rtol=2e-3, atol=5e-3)
        assert predictor.bytes_received == logits.nbytes // 2


def test_shared_memory_and_grpc_give_the_same_bits(server: RunningServer) -> None:
    patches = toy_patches(4)
    with connected(server, shared_memory="on") as one, connected(server, shared_memory="off") as other:
        np.testing.assert_array_equal(one.predict(patches), other.predict(patches))


def test_answers_that_are_held_do_not_block_further_requests(server: RunningServer) -> None:
    size = toy_logits(toy_patches(1)).nbytes
    with connected(server, shared_memory="on", max_shared_memory_bytes=4 * size + 4096) as predictor:
        patches = [toy_patches(1, seed) for seed in range(12)]
        held = [predictor.predict(item) for item in patches]
        for item, logits in zip(patches, held, strict=True):
            np.testing.assert_allclose(logits, toy_logits(item), rtol=1e-6, atol=1e-6)


def test_an_answer_stays_readable_after_close(server: RunningServer) -> None:
    patches = toy_patches(2)
    with connected(server, shared_memory="on") as predictor:
        logits = predictor.predict(patches)
    np.testing.assert_allclose(logits, toy_logits(patches), rtol=1e-6, atol=1e-6)


def test_shared_memory_is_gone_after_close(server: RunningServer) -> None:
    with connected(server, shared_memory="on") as predictor:
        predictor.predict(toy_patches(2))
        assert list(shared_memory.FOLDER.glob(f"{SEGMENT_PREFIX}*-{os.getpid()}-*"))
        assert _registered(server) >= 2
    assert _registered(server) == 0
    assert not list(shared_memory.FOLDER.glob(f"{SEGMENT_PREFIX}*-{os.getpid()}-*"))


def test_shared_memory_of_a_killed_client_goes_with_the_next_client(server: RunningServer) -> None:
    code = (
        "from ctseg.triton import shared_memory; import sys, time\n"
        f"s = shared_memory.Segment({SEGMENT_PREFIX!r}, 4096); print(s.name, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    with connected(server):
        assert (shared_memory.FOLDER / name).exists()  # its owner lives
    process.kill()
    process.communicate()
    with connected(server):
        assert not (shared_memory.FOLDER / name).exists()


def test_a_region_that_the_server_lost_is_made_known_again(server: RunningServer) -> None:
    patches = toy_patches(2)
    with connected(server, shared_memory="on") as predictor:
        predictor.predict(patches)
        _wait_for(lambda: _unregister_all(server))
        for _ in range(3):
            np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        assert predictor.identity.transport == "shared memory"


# --- limits


def test_large_windows_travel_alone() -> None:
    small, medium, large = (toy_spec(patch_size=size) for size in ((32, 64, 64), (96, 160, 160), (160, 256, 256)))
    assert batch_limit(small, 2**31 - 1) == (128 << 20) // (3 * 32 * 64 * 64 * 4)
    assert batch_limit(medium, 2**31 - 1) == 4, "3 heads of 9.8 MB each: four windows are less than 128 MiB"
    assert batch_limit(large, 2**31 - 1) == 1


def test_the_batch_stays_under_the_message_size(server: RunningServer) -> None:
    answer = toy_logits(toy_patches(1)).nbytes
    with connected(server, max_message_bytes=2 * answer + 5000) as predictor:
        assert predictor.max_batch_size == 2
    with pytest.raises(SetupError, match=r"one patch .* 3 heads takes"), connected(server, max_message_bytes=answer):
        pass


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


# --- the contract


def test_a_model_without_a_spec_says_how_to_get_one(server: RunningServer) -> None:
    with pytest.raises(SpecError, match=r"no_spec version 1 .*ctseg build.*as a file"), connected(server, "no_spec"):
        pass


def test_a_spec_from_a_file_serves_where_the_server_has_none(server: RunningServer) -> None:
    patches = toy_patches(2)
    options = ClientOptions(headers=server.headers)
    with connect([server.url], "no_spec", spec=toy_spec("no_spec"), options=options) as predictor:
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)


def test_a_spec_from_a_file_that_contradicts_the_server_names_both(server: RunningServer) -> None:
    spec = toy_spec("no_spec", patch_size=(6, 10, 16))
    with pytest.raises(SpecError, match=r"6, 10, 16.*the server has.*6, 10, 14"):
        connect([server.url], "no_spec", spec=spec, options=ClientOptions(headers=server.headers))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("nowhere", ModelNotFoundError, r"nowhere at 127.*NOT_FOUND.*unknown model"),
        ("future", SpecError, r"future version 1 at 127.*schema_version 99 is unknown"),
        ("other_heads", SpecError, r"lists 3 labels and expects the output .*3, 6, 10, 14.* has .*4, 6, 10, 14"),
        ("misnamed", SpecError, r"of a model named 'toy'"),
        ("cascade", SpecError, r"second stage of a cascade"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_by_name(
    server: RunningServer, model: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), connected(server, model):
        pass


def test_a_version_that_is_not_there_is_named(server: RunningServer) -> None:
    with pytest.raises(ModelNotFoundError, match="version 7"):
        connect([server.url], "toy", version=7, options=ClientOptions(headers=server.headers))


# --- failures


def test_an_exception_in_the_model_is_told_with_model_server_and_shapes(server: RunningServer) -> None:
    with connected(server, "broken") as predictor, pytest.raises(InferenceFailedError) as caught:
        predictor.predict(toy_patches(2))
    for part in ("broken version 1", server.url, "(2, 2, 6, 10, 14)", "INTERNAL", "out of luck"):
        assert part in str(caught.value)


def test_a_model_process_that_dies_fails_its_requests_by_name_and_hangs_nobody(server: RunningServer) -> None:
    deadly = toy_patches(1)
    deadly[0, 0, 0, 0, 0] = 77
    with connected(server, "mortal", timeout_s=20) as predictor:
        for patches in (deadly, toy_patches(1)):  # this release does not start the process again
            with pytest.raises(InferenceFailedError, match=r"mortal version 1 .* not healthy"):
                predictor.predict(patches)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="the trap is numpy 2's")
@pytest.mark.parametrize("transport", ["on", "off"])
def test_an_empty_answer_is_no_answer(server: RunningServer, transport: str) -> None:
    with connected(server, "empty", shared_memory=transport) as predictor, pytest.raises(InferenceFailedError):
        predictor.predict(toy_patches(1))


def test_refused_connection_is_not_called_a_timeout() -> None:
    with pytest.raises(ServerUnavailableError, match=r"[Cc]onnection refused"):
        connect([f"127.0.0.1:{free_port()}"], "toy", options=ClientOptions(connect_timeout_s=0.5))


def test_a_server_that_never_answers_is_a_timeout() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(ServerTimeoutError, match="DEADLINE_EXCEEDED"):
            connect([f"127.0.0.1:{deaf.getsockname()[1]}"], "toy", options=ClientOptions(connect_timeout_s=0.5))


def test_a_model_that_hangs_is_given_up_after_the_timeout(server: RunningServer) -> None:
    patches = toy_patches(1)
    patches[0, 0, 0, 0, 0] = 99
    given_up = pytest.raises(ServerTimeoutError, match=r"nothing was answered for 0\.5 s")
    with connected(server, "slow", timeout_s=0.5) as predictor, given_up:
        predictor.predict(patches)


def test_a_queue_that_is_longer_than_the_timeout_is_no_timeout(server: RunningServer) -> None:
    with connected(server, "slow", timeout_s=0.4) as predictor, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(predictor.predict, [toy_patches(1, seed) for seed in range(16)]))
    assert len(answers) == 16


def test_a_missing_key_is_a_refusal_and_not_repeated(server: RunningServer) -> None:
    started = time.monotonic()
    with pytest.raises(RequestRejectedError, match="restricted"):
        connect([server.url], "toy")
    assert time.monotonic() - started < 5


def test_headers_are_not_shown(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    options = ClientOptions(headers={**server.headers, "authorization": "Bearer secret-token"})
    with connect([server.url], "toy", options=options) as predictor:
        predictor.predict(toy_patches(1))
    (key,) = server.headers.values()
    for text in (repr(options), repr(server), caplog.text):
        assert "secret-token" not in text
        assert key not in text


def test_close_ends_waiting_requests_and_does_not_hang(server: RunningServer) -> None:
    patches = toy_patches(1)
    patches[0, 0, 0, 0, 0] = 99
    predictor = connect([server.url], "slow", options=ClientOptions(headers=server.headers))
    caught: list[BaseException] = []

    def run() -> None:
        try:
            predictor.predict(patches)
        except ServerUnavailableError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    predictor.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "closed" in str(caught[0])


@pytest.mark.parametrize("url", ["http://gpu1:8000", "gpu1", "gpu1:", ":8001", "gpu1:99999"])
def test_a_url_that_cannot_be_right_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="host:port"):
        connect([url], "toy")


def test_certificate_files_are_checked_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for options, message in (
        (ClientOptions(root_certificates=tmp_path / "none.pem"), "cannot be read: No such file"),
        (ClientOptions(root_certificates=tmp_path / "text.pem"), "not a PEM file"),
        (ClientOptions(client_key=tmp_path / "text.pem"), "needs both"),
    ):
        with pytest.raises(SetupError, match=message):
            connect(["gpu1:8001"], "toy", options=options)


# --- several servers, and servers that come and go


def test_two_servers_with_different_specs_are_refused_and_both_named(server: RunningServer, tmp_path: Path) -> None:
    root = tmp_path / "models"
    spec = write_toy_entry(root, toy_spec(postprocessing=(KeepLargest(labels=(1,)),)))
    with (
        embedded_server(root, options=ServerOptions(is_private=False, prove=False)) as other,
        pytest.raises(SpecError) as caught,
    ):
        connect([server.url, other.url], "toy", options=ClientOptions(headers=server.headers))
    for part in (server.url, other.url, toy_spec().digest[:12], spec.digest[:12]):
        assert part in str(caught.value)


def test_work_goes_to_both_servers_and_on_with_one_when_the_other_dies(server: RunningServer, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_toy_entry(root)
    options = ClientOptions(headers=server.headers, timeout_s=10)
    with (
        embedded_server(root, options=ServerOptions(is_private=False, prove=False)) as other,
        connect([server.url, other.url], "toy", options=options) as predictor,
        ThreadPoolExecutor(4) as threads,
    ):
        assert predictor.max_in_flight == 4
        assert predictor.identity.transport == "shared memory and grpc"  # an open server takes no shared memory
        patches = [toy_patches(1, seed) for seed in range(200)]
        answers = threads.map(predictor.predict, patches)
        for i, (item, logits) in enumerate(zip(patches, answers, strict=True)):
            if i == 20:
                os.kill(other.pid, signal.SIGKILL)
            np.testing.assert_allclose(logits, toy_logits(item), rtol=1e-6, atol=1e-6)
        assert predictor.retries >= 1


def test_a_hung_server_loses_no_window_while_another_answers_and_gets_work_when_it_answers_again(
    tmp_path: Path,
) -> None:
    parameters = {SPEC_KEY: toy_spec().to_json()}
    write_foreign_entry(tmp_path / "works", "toy", f"time.sleep(0.1)\n{GOOD}", parameters=parameters)
    hangs_once = f'if not hasattr(self, "hung"):\n    self.hung = True\n    time.sleep(5)\n{GOOD}'
    write_foreign_entry(tmp_path / "hangs", "toy", hangs_once, parameters=parameters)
    slowest_s, lock = [0.0], threading.Lock()

    def predict(seed: int) -> None:
        patches = toy_patches(1, seed)
        started = time.monotonic()
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        with lock:
            slowest_s[0] = max(slowest_s[0], time.monotonic() - started)

    with (
        embedded_server(tmp_path / "works", options=ServerOptions(is_private=False, prove=False)) as works,
        embedded_server(tmp_path / "hangs", options=ServerOptions(is_private=False, prove=False)) as hangs,
        connect([works.url, hangs.url], "toy", options=ClientOptions(timeout_s=1)) as predictor,
        ThreadPoolExecutor(4) as threads,
    ):
        list(threads.map(predict, range(30)))
        assert predictor.retries >= 1
        assert slowest_s[0] < 4  # the second that nobody answered, and one window elsewhere; not the hang
        time.sleep(4)
        client = InferenceServerClient(hangs.url)
        before = client.get_inference_statistics("toy").model_stats[0].inference_count
        list(threads.map(predict, range(30)))
        assert client.get_inference_statistics("toy").model_stats[0].inference_count > before
        client.close()


def test_a_killed_server_that_comes_back_loses_no_window(tmp_path: Path) -> None:
    root, port = tmp_path / "models", free_port()
    write_toy_entry(root)
    patches = [toy_patches(1, seed) for seed in range(60)]
    with ThreadPoolExecutor(2) as threads, contextlib.ExitStack() as stack:
        with embedded_server(root, options=ServerOptions(is_private=False, prove=False, grpc_port=port)) as first:
            predictor = connect([first.url], "toy", options=ClientOptions(timeout_s=60))
            stack.callback(predictor.close)
            answers = threads.map(predictor.predict, patches)
            received = [next(answers).copy() for _ in range(10)]
            os.kill(first.pid, signal.SIGKILL)
        time.sleep(0.5)
        with embedded_server(root, options=ServerOptions(is_private=False, prove=False, grpc_port=port)):
            received += [logits.copy() for logits in answers]
            predictor.close()
    assert predictor.retries >= 1
    np.testing.assert_allclose(np.concatenate(received), toy_logits(np.concatenate(patches)), rtol=1e-6, atol=1e-6)


def test_a_killed_server_that_stays_away_is_unavailable(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_toy_entry(root)
    with (
        embedded_server(root, options=ServerOptions(is_private=False, prove=False)) as server,
        connect([server.url], "toy", options=ClientOptions(timeout_s=1.5)) as predictor,
    ):
        predictor.predict(toy_patches(1))
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerUnavailableError, match="toy version 1 at 127"):
            predictor.predict(toy_patches(1))


def test_a_new_version_under_way_does_not_disturb_and_a_lost_one_is_named(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_toy_entry(root)
    changed = toy_spec(postprocessing=(KeepLargest(labels=(1,)),))
    patches = toy_patches(1)
    with embedded_server(root, options=ServerOptions(is_private=False, watch=True)) as server:
        options = ClientOptions(timeout_s=30)
        with connect([server.url], "toy", options=options) as old:
            write_toy_entry(root, changed, 2)
            _wait_for(lambda: _newest(server) == 2)
            np.testing.assert_allclose(old.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
            assert old.identity.version == 1
            with connect([server.url], "toy", options=options) as new:
                write_toy_entry(root, changed, 3)  # now only 2 and 3 are served
                write_toy_entry(root, changed, 4)  # and now 3 and 4
                _wait_for(lambda: _newest(server) == 4)
                new.predict(patches)
                assert new.identity.version == 4  # the same digest goes on
            with pytest.raises(ModelNotFoundError, match=r"version 1 .* is gone .* start the folder again"):
                old.predict(patches)


def _registered(server: RunningServer) -> int:
    with InferenceServerClient(server.url) as client:
        return len(client.get_system_shared_memory_status(headers=server.headers).regions)


def _unregister_all(server: RunningServer) -> bool:
    with InferenceServerClient(server.url) as client, contextlib.suppress(InferenceServerException):
        client.unregister_system_shared_memory(headers=server.headers)  # refused while a request holds a region
    return _registered(server) == 0


def _newest(server: RunningServer) -> int:
    with connect([server.url], "toy") as predictor:
        return predictor.identity.version


def _wait_for(condition: object, timeout_s: float = 30.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.3)
