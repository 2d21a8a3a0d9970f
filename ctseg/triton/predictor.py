"""PatchPredictor over Triton's gRPC protocol; the only module that knows tritonclient.

Every failure of the library is translated here (:func:`_error_of`), told apart by its gRPC status code.

A predictor must be used in the process that made it: gRPC does not survive ``fork``. Make it in the
worker, or start workers by ``spawn``.
"""

import logging
import math
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import tenacity
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from ctseg.arrays import Logits, Patches
from ctseg.errors import (
    CtsegError,
    InferenceFailedError,
    ModelNotFoundError,
    RequestRejectedError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
    SetupError,
    SpecError,
)
from ctseg.model_spec import DType, ModelSpec
from ctseg.predict.predictor import Identity
from ctseg.triton import shared_memory
from ctseg.triton.configuration import spec_parameter, spec_parameters

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's and Triton's own limit of one message."""
SEGMENT_PREFIX = "ctseg-client-"
"""Begin of the names of this module's shared-memory segments."""

_MESSAGE_OVERHEAD_BYTES = 4096
_WORTHWHILE_BATCH_BYTES = 128 << 20
"""Windows that are larger than this together keep a GPU as busy one by one, in less memory."""
_CHANNELS_PER_SERVER = 4
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_RECHECK_TIMEOUT_S = 5.0
_DRAIN_TIMEOUT_S = 10.0
_UNREGISTER_TIMEOUT_S = 2.0
_GRACE_OF_GONE_VERSION_S = 5.0
_KEEPALIVE_MS = 310_000  # Triton answers pings closer than 300 s without data by closing the connection
_SHARED_MEMORY_CHANCES = 3

_UNAVAILABLE = "StatusCode.UNAVAILABLE"
_CANCELLED = "StatusCode.CANCELLED"
_DEADLINE = "StatusCode.DEADLINE_EXCEEDED"
_INTERNAL = "StatusCode.INTERNAL"
_NOT_FOUND = "StatusCode.NOT_FOUND"
_ALREADY_EXISTS = "StatusCode.ALREADY_EXISTS"
_SHARED_MEMORY_REFUSALS = ("StatusCode.INVALID_ARGUMENT", "StatusCode.UNIMPLEMENTED", _NOT_FOUND)
_NO_ANSWER = "no answer"
_WRONG = "wrong answer"
_RESTRICTED = "restricted"

_ERROR_OF_STATUS: Mapping[str, type[ServerError]] = {
    _UNAVAILABLE: ServerUnavailableError,
    _CANCELLED: ServerUnavailableError,
    _DEADLINE: ServerTimeoutError,
    _NO_ANSWER: ServerTimeoutError,
    _NOT_FOUND: ModelNotFoundError,
    _INTERNAL: InferenceFailedError,
    _WRONG: InferenceFailedError,
    "StatusCode.UNKNOWN": InferenceFailedError,
    "StatusCode.DATA_LOSS": InferenceFailedError,
}  # every other status is a refusal: RequestRejectedError

_WIRE: Mapping[DType, tuple[type[np.generic], Any]] = {
    "FP32": (np.float32, np.uint32(0x7FC0C75E)),
    "FP16": (np.float16, np.uint16(0x7E5C)),
    "BF16": (np.uint16, np.uint16(0x7FD3)),
}
"""How an answer lies in memory, and a NaN that no network writes: what it overwrites was answered."""


@dataclass(frozen=True)
class ClientOptions:
    """How to talk to Triton.

    Attributes:
        timeout_s: Longest time without any answer before a request is given up, in seconds. A server that is
            silent for so long is left aside until it answers something; its requests go to the others.
        connect_timeout_s: How long :func:`connect` waits for a server that is not ready yet, in seconds.
        max_in_flight: Requests at once, all servers together; None takes one more than each server has
            instances, at least two and at most four for each server.
        max_message_bytes: Longest request and answer; limits the batch.
        tls: Encrypt; implied by any of the three files.
        root_certificates: PEM file of the authorities that vouch for the server; None takes gRPC's own.
        client_certificate: PEM file of this client's certificate chain, for mutual TLS.
        client_key: PEM file of its private key.
        headers: Sent with every request, such as ``{"authorization": "Bearer …"}``; never logged.
        shared_memory: ``auto`` tries system shared memory with servers on this host and falls back to
            gRPC; ``on`` tries it whatever the server's address and fails without it; ``off`` does not try.
        max_shared_memory_bytes: Most shared memory of this client; what does not fit goes by gRPC.
    """

    timeout_s: float = 300.0
    connect_timeout_s: float = 20.0
    max_in_flight: int | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    tls: bool = False
    root_certificates: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    shared_memory: Literal["auto", "on", "off"] = "auto"
    max_shared_memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.connect_timeout_s <= 0:
            raise ValueError(f"timeouts must be positive, found {self.timeout_s} s and {self.connect_timeout_s} s")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, found {self.max_in_flight}")
        if not 1 <= self.max_message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"max_message_bytes must be 1 to {MAX_MESSAGE_BYTES}, found {self.max_message_bytes}")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or any((self.root_certificates, self.client_certificate, self.client_key))


def batch_limit(spec: ModelSpec, max_message_bytes: int) -> int:
    """Return how many patches are worth sending at once, whatever the server takes.

    Raises:
        SetupError: One patch or its answer is too long for a message.
    """
    largest = max(spec.patch_bytes, spec.logits_bytes)
    limit = (max_message_bytes - _MESSAGE_OVERHEAD_BYTES) // largest
    if limit < 1:
        raise SetupError(
            f"{spec.name}: one patch {spec.patch_size} with {spec.num_heads} heads takes {largest} bytes, at most "
            f"{max_message_bytes} go into a message: export with FP16 answers, or allow longer ones"
        )
    return min(limit, max(1, _WORTHWHILE_BATCH_BYTES // largest))


def connect(
    urls: Sequence[str],
    model: str,
    *,
    version: int | None = None,
    spec: ModelSpec | None = None,
    options: ClientOptions | None = None,
) -> "TritonPredictor":
    """Connect to one or more Triton servers that serve the same model.

    The spec comes from the server's configuration, is checked against the server's own tensors, and
    must be the same (by digest) on all servers.

    Args:
        urls: ``host:port`` of each server's gRPC endpoint.
        model: Name of the model.
        version: Version to use; None takes the newest that is ready on each server.
        spec: The spec, where the servers hide their configuration.
        options: How to talk to them.

    Returns:
        A predictor that sends each request to the least-loaded server. Close it when done.

    Raises:
        SetupError: A URL or a certificate file cannot be used, or one patch exceeds ``max_message_bytes``.
        SpecError: A server has no spec for the model, one that ctseg cannot run, one that contradicts
            the server's tensors, or the servers' specs differ.
        ServerError: See its children; ``ServerUnavailableError`` after ``connect_timeout_s``.
    """
    options = options or ClientOptions()
    if not urls:
        raise ValueError("no URL to connect to")
    credentials = _credentials_of(options)
    servers: list[_Server] = []
    try:
        for url in dict.fromkeys(_address_of(url) for url in urls):
            server = _Server(url, model, options, credentials)
            servers.append(server)
            server.choose_version(version, spec)
        first = servers[0]
        for other in servers[1:]:
            if other.spec.digest != first.spec.digest:
                raise SpecError(
                    f"{model}: {first.url} serves version {first.version} with the spec {first.spec.digest[:12]}, "
                    f"{other.url} version {other.version} with {other.spec.digest[:12]}: results would depend on the "
                    "server; deploy the same version to both, or name one --url"
                )
        return TritonPredictor(servers, options)
    except BaseException:
        for server in servers:
            server.close()
        raise


def is_ready(url: str, options: ClientOptions | None = None, *, timeout_s: float = 5.0) -> bool:
    """Whether a server answers and has loaded its models.

    Raises:
        SetupError: The URL or a certificate file cannot be used.
        RequestRejectedError: The server answers, and refuses to say.
    """
    options = options or ClientOptions()
    server = _Server(_address_of(url), "", options, _credentials_of(options), channels=1)
    try:
        return bool(server.ask("is_server_ready", client_timeout=timeout_s))
    except _CallError as error:
        if error.status in (_UNAVAILABLE, _CANCELLED, _DEADLINE):
            return False
        raise _error_of(error, f"{url}: is the server ready?") from error.__cause__
    finally:
        server.close()


class TritonPredictor:
    """Runs the network on Triton; made by :func:`connect`, used from any number of threads.

    Answers are float32: FP16 and BF16 answers are widened; FP32 ones are not copied and may lie in
    shared memory that is used again once the array and its views are gone.
    """

    def __init__(self, servers: "Sequence[_Server]", options: ClientOptions) -> None:
        self._servers = list(servers)
        self._options = options
        self._spec = servers[0].spec
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._bytes_sent = 0
        self._bytes_received = 0
        self._requests = 0
        self._retries = 0
        self._max_in_flight = options.max_in_flight or sum(min(4, max(2, s.instances + 1)) for s in servers)
        self._max_batch_size = min(
            batch_limit(self._spec, options.max_message_bytes), *(server.max_batch_size for server in servers)
        )
        self._pool: shared_memory.SegmentPool | None = None
        if options.shared_memory != "off":
            self._start_shared_memory()

    @property
    def spec(self) -> ModelSpec:
        """The contract of the network that runs."""
        return self._spec

    @property
    def identity(self) -> Identity:
        """The model, the version that the first server runs, and all servers."""
        return Identity(
            model=self._spec.name,
            version=self._servers[0].version,
            digest=self._spec.digest,
            servers=self.urls,
            transport=self._transport,
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers' addresses."""
        return tuple(server.url for server in self._servers)

    @property
    def max_batch_size(self) -> int:
        """Most patches in one call: as spec and server allow, and no more than are worth their memory."""
        return self._max_batch_size

    @property
    def max_in_flight(self) -> int:
        """How many calls at once keep the servers busy."""
        return self._max_in_flight

    @property
    def _transport(self) -> str:
        kinds = {"shared memory" if server.shares_memory else "grpc" for server in self._servers}
        return " and ".join(sorted(kinds, reverse=True))

    @property
    def bytes_sent(self) -> int:
        """Bytes of the tensors sent so far, by either transport, repeated requests counted again."""
        with self._lock:
            return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of the tensors received so far, by either transport."""
        with self._lock:
            return self._bytes_received

    @property
    def retries(self) -> int:
        """How many requests had to be repeated so far."""
        with self._lock:
            return self._retries

    def predict(self, patches: Patches) -> Logits:
        """See :meth:`ctseg.predict.predictor.PatchPredictor.predict`.

        A request that found no server, or whose server went away, is sent again until nothing has
        been answered for ``timeout_s``.

        Raises:
            ValueError: The patches have another shape, dtype or layout than the spec says, or there are
                too many; or the predictor was made in another process.
            ServerError: One of its children.
            SpecError: The model was replaced by another one under way.
        """
        self._check(patches)
        started = time.monotonic()
        once: set[str] = set()

        def deadline() -> float:
            return max(started, *(server.last_answer for server in self._servers)) + self._options.timeout_s

        def is_worth_repeating(error: BaseException) -> bool:
            if not isinstance(error, _CallError) or self._closing.is_set():
                return False
            if error.status in (_UNAVAILABLE, _CANCELLED, _NO_ANSWER):
                return True
            if error.status in (_DEADLINE, _INTERNAL, _NOT_FOUND) and error.status not in once:
                once.add(error.status)
                return True
            return False

        def count(_: tenacity.RetryCallState) -> None:
            with self._lock:
                self._retries += 1

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_worth_repeating),
            wait=self._backoff_s,
            stop=lambda _: time.monotonic() >= deadline(),
            sleep=self._sleep,
            before_sleep=count,
            reraise=True,
        )
        try:
            return attempts(self._try, patches)
        except _CallError as error:
            raise self._error_of(error, patches.shape, time.monotonic() - started) from error.__cause__

    def close(self) -> None:
        """Stop waiting, release the shared memory, and close the connections; may be called twice.

        Requests on their way are left a little time, because closing cancels them, which old servers
        do not survive.
        """
        self._closing.set()
        for server in self._servers:
            server.wait_until_idle(_DRAIN_TIMEOUT_S)
        if self._pool is not None:
            for segment in self._pool.close():
                for server in self._servers:
                    server.abandon(segment)
        for server in self._servers:
            server.close()

    def __enter__(self) -> "TritonPredictor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, patches: Patches) -> None:
        if os.getpid() != self._process:
            raise ValueError("the predictor was made in another process: connect in the process that predicts")
        expected = (len(self._spec.channels), *self._spec.patch_size)
        if patches.dtype != np.float32 or patches.shape[1:] != expected or not patches.flags.c_contiguous:
            raise ValueError(
                f"{self._spec.name}: expected C-contiguous float32 patches of shape (batch, *{expected}), "
                f"found {patches.dtype} {patches.shape}"
            )
        if not 1 <= len(patches) <= self._max_batch_size:
            raise ValueError(f"{self._spec.name}: expected 1 to {self._max_batch_size} patches, found {len(patches)}")

    def _start_shared_memory(self) -> None:
        required = self._options.shared_memory == "on"
        if not shared_memory.is_available():
            if required:
                raise SetupError("this system has no shared memory that Triton could map: use shared_memory='off'")
            return
        shared_memory.sweep(SEGMENT_PREFIX)
        candidates = [server for server in self._servers if required or server.is_local]
        if not candidates:
            return
        self._pool = shared_memory.SegmentPool(SEGMENT_PREFIX, max_bytes=self._options.max_shared_memory_bytes)
        trial = self._pool.take(4096)
        reasons = []
        for server in candidates:
            try:
                if trial is None:
                    raise _CallError(_NO_ANSWER, "no space in /dev/shm")
                server.register(trial, self._options.connect_timeout_s)
                server.shares_memory = True
            except _CallError as error:
                reasons.append(f"{server.url}: {error}")
        if trial is not None:
            self._pool.give_back(trial)
        if required and reasons:
            self.close()
            raise SetupError(
                f"{self._spec.name}: shared memory is not to be had: {'; '.join(reasons)}. "
                "Start the server with client shared memory allowed, on this host, or use shared_memory='off'"
            )

    # --- one request

    def _try(self, patches: Patches) -> Logits:
        server = self._pick()
        started = time.monotonic()

        def deadline() -> float:
            return max(started, server.last_answer) + self._options.timeout_s

        try:
            return self._call(server, patches, deadline)
        except _CallError as error:
            error.url = server.url
            if error.status in (_UNAVAILABLE, _CANCELLED, _NO_ANSWER, _NOT_FOUND):
                server.suspect(error)
            raise
        finally:
            with self._lock:
                server.outstanding -= 1

    def _pick(self) -> "_Server":
        """Choose the least-loaded server; its ``outstanding`` is one higher after it.

        A server that failed is checked before it is used again, by one thread while others work.
        """
        while True:
            if self._closing.is_set():
                raise _CallError(_CANCELLED, "the predictor was closed")
            with self._lock:
                usable = [server for server in self._servers if server.refusal is None]
                if not usable:
                    raise cast(CtsegError, self._servers[0].refusal)
                now = time.monotonic()
                due = [s for s in usable if not s.is_trusted and s.try_again_at <= now and not s.is_being_checked]
                trusted = [server for server in usable if server.is_trusted]
                if not due and not trusted:
                    problem = max(usable, key=lambda server: server.try_again_at).last_problem
                    is_open = any(server.is_being_checked for server in usable)
                    raise _CallError(_UNAVAILABLE if is_open else problem.status, problem.text, url=problem.url)
                server = due[0] if due else min(trusted, key=lambda s: (s.outstanding, random.random()))
                server.outstanding += 1
                server.is_being_checked = bool(due)
            if server.is_trusted:
                return server
            try:
                server.check()
                log.info("%s answers again", server.url)
                return server
            except (_CallError, SpecError, ModelNotFoundError) as error:
                log.info("%s is left aside: %s", server.url, error)
                with self._lock:
                    server.outstanding -= 1
            finally:
                with self._lock:
                    server.is_being_checked = False

    def _sleep(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _backoff_s(self, state: tenacity.RetryCallState) -> float:
        """Try every other server at once; then wait longer and longer, at random."""
        rounds = state.attempt_number // len(self._servers)
        if rounds == 0:
            return 0.0
        return random.uniform(0.0, min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**rounds))

    def _call(self, server: "_Server", patches: Patches, deadline: Callable[[], float]) -> Logits:
        if self._pool is not None and server.shares_memory:
            try:
                return self._call_by_shared_memory(server, patches, deadline)
            except _SharedMemoryError as error:
                server.doubt_shared_memory()
                log.info("%s: shared memory failed, the request goes by gRPC: %s", server.url, error)
        return self._call_by_message(server, patches, deadline)

    def _call_by_message(self, server: "_Server", patches: Patches, deadline: Callable[[], float]) -> Logits:
        spec = self._spec
        request = InferInput(spec.input.name, patches.shape, spec.input.dtype)
        request.set_data_from_numpy(_as_sent(patches, spec.input.dtype))
        self._count(sent=len(patches) * spec.patch_bytes)
        result = self._answer(server, [request], [InferRequestedOutput(spec.output.name)], deadline)
        return _as_logits(self._content_of(result, len(patches)), spec.output.dtype)

    def _call_by_shared_memory(self, server: "_Server", patches: Patches, deadline: Callable[[], float]) -> Logits:
        assert self._pool is not None  # noqa: S101 - narrows the type; the caller has asked
        spec = self._spec
        source = self._pool.take(len(patches) * spec.patch_bytes)
        if source is None:
            return self._call_by_message(server, patches, deadline)
        # without a target, because the caller holds many answers, this one comes by message: nobody waits
        target = self._pool.take(len(patches) * spec.logits_bytes)
        try:
            answer = self._exchange(server, patches, source, target, deadline)
        except _CallError as error:
            for segment in (source, target):
                if segment is not None:  # the server may still read or write it
                    self._pool.retire(segment)
                    server.abandon(segment)
            if error.status in (*_SHARED_MEMORY_REFUSALS, _RESTRICTED):
                raise _SharedMemoryError(str(error)) from error
            raise
        self._pool.give_back(source)
        if target is None:
            return _as_logits(answer, self._spec.output.dtype)
        if self._spec.output.dtype != "FP32":
            logits = _as_logits(answer, self._spec.output.dtype)
            self._pool.give_back(target)
            return logits
        # views of the answer keep this array alive as their base, so the segment is free when it is gone
        weakref.finalize(answer, self._pool.give_back, target).atexit = False
        return cast(Logits, answer)

    def _exchange(
        self,
        server: "_Server",
        patches: Patches,
        source: shared_memory.Segment,
        target: shared_memory.Segment | None,
        deadline: Callable[[], float],
    ) -> npt.NDArray[Any]:
        spec = self._spec
        for segment in (source, target):
            if segment is not None:
                server.register(segment, self._options.connect_timeout_s)
        sent = _as_sent(patches, spec.input.dtype)
        source.array(sent.shape, sent.dtype)[...] = sent
        request = InferInput(spec.input.name, patches.shape, spec.input.dtype)
        request.set_shared_memory(source.name, sent.nbytes)
        wanted = InferRequestedOutput(spec.output.name)
        self._count(sent=sent.nbytes)
        if target is None:
            return self._content_of(self._answer(server, [request], [wanted], deadline), len(patches))
        dtype, unwritten = _WIRE[spec.output.dtype]
        answer: npt.NDArray[Any] = target.array((len(patches), spec.num_heads, *spec.patch_size), dtype)
        bits = answer.view(unwritten.dtype).reshape(-1)
        bits[-1] = unwritten
        wanted.set_shared_memory(target.name, answer.nbytes)
        response = self._answer(server, [request], [wanted], deadline).get_response()
        self._check_answer(response, len(patches), 0 if bits[-1] == unwritten else answer.nbytes)
        self._count(received=answer.nbytes)
        return answer

    def _content_of(self, result: Any, batch: int) -> npt.NDArray[Any]:
        response = result.get_response()
        content = response.raw_output_contents[0] if len(response.raw_output_contents) else b""
        self._check_answer(response, batch, len(content))
        self._count(received=len(content))
        spec = self._spec
        return np.frombuffer(content, _WIRE[spec.output.dtype][0]).reshape(batch, spec.num_heads, *spec.patch_size)

    def _check_answer(self, response: Any, batch: int, size: int) -> None:
        spec = self._spec
        expected = (batch, spec.num_heads, *spec.patch_size)
        found = [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in response.outputs]
        if found != [(spec.output.name, spec.output.dtype, expected)]:
            raise _CallError(_WRONG, f"expected {spec.output.name} {spec.output.dtype} {expected}, found {found}")
        if size != batch * spec.logits_bytes:
            raise _CallError(
                _WRONG,
                f"the answer of shape {expected} has {size} bytes; Triton's python backend of 2024 answers so under "
                "numpy 2: build the entry again with `ctseg build`",
            )

    def _answer(self, server: "_Server", inputs: list[Any], outputs: list[Any], deadline: Callable[[], float]) -> Any:
        """Send one request and wait; never cancels, because old servers crash upon that."""
        done = threading.Event()
        box: list[Any] = [None, None]

        def receive(result: Any, error: InferenceServerException | None) -> None:
            box[:] = [result, error]
            done.set()

        server.send(inputs, outputs, receive)
        while not done.wait(min(1.0, max(0.0, deadline() - time.monotonic()))):
            if self._closing.is_set():
                raise _CallError(_CANCELLED, "the predictor was closed")
            if time.monotonic() >= deadline():
                raise _CallError(_NO_ANSWER, f"nothing was answered for {self._options.timeout_s:g} s")
        result, error = box
        if error is not None:
            raise _call_error_of(error) from error
        server.last_answer = time.monotonic()
        return result

    def _count(self, *, sent: int = 0, received: int = 0) -> None:
        with self._lock:
            self._bytes_sent += sent
            self._bytes_received += received

    def _error_of(self, error: "_CallError", shape: tuple[int, ...], waited_s: float) -> ServerError:
        at = error.url or ", ".join(self.urls)
        what = f"{self._spec.name} version {self.identity.version} at {at} gave no logits for {shape} patches"
        return _error_of(error, f"{what} within {waited_s:.1f} s")


class _CallError(Exception):
    """A request failed; ``status`` is gRPC's code, or one of this module's own words."""

    def __init__(self, status: str, message: str, *, url: str = "") -> None:
        super().__init__(f"{status.removeprefix('StatusCode.')}: {message}")
        self.status = status
        self.text = message
        self.url = url


class _SharedMemoryError(Exception):
    """The server did not take a request by shared memory."""


def _call_error_of(error: InferenceServerException | ValueError) -> _CallError:
    if isinstance(error, ValueError):  # gRPC's own word for a closed channel
        return _CallError(_CANCELLED, str(error))
    message = str(error.message())
    status = str(error.status() or "refused by the client library")
    # A denial by `--grpc-restricted-protocol` has the code of an overloaded server, and nothing else
    # in Triton's answer tells them apart: this is the one place where its words are read.
    if status == _UNAVAILABLE and message.startswith("This protocol is restricted"):
        status = _RESTRICTED
    return _CallError(status, message)


def _error_of(error: _CallError, what: str) -> ServerError:
    kind = _ERROR_OF_STATUS.get(error.status, RequestRejectedError)
    advice = ""
    if error.status == _RESTRICTED:
        advice = ": give the header that the server's administrator named"
    return kind(f"{what}: {error}{advice}")


def _address_of(url: str) -> str:
    """Check a URL and return it as gRPC wants it."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("grpc", "grpcs"):
        url = rest
    elif separator and scheme in ("http", "https"):
        raise SetupError(
            f"--url {url}: ctseg speaks gRPC: give host:port of Triton's gRPC endpoint, such as {rest}:8001"
        )
    if url.startswith(("dns:", "ipv4:", "ipv6:", "unix:")):
        return url
    host, colon, port = url.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SetupError(f"--url {url}: expected host:port of Triton's gRPC endpoint, such as gpu1:8001")
    return url


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]").lower()
    return host in ("localhost", "::1", socket.gethostname().lower()) or host.startswith("127.")


def _credentials_of(options: ClientOptions) -> Any:
    if not options.uses_tls:
        return None
    import grpc

    if (options.client_certificate is None) != (options.client_key is None):
        raise SetupError("mutual TLS needs both a client certificate and a client key; only one was given")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(options.root_certificates, "root certificates"),
        private_key=_pem(options.client_key, "client key"),
        certificate_chain=_pem(options.client_certificate, "client certificate"),
    )


def _pem(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetupError(f"TLS {what} {path} cannot be read: {error.strerror or error}") from error
    if b"-----BEGIN " not in content:
        raise SetupError(f"TLS {what} {path} is not a PEM file (no -----BEGIN line)")
    return content


def _as_sent(patches: Patches, dtype: DType) -> npt.NDArray[Any]:
    if dtype == "FP32":
        return patches
    if dtype == "FP16":
        return patches.astype(np.float16)
    import ml_dtypes

    return patches.astype(ml_dtypes.bfloat16)


def _as_logits(answer: npt.NDArray[Any], dtype: DType) -> Logits:
    if dtype == "BF16":
        return cast(Logits, (answer.astype(np.uint32) << np.uint32(16)).view(np.float32))
    return cast(Logits, answer.astype(np.float32, copy=False))


@dataclass(frozen=True)
class _Contract:
    """What a server's model version promises."""

    version: int
    spec: ModelSpec
    max_batch_size: int
    instances: int


class _Server:
    """One Triton server: its connections, the version it runs, and how it has behaved."""

    def __init__(
        self, url: str, model: str, options: ClientOptions, credentials: Any, *, channels: int = _CHANNELS_PER_SERVER
    ) -> None:
        self.url = url
        self.model = model
        self.is_local = _is_local(url)
        self.shares_memory = False
        self.outstanding = 0
        self.last_answer = -math.inf
        self.is_trusted = True
        self.refusal: SpecError | ModelNotFoundError | None = None
        self.is_being_checked = False
        self.try_again_at = 0.0
        self.last_problem = _CallError(_UNAVAILABLE, "not connected", url=url)
        self._options = options
        self._given_spec: ModelSpec | None = None
        self._contract: _Contract = cast(_Contract, None)  # until a version is chosen
        self._failures = 0
        self._gone_since: float | None = None
        self._shared_memory_failures = 0
        self._registered: set[str] = set()
        self._abandoned: list[str] = []
        self._pending = 0
        self._idle = threading.Condition()
        self._lock = threading.Lock()
        arguments = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.use_local_subchannel_pool", 1),  # else all channels share one connection
            ("grpc.enable_retries", 0),  # requests are too large for gRPC's own retries
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._clients = [InferenceServerClient(url, creds=credentials, channel_args=arguments) for _ in range(channels)]
        self._next_client = 0
        self._headers = dict(options.headers) or None

    # --- the contract

    @property
    def version(self) -> int:
        """The version in use."""
        return self._contract.version

    @property
    def spec(self) -> ModelSpec:
        """Its spec."""
        return self._contract.spec

    @property
    def max_batch_size(self) -> int:
        """Most patches in one request, by the spec and the server."""
        return self._contract.max_batch_size

    @property
    def instances(self) -> int:
        """Instances of the model."""
        return self._contract.instances

    def choose_version(self, version: int | None, spec: ModelSpec | None) -> None:
        """Find the version to use and its spec, and check them against the server."""
        self._given_spec = spec
        timeout_s = self._options.connect_timeout_s
        deadline = time.monotonic() + timeout_s
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, _CallError) and e.status == _UNAVAILABLE),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_BACKOFF_S, max=1.0),
            stop=lambda _: time.monotonic() >= deadline,
            reraise=True,
        )

        def choose() -> _Contract:
            return self._fetch(max(self._ready_versions(timeout_s)) if version is None else version, timeout_s)

        try:
            self._contract = attempts(choose)
        except _CallError as error:
            raise _error_of(error, f"{self.model} at {self.url}: cannot be used") from error.__cause__

    def _fetch(self, version: int, timeout_s: float) -> _Contract:
        """Return what a version promises, checked against the server's own tensors."""
        metadata = self.ask("get_model_metadata", self.model, str(version), client_timeout=timeout_s)
        source = f"{self.model} version {version} at {self.url}"
        spec, batch_limit, instances = self._given_spec, None, 1
        if spec is None:
            config = self.ask("get_model_config", self.model, str(version), client_timeout=timeout_s).config
            parameter = spec_parameter(version)
            if parameter not in config.parameters:
                found = spec_parameters(config)
                raise SpecError(
                    f"{source}: its configuration has no parameter {parameter} (specs found: {found or 'none'}): write "
                    "the entry with `ctseg build`, or give the spec of this model with --spec FILE"
                )
            spec = ModelSpec.from_json(config.parameters[parameter].string_value, source=source)
            batch_limit = int(config.max_batch_size)
            instances = max(1, sum(group.count or 1 for group in config.instance_group))
        spec.check_runnable()
        self._check_tensors(spec, metadata, batch_limit, source)
        most = spec.max_batch_size if batch_limit is None else min(spec.max_batch_size, batch_limit)
        return _Contract(version, spec, most, instances)

    def _ready_versions(self, timeout_s: float) -> list[int]:
        metadata = self.ask("get_model_metadata", self.model, client_timeout=timeout_s)
        versions = [int(text) for text in metadata.versions if text.isdigit()]
        if not versions:
            raise _CallError(_NOT_FOUND, "no version is ready")
        return versions

    def _check_tensors(self, spec: ModelSpec, metadata: Any, max_batch_size: int | None, source: str) -> None:
        if spec.name != self.model:
            raise SpecError(f"{source}: the spec is of a model named {spec.name!r}: it belongs to another model")
        if max_batch_size is not None and max_batch_size < 1:
            raise SpecError(
                f"{source}: the spec expects batches (up to {spec.max_batch_size}), the server has max_batch_size "
                f"{max_batch_size}: build the entry again"
            )
        for what, tensor, channels, found in (
            ("input", spec.input, len(spec.channels), metadata.inputs),
            ("output", spec.output, spec.num_heads, metadata.outputs),
        ):
            expected = [(tensor.name, tensor.dtype, (-1, channels, *spec.patch_size))]
            has = [(item.name, item.datatype, tuple(item.shape)) for item in found]
            if has != expected:
                raise SpecError(
                    f"{source}: the spec lists {channels} {'channels' if what == 'input' else 'labels'} and expects "
                    f"the {what} {expected}, the server has {has}: build the entry again, or give the right --spec FILE"
                )

    # --- trust

    def suspect(self, problem: "_CallError") -> None:
        """Note that the server failed: it is checked before it gets another request.

        One that did not answer in time is not even asked until it has answered: a hung model's server is ready.
        """
        with self._lock:
            self.is_trusted = False
            if problem.status == _NO_ANSWER and self._pending:
                self.try_again_at = math.inf
            self.last_problem = problem
            self._registered.clear()

    def check(self) -> None:
        """Check a server that failed: is it ready, and does it still serve the same spec?

        Raises:
            _CallError: It is not ready; it is asked again after a while.
            SpecError, ModelNotFoundError: It serves something else; it is not asked again.
        """
        try:
            self._check_still_same(_RECHECK_TIMEOUT_S)
        except _CallError as error:
            error.url = self.url
            self._failures += 1
            delay_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**self._failures)
            self.try_again_at = time.monotonic() + random.uniform(0.5, 1.0) * delay_s
            self.last_problem = error
            raise
        except (SpecError, ModelNotFoundError) as error:
            self.refusal = error
            raise
        self._failures = 0
        self._unregister_abandoned()
        self.is_trusted = True

    def _check_still_same(self, timeout_s: float) -> None:
        version, digest = self.version, self.spec.digest
        ready = self._ready_versions(timeout_s)
        if version in ready:
            self._gone_since = None
            self._contract = self._expect_digest(self._fetch(version, timeout_s), digest)
            return
        others = []
        for candidate in sorted(ready, reverse=True) if self._given_spec is None else ():
            contract = self._fetch(candidate, timeout_s)
            if contract.spec.digest == digest:
                log.warning("%s: version %s is gone, %s has the same spec and goes on", self.url, version, candidate)
                self._gone_since = None
                self._contract = contract
                return
            others.append(f"version {candidate} has {contract.spec.digest[:12]}")
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        if now - self._gone_since < _GRACE_OF_GONE_VERSION_S:
            raise _CallError(_UNAVAILABLE, f"version {version} is not ready, ready are {ready}")
        raise ModelNotFoundError(
            f"{self.model} version {version} (spec {digest[:12]}) is gone from {self.url}, ready are {ready}"
            f"{' (' + ', '.join(others) + ')' if others else ''}: the rest would be segmented by another "
            "model; start the folder again"
        )

    def _expect_digest(self, contract: _Contract, digest: str) -> _Contract:
        if contract.spec.digest != digest:
            raise SpecError(
                f"{self.model} version {contract.version} at {self.url}: its spec was {digest[:12]} and is now "
                f"{contract.spec.digest[:12]}: the rest would be segmented by another model; start the folder again"
            )
        return contract

    # --- requests

    def send(self, inputs: list[Any], outputs: list[Any], receive: Callable[[Any, Any], None]) -> None:
        """Send a request; ``receive`` is called on one of gRPC's threads."""
        with self._lock:
            self._next_client = (self._next_client + 1) % len(self._clients)
            client = self._clients[self._next_client]

        def finish(result: Any, error: Any) -> None:
            with self._idle:
                self._pending -= 1
                self._idle.notify_all()
            receive(result, error)
            with self._lock:
                if self.try_again_at == math.inf:
                    self.try_again_at = 0.0

        with self._idle:
            self._pending += 1
        try:
            client.async_infer(
                self.model,
                inputs,
                callback=finish,
                model_version=str(self.version),
                outputs=outputs,
                headers=self._headers,
            )
        except (InferenceServerException, ValueError) as error:
            with self._idle:
                self._pending -= 1
            raise _call_error_of(error) from error

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no request is on its way; return whether that came true."""
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, timeout_s)

    def ask(self, method: str, *arguments: Any, client_timeout: float) -> Any:
        """Call one of the client library's short methods."""
        try:
            return getattr(self._clients[0], method)(*arguments, headers=self._headers, client_timeout=client_timeout)
        except (InferenceServerException, ValueError) as error:
            raise _call_error_of(error) from error

    # --- shared memory

    def register(self, segment: shared_memory.Segment, timeout_s: float) -> None:
        """Make a segment known to the server, once."""
        with self._lock:
            if segment.name in self._registered:
                return
        try:
            self.ask("register_system_shared_memory", segment.name, segment.key, segment.size, client_timeout=timeout_s)
        except _CallError as error:
            if error.status != _ALREADY_EXISTS:  # the server lost our trust for a while, and kept it
                raise
        with self._lock:
            self._registered.add(segment.name)

    def abandon(self, segment: shared_memory.Segment) -> None:
        """Let the server forget a segment, as soon as it cannot be using it."""
        with self._lock:
            self._registered.discard(segment.name)
            self._abandoned.append(segment.name)

    def _unregister_abandoned(self) -> None:
        if not self.wait_until_idle(0.0):
            return
        with self._lock:
            names, self._abandoned = self._abandoned, []
        give_up_at = time.monotonic() + _UNREGISTER_TIMEOUT_S
        for name in names:
            self._unregister(name, give_up_at)

    def _unregister(self, name: str, give_up_at: float) -> None:
        while True:
            try:
                self.ask("unregister_system_shared_memory", name, client_timeout=_RECHECK_TIMEOUT_S)
            except _CallError as error:
                # Triton lets go of a region a moment after it answered, and refuses until then
                if error.status == _INTERNAL and time.monotonic() < give_up_at:
                    time.sleep(0.02)
                    continue
                log.debug("%s: segment %s was not unregistered: %s", self.url, name, error)
            return

    def doubt_shared_memory(self) -> None:
        """Note a failure; after a few of them, requests go by gRPC."""
        with self._lock:
            self._registered.clear()
            self._shared_memory_failures += 1
            if self._shared_memory_failures >= _SHARED_MEMORY_CHANCES:
                self.shares_memory = False

    def close(self) -> None:
        """Close the connections."""
        if self.is_trusted:
            self._unregister_abandoned()
        for client in self._clients:
            client.close()
