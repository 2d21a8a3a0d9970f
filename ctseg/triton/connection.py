"""One Triton server: the version it runs, whether it is trusted, what is on its way, and the memory it shares."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from ctseg.errors import ModelNotFoundError, SpecError
from ctseg.model_spec import ModelSpec
from ctseg.triton.addresses import Address
from ctseg.triton.client import TritonClient
from ctseg.triton.diagnosis import look_at, proxy_hint
from ctseg.triton.errors import (
    ALREADY_EXISTS,
    AWAY,
    DEADLINE,
    INTERNAL,
    NO_ANSWER,
    UNAVAILABLE,
    CallError,
    server_error_of,
)
from ctseg.triton.options import ClientOptions
from ctseg.triton.served_version import ServedVersion, WantedModel, choose_version, ready_versions, served_version
from ctseg.triton.shared_memory import Segment

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_RECHECK_TIMEOUT_S = 5.0
_UNREGISTER_TIMEOUT_S = 2.0
_GRACE_OF_GONE_VERSION_S = 5.0
_SHARED_MEMORY_CHANCES = 3


def connect_server(
    address: Address, wanted: WantedModel, options: ClientOptions, on_wait: Callable[[], None] = lambda: None
) -> "ServerConnection":
    """Connect to one server and find the version to use; ``on_wait`` is called when it does not answer at once.

    Raises:
        SetupError: A certificate file cannot be used, or contradicts the address; or what listens there is not what
            the address says.
        SpecError: The server has no spec for the model, or one that cannot be used.
        ServerError: See its children; ``ServerUnavailableError`` after ``connect_timeout_s``.
    """

    def look() -> None:
        look_at(address, options)
        on_wait()

    client = TritonClient(address, options)
    try:
        served = choose_version(client, wanted, options.connect_timeout_s, look)
    except CallError as error:
        client.close()
        error.text += proxy_hint(address) if error.status in (*AWAY, DEADLINE) else ""
        raise server_error_of(error, f"{wanted.name} at {address}: cannot be used") from error.__cause__
    except BaseException:
        client.close()
        raise
    return ServerConnection(client, wanted, served)


class ServerConnection:
    """One Triton server, as the predictor sees it.

    Attributes:
        url: Its address.
        served: The version in use, and what it promises.
        is_local: Whether it is plainly on this host.
        shares_memory: Whether requests may go by shared memory.
        outstanding: Requests that were given to it and are not done; kept by the predictor.
        last_answer: When it computed something last, by the monotonic clock; kept by the predictor.
        is_trusted: False after a failure, until it has been checked; set again by the rota.
        refusal: Why it is not asked again at all; None while it may be.
        has_to_prove: Whether it has to answer the probe before it is trusted again; set by the rota.
        is_left_aside: Whether that is because it failed what can be computed; set by the rota.
        probing: Held by who sends it the probe.
        try_again_at: When it may be checked, by the monotonic clock.
        last_problem: Why it is not trusted.
    """

    def __init__(self, client: TritonClient, wanted: WantedModel, served: ServedVersion) -> None:
        self.url = client.address.target
        self.is_local = client.address.is_local
        self.shares_memory = False
        self.outstanding = 0
        self.last_answer = -math.inf
        self.is_trusted = True
        self.refusal: SpecError | ModelNotFoundError | None = None
        self.has_to_prove = False
        self.is_left_aside = False
        self.probing = threading.Lock()
        self.try_again_at = 0.0
        self.last_problem = CallError(UNAVAILABLE, "not connected", url=self.url)
        self._client = client
        self._wanted = wanted
        self.served = served
        self._failures = 0
        self._gone_since: float | None = None
        self._shared_memory_failures = 0
        self._registered: set[str] = set()
        self._abandoned: list[str] = []
        self._pending = 0
        self._idle = threading.Condition()
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """The version in use."""
        return self.served.version

    @property
    def spec(self) -> ModelSpec:
        """Its spec."""
        return self.served.spec

    @property
    def max_batch_size(self) -> int:
        """Most patches in one request, by the spec and the server."""
        return self.served.max_batch_size

    @property
    def instances(self) -> int:
        """Instances of the model."""
        return self.served.instances

    # --- trust

    def suspect(self, problem: CallError) -> None:
        """Note that the server failed: it is checked before it gets another request.

        One that did not answer in time is not even asked until it has answered: a hung model's server is ready.
        """
        with self._lock:
            if self.is_trusted:
                self._failures += 1
            self.is_trusted = False
            self._registered.clear()
        self._postpone(problem)

    def still_fails(self, problem: CallError) -> None:
        """Note that a check has failed: the next one comes later."""
        self._failures += 1
        self._postpone(problem)

    def _postpone(self, problem: CallError) -> None:
        delay_s = random.uniform(0.5, 1.0) * min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**self._failures)
        with self._lock:
            is_hung = problem.status == NO_ANSWER and self._pending
            self.try_again_at = math.inf if is_hung else time.monotonic() + delay_s
            self.last_problem = problem

    def is_alive(self) -> bool:
        """Whether the server says anything at all, whatever its models do."""
        try:
            self._client.ask("is_server_live", timeout_s=_RECHECK_TIMEOUT_S)
        except CallError as error:
            return error.status not in (*AWAY, DEADLINE)
        return True

    def check(self) -> None:
        """Check a server that failed: is it ready, and does it still serve the same spec?

        Raises:
            CallError: It is not ready.
            SpecError, ModelNotFoundError: It serves something else; it is not asked again.
        """
        try:
            self._check_still_same(_RECHECK_TIMEOUT_S)
        except (SpecError, ModelNotFoundError) as error:
            self.refusal = error
            raise

    def forget_failure(self) -> None:
        """Note that what failed is over; that the server computes is told by :meth:`answered`."""
        self.has_to_prove = self.is_left_aside = False
        self._unregister_abandoned()

    def answered(self) -> None:
        """Note that the server computed something."""
        self._failures = 0
        self.last_answer = time.monotonic()

    def _check_still_same(self, timeout_s: float) -> None:
        model, version, digest = self._wanted.name, self.version, self.spec.digest
        ready = ready_versions(self._client, model, timeout_s)
        if version in ready:
            self._gone_since = None
            served = served_version(self._client, self._wanted, version, timeout_s)
            if served.spec.digest != digest:
                raise SpecError(
                    f"{model} version {version} at {self.url}: its spec was {digest[:12]} and is now "
                    f"{served.spec.digest[:12]}: the rest would be segmented by another model; start the folder again"
                )
            self.served = served
            return
        others = []
        for candidate in sorted(ready, reverse=True) if self._wanted.spec is None else ():
            served = served_version(self._client, self._wanted, candidate, timeout_s)
            if served.spec.digest == digest:
                log.warning("%s: version %s is gone, %s has the same spec and goes on", self.url, version, candidate)
                self._gone_since = None
                self.served = served
                return
            others.append(f"version {candidate} has {served.spec.digest[:12]}")
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        if now - self._gone_since < _GRACE_OF_GONE_VERSION_S:
            raise CallError(UNAVAILABLE, f"version {version} is not ready, ready are {ready}")
        raise ModelNotFoundError(
            f"{model} version {version} (spec {digest[:12]}) is gone from {self.url}, ready are {ready}"
            f"{' (' + ', '.join(others) + ')' if others else ''}: the rest would be segmented by another "
            "model; start the folder again"
        )

    # --- requests

    def send(
        self, inputs: list[Any], outputs: list[Any], receive: Callable[[Any, Any], None], request_id: str = ""
    ) -> None:
        """Send a request; ``receive`` is called on one of gRPC's threads.

        Raises:
            CallError: It could not be sent.
        """

        def finish(result: Any, error: Any) -> None:
            self._count_pending(-1)
            receive(result, error)
            with self._lock:
                if self.try_again_at == math.inf:
                    self.try_again_at = 0.0

        self._count_pending(1)
        try:
            self._client.infer(self._wanted.name, self.version, inputs, outputs, finish, request_id)
        except CallError:
            self._count_pending(-1)
            raise

    def _count_pending(self, change: int) -> None:
        with self._idle:
            self._pending += change
            self._idle.notify_all()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until no request is on its way; return whether that came true."""
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, timeout_s)

    # --- shared memory

    def register(self, segment: Segment, timeout_s: float) -> None:
        """Make a segment known to the server, once.

        Raises:
            CallError: The server does not take it.
        """
        with self._lock:
            if segment.name in self._registered:
                return
        try:
            self._client.ask(
                "register_system_shared_memory", segment.name, segment.key, segment.size, timeout_s=timeout_s
            )
        except CallError as error:
            if error.status != ALREADY_EXISTS:  # the server lost our trust for a while, and kept it
                raise
        with self._lock:
            self._registered.add(segment.name)

    def abandon(self, segment: Segment) -> None:
        """Let the server forget a segment, as soon as it cannot be using it."""
        with self._lock:
            self._registered.discard(segment.name)
            self._abandoned.append(segment.name)

    def doubt_shared_memory(self) -> None:
        """Note a failure; after a few of them, requests go by gRPC."""
        with self._lock:
            self._registered.clear()
            self._shared_memory_failures += 1
            if self._shared_memory_failures >= _SHARED_MEMORY_CHANCES:
                self.shares_memory = False

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
                self._client.ask("unregister_system_shared_memory", name, timeout_s=_RECHECK_TIMEOUT_S)
            except CallError as error:
                # Triton lets go of a region a moment after it answered, and refuses until then
                if error.status == INTERNAL and time.monotonic() < give_up_at:
                    time.sleep(0.02)
                    continue
                log.debug("%s: segment %s was not unregistered: %s", self.url, name, error)
            return

    def close(self) -> None:
        """Close the connections."""
        if self.is_trusted:
            self._unregister_abandoned()
        self._client.close()
