"""Says whether this server's models really answer: ``GET /ready`` and ``GET /live`` on a port of its own.

Triton calls a model ready when it is loaded; one that answers nothing, or NaN, is ready too. Here a model
version counts as ready when a real inference has given finite logits of the right size, or a label map where it
takes whole scans: once at the start, again after it was loaded anew, after requests to it failed, and now and then
while nobody else asks it. The probe only reads the result, so that it costs nothing, and answers 503 when this process
has stopped looking. Live means that the server answers at all, however long its models take.

Speaks Triton's HTTP protocol on the loopback interface, with the standard library and numpy: it stays small and
starts fast. Usage: ``python -I -m ctseg.container.readiness``, and one JSON object on standard input: server (URL),
headers (for the closed protocols), port.
"""

import contextlib
import ctypes
import http.client
import json
import logging
import math
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import numpy.typing as npt

from ctseg.container.log import log_to_standard_error
from ctseg.container.small_scan import LABELS, OPTIONS, SmallScan, problem_of_labels, small_scan, takes_scans
from ctseg.serving.proof import is_answer, random_patches

PERIOD_S = 2.0
REPEAT_S = 300.0
"""A version that nobody has asked for so long is asked again."""
REQUEST_TIMEOUT_S = 10.0
INFERENCE_TIMEOUT_S = 120.0
STALE_S = 4 * REQUEST_TIMEOUT_S + INFERENCE_TIMEOUT_S
"""More than asking one model may take; after each the state counts as new."""
LIVE_STALE_S = PERIOD_S + 2 * REQUEST_TIMEOUT_S

_PR_SET_PDEATHSIG = 1
_UNAVAILABLE = 503
_log = logging.getLogger("ctseg.container.readiness")  # not __name__, which is "__main__" in its process
_REQUEST_OUTPUT = "ctseg_request"
"""Output of ctseg's python backend that holds no logits, see :mod:`ctseg.triton.configuration`."""
_NUMPY_TYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class NoAnswerError(Exception):
    """The server gave no answer, or none that can be used."""


class BusyError(NoAnswerError):
    """The server is there, and had too much to do for an answer."""


class TooSlowError(BusyError):
    """It gave none in time."""


@dataclass(frozen=True)
class Counters:
    """What Triton has counted for a model version since it was loaded."""

    success: int = 0
    failure: int = 0


@dataclass(frozen=True)
class Proof:
    """What a real inference has shown.

    Attributes:
        problem: What was wrong; empty when the answer was good.
        counters: Triton's counters right after it.
        at_s: When, on the monotonic clock.
        of_scan: Whether it was a whole scan. Answers to others show less there: those that tell how far a scan is
            count as much.
    """

    problem: str
    counters: Counters
    at_s: float
    of_scan: bool = False


@dataclass(frozen=True)
class State:
    """What the probe is told.

    Attributes:
        live: Whether the server answered.
        models: Problem of each model by its name; empty for a model that is ready.
        at_s: When this was found, on the monotonic clock.
    """

    live: bool = False
    models: Mapping[str, str] = field(default_factory=dict)
    at_s: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return self.live and bool(self.models) and not any(self.models.values())


@dataclass(frozen=True)
class Liveness:
    """Whether the server answers at all, and when this was found, on the monotonic clock."""

    live: bool = False
    at_s: float = 0.0


class Server:
    """Triton's HTTP endpoint.

    Args:
        url: Such as ``http://127.0.0.1:8000``.
        headers: Sent with every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._address = urllib.parse.urlsplit(url).netloc
        self._headers = dict(headers)

    def ask(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float = REQUEST_TIMEOUT_S, **headers: str
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Send a request; return the answer's headers and body.

        Raises:
            NoAnswerError: No connection, or a status other than 200.
        """
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        try:
            own = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, {**self._headers, **own})
            answer = connection.getresponse()
            content = answer.read()
        except TimeoutError as error:
            raise TooSlowError(f"{path}: no answer within {timeout_s:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            text = content.decode("utf-8", "replace")[:300]
            kind = BusyError if answer.status == _UNAVAILABLE else NoAnswerError
            raise kind(f"{path}: status {answer.status}: {text}")
        return answer.headers, content

    def is_live(self) -> bool:
        """Whether the server answers."""
        try:
            self.ask("GET", "/v2/health/live")
        except NoAnswerError:
            return False
        return True

    def index(self) -> list[dict[str, Any]]:
        """Return every model version that the repository has, with its state."""
        _, content = self.ask("POST", "/v2/repository/index", b"{}")
        found: list[dict[str, Any]] = json.loads(content)
        return found

    def counters(self) -> dict[tuple[str, str], Counters]:
        """Return what was counted for each loaded version."""
        _, content = self.ask("GET", "/v2/models/stats")
        found = {}
        for item in json.loads(content)["model_stats"]:
            counts = item["inference_stats"]
            found[item["name"], item["version"]] = Counters(
                int(counts["success"]["count"]), int(counts["fail"]["count"])
            )
        return found

    def infer(self, name: str, version: str, *, timeout_s: float = INFERENCE_TIMEOUT_S) -> bool:
        """Run one random patch through a model version, or a small scan through one that takes whole scans.

        Returns:
            Whether it takes whole scans.

        Raises:
            NoAnswerError: No answer, an empty one, or one that is not finite.
        """
        path = f"/v2/models/{urllib.parse.quote(name)}/versions/{version}"
        _, content = self.ask("GET", path)
        metadata = json.loads(content)
        if takes_scans(metadata):
            try:
                scan = small_scan(name, version, self._parameters_of)
            except ValueError as error:
                raise NoAnswerError(str(error)) from error
            if scan is not None:
                self._infer_scan(path, scan, timeout_s)
            return True
        inputs = [
            {**tensor, "shape": [1 if side < 0 else side for side in tensor["shape"]]} for tensor in metadata["inputs"]
        ]
        logits = [tensor for tensor in metadata["outputs"] if tensor["name"] != _REQUEST_OUTPUT]
        sent = [_random_bytes(tensor["shape"], tensor["datatype"]) for tensor in inputs]
        head, data = self._exchange(path, inputs, sent, [tensor["name"] for tensor in logits], timeout_s)
        _check_answer(head, data, logits)
        return False

    def _infer_scan(self, path: str, scan: SmallScan, timeout_s: float) -> None:
        sent = [array.tobytes() for array in scan.tensors.values()]
        head, data = self._exchange(path, scan.inputs, sent, [LABELS], timeout_s, OPTIONS)
        if problem := problem_of_labels(head.get("outputs", ()), data):
            raise NoAnswerError(problem)

    def _exchange(
        self,
        path: str,
        inputs: Iterable[Mapping[str, Any]],
        sent: list[bytes],
        outputs: Iterable[str],
        timeout_s: float,
        parameters: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Send tensors as bytes; return the answer's JSON, and the bytes of its tensors."""
        tensors = [
            {**tensor, "parameters": {"binary_data_size": len(data)}} for tensor, data in zip(inputs, sent, strict=True)
        ]
        wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        head = json.dumps({"inputs": tensors, "outputs": wanted, "parameters": dict(parameters or {})}).encode()
        headers, content = self.ask(
            "POST",
            f"{path}/infer",
            head + b"".join(sent),
            timeout_s=timeout_s,
            Inference_Header_Content_Length=str(len(head)),
        )
        length = int(headers.get("Inference-Header-Content-Length", len(content)))
        return json.loads(content[:length]), content[length:]

    def _parameters_of(self, name: str) -> dict[str, str]:
        """Return the parameters of a model's configuration."""
        _, content = self.ask("GET", f"/v2/models/{urllib.parse.quote(name)}/config")
        return {key: value["string_value"] for key, value in json.loads(content).get("parameters", {}).items()}


def _random_bytes(shape: list[int], datatype: str) -> bytes:
    if datatype not in _NUMPY_TYPES:
        raise NoAnswerError(f"input of type {datatype}: expected {', '.join(_NUMPY_TYPES)}")
    values = random_patches(shape)
    if datatype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype(_NUMPY_TYPES[datatype]).tobytes()


def _check_answer(head: dict[str, Any], data: bytes, expected: Iterable[dict[str, Any]]) -> None:
    answered = {tensor["name"]: tensor for tensor in head.get("outputs", ())}
    start = 0
    for tensor in expected:
        name, dtype = tensor["name"], _NUMPY_TYPES.get(tensor["datatype"])
        if dtype is None or name not in answered:
            raise NoAnswerError(f"output {name} of type {tensor['datatype']} is missing in the answer")
        size = dtype.itemsize * math.prod(1 if side < 0 else side for side in tensor["shape"])
        part = data[start : start + size]
        start += size
        if len(part) != size:
            raise NoAnswerError(f"output {name} has {len(part)} bytes, expected {size}")
        values: npt.NDArray[Any] = np.frombuffer(part, dtype)
        if tensor["datatype"] == "BF16":
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if not is_answer(values):
            raise NoAnswerError(f"output {name} is not finite for a random patch")


class Watch:
    """Looks at the server again and again, and keeps what it saw.

    Args:
        server: Where to look.
        now_s: The monotonic clock.
    """

    def __init__(self, server: Server, now_s: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._now_s = now_s
        self._proofs: dict[tuple[str, str], Proof] = {}
        self.state = State()
        self.liveness = Liveness()

    def check_liveness(self) -> None:
        """See whether the server answers at all; from a thread of its own, for models may take their time."""
        live = self._server.is_live()
        self.liveness = Liveness(live, self._now_s())

    @property
    def is_live(self) -> bool:
        """Whether the server answers."""
        return self.liveness.live and self._now_s() - self.liveness.at_s < LIVE_STALE_S

    @property
    def is_ready(self) -> bool:
        """Whether every model answers."""
        return self.is_live and self.state.ready and self._now_s() - self.state.at_s < STALE_S

    def look(self) -> State:
        """Look once; return what the probe is told from now on."""
        live = self._server.is_live()
        models = dict.fromkeys(self.state.models, "the server does not answer")
        if live:
            with contextlib.suppress(NoAnswerError):
                models = self._models()
        self._tell(models if live != self.state.live or models != self.state.models else {})
        self.state = State(live=live, models=models, at_s=self._now_s())
        return self.state

    def _tell(self, models: Mapping[str, str]) -> None:
        for name, problem in models.items():
            if problem != self.state.models.get(name):
                _log.info("%s: %s", name, problem or "ready")

    def _models(self) -> dict[str, str]:
        counters = self._server.counters()
        problems: dict[str, list[str]] = {}
        loaded: dict[str, list[str]] = {}
        for item in self._server.index():
            name = item["name"]
            problems.setdefault(name, [])
            if item.get("state") == "READY":
                loaded.setdefault(name, []).append(item["version"])
            elif item.get("reason"):
                problems[name].append(f"version {item.get('version', '?')}: {item['reason']}")
        self._proofs = {key: proof for key, proof in self._proofs.items() if key in counters}
        models = {}
        for name, reasons in problems.items():
            versions = loaded.get(name, [])
            bad = []
            for version in versions:
                if problem := self._problem(name, version, counters):
                    bad.append(problem)
                self.state = replace(self.state, at_s=self._now_s())
            models[name] = "; ".join(bad) if versions else "; ".join(["not loaded", *reasons])
        return models

    def _problem(self, name: str, version: str, counters: Mapping[tuple[str, str], Counters]) -> str:
        key = (name, version)
        proof, counted = self._proofs.get(key), counters.get(key, Counters())
        if proof is not None and not self._must_ask(proof, counted):
            if counted.success > proof.counters.success and not proof.of_scan:  # others get answers: as good as asking
                self._proofs[key] = Proof("", counted, self._now_s())
            return ""
        failure: NoAnswerError | None = None
        of_scan = proof is not None and proof.of_scan
        try:
            of_scan = self._server.infer(name, version)
        except NoAnswerError as error:
            failure = error
        after = self._server.counters().get(key, Counters())
        problem = "" if failure is None else f"version {version}: {failure}"
        if isinstance(failure, BusyError) and proof is not None and not proof.problem:
            before = counted if isinstance(failure, TooSlowError) else proof.counters
            if after.success > before.success:
                problem = ""  # it answers others: busy, not broken
        self._proofs[key] = Proof(problem, after, self._now_s(), of_scan)
        return problem

    def _must_ask(self, proof: Proof, counted: Counters) -> bool:
        return (
            bool(proof.problem)
            or counted.success < proof.counters.success  # counts from zero: it was loaded anew
            or counted.failure > proof.counters.failure
            or ((counted.success == proof.counters.success or proof.of_scan) and self._now_s() - proof.at_s > REPEAT_S)
        )


def handler(watch: Watch) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers the probe."""

    class Probe(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer ``/ready`` and ``/live``."""
            ready = watch.is_ready
            good = {"/ready": ready, "/live": watch.is_live}.get(self.path)
            models = {name: problem or "ready" for name, problem in watch.state.models.items()}
            body = json.dumps({"ready": ready, "models": models})
            self.send_response(404 if good is None else 200 if good else 503)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's signature)
            """Write no line per probe."""

    Probe.timeout = 5
    return Probe


def main() -> None:
    """Watch until the server's process ends."""
    log_to_standard_error()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = json.loads(sys.stdin.read())
    watch = Watch(Server(job["server"], job["headers"]))
    probe = ThreadingHTTPServer(("0.0.0.0", job["port"]), handler(watch))  # noqa: S104 (the orchestrator asks from outside)
    threading.Thread(target=probe.serve_forever, daemon=True).start()

    def check_liveness() -> None:
        while True:
            watch.check_liveness()
            time.sleep(PERIOD_S)

    threading.Thread(target=check_liveness, daemon=True).start()
    while True:
        watch.look()
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main()
