"""PatchPredictor over Triton's gRPC protocol: which server gets a request, and when it is sent again.

A predictor must be used in the process that made it: gRPC does not survive ``fork``. Make it in the
worker, or start workers by ``spawn``.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import cast

import numpy as np
import tenacity

from ctseg.arrays import Logits, Patches
from ctseg.errors import CtsegError, ModelNotFoundError, ServerError, SpecError
from ctseg.model_spec import ModelSpec
from ctseg.predict.predictor import Identity
from ctseg.triton.addresses import address_of
from ctseg.triton.connection import ServerConnection, connect_server
from ctseg.triton.errors import (
    CANCELLED,
    DEADLINE,
    INTERNAL,
    NO_ANSWER,
    NOT_FOUND,
    UNAVAILABLE,
    CallError,
    SharedMemoryRefusedError,
    server_error_of,
)
from ctseg.triton.options import ClientOptions
from ctseg.triton.served_version import WantedModel
from ctseg.triton.transport import Call, MessageTransport, Traffic, batch_limit, share_memory_with

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_DRAIN_TIMEOUT_S = 10.0


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
        urls: ``host:port`` of each server's gRPC endpoint, ``grpcs://host:port`` where it is encrypted.
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
    wanted = WantedModel(model, version, spec)
    servers: list[ServerConnection] = []
    try:
        for address in dict.fromkeys(address_of(url) for url in urls):
            servers.append(connect_server(address, wanted, options))
        first = servers[0]
        for other in servers[1:]:
            if other.spec.digest != first.spec.digest:
                raise SpecError(
                    f"{model}: {first.url} serves version {first.version} with the spec {first.spec.digest[:12]}, "
                    f"{other.url} version {other.version} with {other.spec.digest[:12]}: results would depend on the "
                    "server; deploy the same version to both, or name one of them only",
                    settings=("urls",),
                )
        return TritonPredictor(servers, options)
    except BaseException:
        for server in servers:
            server.close()
        raise


class TritonPredictor:
    """Runs the network on Triton; made by :func:`connect`, used from any number of threads.

    Answers are float32: FP16 and BF16 answers are widened; FP32 ones are not copied and may lie in
    shared memory that is used again once the array and its views are gone.
    """

    def __init__(self, servers: Sequence[ServerConnection], options: ClientOptions) -> None:
        self._servers = list(servers)
        self._timeout_s = options.timeout_s
        self._spec = servers[0].spec
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._retries = 0
        self._max_in_flight = options.max_in_flight or sum(min(4, max(2, s.instances + 1)) for s in servers)
        self._max_batch_size = min(
            batch_limit(self._spec, options.max_message_bytes), *(server.max_batch_size for server in servers)
        )
        self._traffic = Traffic()
        self._messages = MessageTransport(self._spec, options.timeout_s, self._closing, self._traffic)
        self._shared_memory = share_memory_with(self._servers, self._messages, options)

    @property
    def spec(self) -> ModelSpec:
        """The contract of the network that runs."""
        return self._spec

    @property
    def identity(self) -> Identity:
        """The model, the version that the first server runs, and all servers."""
        kinds = {"shared memory" if server.shares_memory else "grpc" for server in self._servers}
        return Identity(
            model=self._spec.name,
            version=self._servers[0].version,
            digest=self._spec.digest,
            servers=self.urls,
            transport=" and ".join(sorted(kinds, reverse=True)),
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
    def bytes_sent(self) -> int:
        """Bytes of the tensors sent so far, by either transport, repeated requests counted again."""
        return self._traffic.sent

    @property
    def bytes_received(self) -> int:
        """Bytes of the tensors received so far, by either transport."""
        return self._traffic.received

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
            return max(started, *(server.last_answer for server in self._servers)) + self._timeout_s

        def is_worth_repeating(error: BaseException) -> bool:
            if not isinstance(error, CallError) or self._closing.is_set():
                return False
            if error.status in (UNAVAILABLE, CANCELLED, NO_ANSWER):
                return True
            if error.status in (DEADLINE, INTERNAL, NOT_FOUND) and error.status not in once:
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
        except CallError as error:
            raise self._error_of(error, patches.shape, time.monotonic() - started) from error.__cause__

    def close(self) -> None:
        """Stop waiting, release the shared memory, and close the connections; may be called twice.

        Requests on their way are left a little time, because closing cancels them, which old servers
        do not survive.
        """
        self._closing.set()
        for server in self._servers:
            server.wait_until_idle(_DRAIN_TIMEOUT_S)
        if self._shared_memory is not None:
            self._shared_memory.close(self._servers)
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

    # --- one request

    def _try(self, patches: Patches) -> Logits:
        server = self._pick()
        started = time.monotonic()

        def deadline() -> float:
            return max(started, server.last_answer) + self._timeout_s

        try:
            return self._exchange(Call(server, patches, deadline))
        except CallError as error:
            error.url = server.url
            if error.status in (UNAVAILABLE, CANCELLED, NO_ANSWER, NOT_FOUND):
                server.suspect(error)
            raise
        finally:
            with self._lock:
                server.outstanding -= 1

    def _pick(self) -> ServerConnection:
        """Choose the least-loaded server; its ``outstanding`` is one higher after it.

        A server that failed is checked before it is used again, by one thread while others work.
        """
        while True:
            if self._closing.is_set():
                raise CallError(CANCELLED, "the predictor was closed")
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
                    raise CallError(UNAVAILABLE if is_open else problem.status, problem.text, url=problem.url)
                server = due[0] if due else min(trusted, key=lambda s: (s.outstanding, random.random()))
                server.outstanding += 1
                server.is_being_checked = bool(due)
            if server.is_trusted:
                return server
            try:
                server.check()
                log.info("%s answers again", server.url)
                return server
            except (CallError, SpecError, ModelNotFoundError) as error:
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

    def _exchange(self, call: Call) -> Logits:
        if self._shared_memory is not None and call.server.shares_memory:
            try:
                return self._shared_memory.exchange(call)
            except SharedMemoryRefusedError as error:
                call.server.doubt_shared_memory()
                log.info("%s: shared memory failed, the request goes by gRPC: %s", call.server.url, error)
        return self._messages.exchange(call)

    def _error_of(self, error: CallError, shape: tuple[int, ...], waited_s: float) -> ServerError:
        at = error.url or ", ".join(self.urls)
        what = f"{self._spec.name} version {self.identity.version} at {at} gave no logits for {shape} patches"
        return server_error_of(error, f"{what} within {waited_s:.1f} s")
