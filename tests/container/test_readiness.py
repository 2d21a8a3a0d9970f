"""When does a model count as ready? A stand-in for Triton's HTTP endpoint answers what each test says."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ctseg.container import readiness


class FakeTriton:
    """One model, ``m``, whose answers and counters can be set."""

    def __init__(self) -> None:
        self.state = "READY"
        self.success = 0
        self.failure = 0
        self.inferences = 0
        self.answer = np.ones((1, 2, 4, 4, 4), np.float32)
        self.status = 200
        self.closed = True

        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(fake.get(self.path))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if self.path == "/v2/repository/index":
                    allowed = self.headers.get("ctseg-admin") == "key"
                    version = {"version": "1", "state": fake.state, "reason": "unloaded"}
                    self._reply(json.dumps([{"name": "m", **version}]).encode() if allowed else None)
                    return
                head = json.loads(body[: int(self.headers["Inference-Header-Content-Length"])])
                sent = np.frombuffer(body[int(self.headers["Inference-Header-Content-Length"]) :], "<f4")
                assert head["inputs"][0]["shape"] == [1, 1, 4, 4, 4]
                assert sent.size == 64
                assert sent.std() > 0
                fake.inferences += 1
                if fake.status != 200:
                    fake.failure += 1
                    self._reply(None)
                    return
                fake.success += 1
                reply = json.dumps({"outputs": [{"name": "output"}]}).encode()
                self._reply(reply + fake.answer.tobytes(), **{"Inference-Header-Content-Length": str(len(reply))})

            def _reply(self, body: bytes | None, **headers: str) -> None:
                self.send_response(200 if body is not None else 500 if fake.status == 200 else fake.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body or b"{}")

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def get(self, path: str) -> bytes:
        if path == "/v2/models/stats":
            loaded = self.state == "READY"
            counts = {"success": {"count": self.success}, "fail": {"count": self.failure}}
            stats = [{"name": "m", "version": "1", "inference_stats": counts}] if loaded else []
            return json.dumps({"model_stats": stats}).encode()
        if path == "/v2/models/m/versions/1":
            return json.dumps(
                {
                    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4, 4]}],
                    "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 2, 4, 4, 4]}],
                }
            ).encode()
        return b"{}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    fake = FakeTriton()
    yield fake
    fake.stop()


class Clock:
    def __init__(self) -> None:
        self.time_s = 1000.0

    def __call__(self) -> float:
        return self.time_s


def watch_of(triton: FakeTriton, clock: Clock | None = None):
    return readiness.Watch(readiness.Server(triton.url, {"ctseg-admin": "key"}), clock or Clock())


def test_a_model_is_ready_after_one_real_inference_and_not_asked_again(triton: FakeTriton) -> None:
    watch = watch_of(triton)
    assert not watch.state.ready
    assert watch.look().ready
    for _ in range(5):
        assert watch.look().ready
    assert triton.inferences == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.empty((0,), np.float32), "0 bytes, expected 512"),
        (np.full((1, 2, 4, 4, 4), np.nan, np.float32), "not finite"),
        (np.ones((1, 1, 4, 4, 4), np.float32), "256 bytes, expected 512"),
    ],
)
def test_a_loaded_model_without_a_good_answer_is_not_ready(triton: FakeTriton, answer: np.ndarray, words: str) -> None:
    triton.answer = answer
    state = watch_of(triton).look()
    assert state.live
    assert not state.ready
    assert words in state.models["m"]


def test_failed_requests_of_others_make_it_ask_again(triton: FakeTriton) -> None:
    watch = watch_of(triton)
    assert watch.look().ready
    triton.failure += 1
    assert watch.look().ready
    assert triton.inferences == 2
    triton.failure += 1
    triton.status = 500
    assert not watch.look().ready
    triton.status = 200
    assert watch.look().ready


def test_a_model_that_has_too_much_to_do_stays_ready_while_it_answers_others(triton: FakeTriton) -> None:
    watch = watch_of(triton)
    assert watch.look().ready
    triton.failure += 1  # others are refused
    triton.success += 5
    triton.status = 503
    assert watch.look().ready
    triton.failure += 1
    assert not watch.look().ready, "nobody was answered since"


def test_a_model_that_was_loaded_anew_is_asked_again(triton: FakeTriton) -> None:
    watch = watch_of(triton)
    assert watch.look().ready
    triton.success = 0
    triton.answer = np.empty((0,), np.float32)
    assert not watch.look().ready
    assert triton.inferences == 2


def test_an_idle_model_is_asked_now_and_then_and_a_busy_one_is_not(triton: FakeTriton) -> None:
    clock = Clock()
    watch = watch_of(triton, clock)
    watch.look()
    clock.time_s += readiness.REPEAT_S + 1
    triton.success += 10
    watch.look()
    assert triton.inferences == 1
    clock.time_s += readiness.REPEAT_S + 1
    watch.look()
    assert triton.inferences == 2


def test_an_unloaded_model_is_not_ready_and_says_why(triton: FakeTriton) -> None:
    watch = watch_of(triton)
    assert watch.look().ready
    triton.state = "UNAVAILABLE"
    state = watch.look()
    assert not state.ready
    assert state.models["m"] == "not loaded; version 1: unloaded"


def test_a_wrong_key_is_never_called_ready(triton: FakeTriton) -> None:
    watch = readiness.Watch(readiness.Server(triton.url, {"ctseg-admin": "wrong"}), Clock())
    assert not watch.look().ready


def test_a_server_that_is_gone_is_neither_live_nor_ready(triton: FakeTriton) -> None:
    watch = watch_of(triton)
    assert watch.look().ready
    triton.stop()
    state = watch.look()
    assert not state.live
    assert not state.ready


class SlowModels:
    """A live server with three models, each of which takes its time to answer; time passes nowhere else."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.cost_s, self.failures, self.seen = clock, 0.0, 0, []
        self.watch = readiness.Watch(self, clock)

    def is_live(self) -> bool:
        return True

    def counters(self) -> dict:
        return {(name, "1"): readiness.Counters(5, self.failures) for name in "abc"}

    def index(self) -> list[dict]:
        return [{"name": name, "version": "1", "state": "READY"} for name in "abc"]

    def infer(self, name: str, version: str) -> bool:
        for _ in range(int(self.cost_s)):
            self.clock.time_s += 1
            self.watch.check_liveness()  # as the other thread does
            self.seen.append((self.watch.is_live, self.watch.is_ready))
        return False


def test_a_server_whose_models_are_slow_to_answer_is_live_and_stays_ready() -> None:
    server = SlowModels(Clock())
    server.watch.look()
    server.cost_s, server.failures = readiness.INFERENCE_TIMEOUT_S, 1  # each is asked again, one after another
    server.watch.look()
    assert len(server.seen) == 3 * readiness.INFERENCE_TIMEOUT_S > readiness.STALE_S
    assert set(server.seen) == {(True, True)}


def test_the_probe_answers_by_status_and_goes_bad_when_nobody_looks(triton: FakeTriton) -> None:
    watch = readiness.Watch(readiness.Server(triton.url, {"ctseg-admin": "key"}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), readiness.handler(watch))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert (status("/ready"), status("/live")) == (503, 503)
    watch.look()
    watch.check_liveness()
    assert (status("/ready"), status("/live"), status("/other")) == (200, 200, 404)
    watch.state = readiness.State(live=True, models={"m": ""}, at_s=time.monotonic() - readiness.STALE_S - 1)
    assert (status("/ready"), status("/live")) == (503, 200)
    watch.liveness = readiness.Liveness(live=True, at_s=time.monotonic() - readiness.LIVE_STALE_S - 1)
    assert (status("/ready"), status("/live")) == (503, 503)
    server.shutdown()
    server.server_close()


def test_its_process_loads_nothing_heavy() -> None:
    code = "import ctseg.container.readiness, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "onnx", "onnxruntime", "tritonclient", "grpc", "google.protobuf", "pydantic", "scipy", "numba"}
    assert not heavy & set(done.stdout.split())
