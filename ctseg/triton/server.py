"""One Triton server: the version of an entry that it runs, whether it is trusted, and what is on its way."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from ctseg.errors import ModelNotFoundError, SpecError
from ctseg.triton.addresses import Address
from ctseg.triton.client import TritonClient
from ctseg.triton.diagnosis import look_at, proxy_hint
from ctseg.triton.errors import AWAY, DEADLINE, NO_ANSWER, UNAVAILABLE, CallError, server_error_of
from ctseg.triton.options import ClientOptions
from ctseg.triton.served_version import Served, Wanted, choose_version, ready_versions

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_RECHECK_TIMEOUT_S = 5.0
_GRACE_OF_GONE_VERSION_S = 5.0

S = TypeVar("S", bound=Served)


def connect_to(
    address: Address, wanted: Wanted[S], options: ClientOptions, on_wait: Callable[[], None] = lambda: None
) -> tuple[TritonClient, S]:
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
        return client, choose_version(client, wanted, options.connect_timeout_s, look)
    except CallError as error:
        client.close()
        error.text += proxy_hint(address) if error.status in (*AWAY, DEADLINE) else ""
        raise server_error_of(error, f"{wanted.name} at {address}: cannot be used") from error.__cause__
    except BaseException:
        client.close()
        raise


class Server(Generic[S]):
    """One Triton server, as those see it who send it requests.

    Attributes:
        url: Its address.
        served: The version in use, and what it promises.
        is_local: Whether it is plainly on this host.
        outstanding: Requests that were given to it and are not done; kept by the rota.
        last_answer: When it computed something last, by the monotonic clock.
        is_trusted: False after a failure, until it has been checked; set again by the rota.
        refusal: Why it is not asked again at all; None while it may be.
        has_to_prove: Whether it has to answer the probe before it is trusted again; set by the rota.
        is_left_aside: Whether that is because it failed what can be computed; set by the rota.
        probing: Held by who sends it the probe.
        try_again_at: When it may be checked, by the monotonic clock.
        last_problem: Why it is not trusted.
    """

    def __init__(self, client: TritonClient, wanted: Wanted[S], served: S) -> None:
        self.url = client.address.target
        self.is_local = client.address.is_local
        self.outstanding = 0
        self.last_answer = -math.inf
        self.is_trusted = True
        self.refusal: SpecError | ModelNotFoundError | None = None
        self.has_to_prove = False
        self.is_left_aside = False
        self.probing = threading.Lock()
        self.try_again_at = 0.0
        self.last_problem = CallError(UNAVAILABLE, "not connected", url=self.url)
        self.served = served
        self._client = client
        self._wanted = wanted
        self._failures = 0
        self._gone_since: float | None = None
        self._pending = 0
        self._idle = threading.Condition()
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """The version in use."""
        return self.served.version

    # --- trust

    def suspect(self, problem: CallError) -> None:
        """Note that the server failed: it is checked before it gets another request.

        One that did not answer in time is not even asked until it has answered: a hung model's server is ready.
        """
        with self._lock:
            if self.is_trusted:
                self._failures += 1
            self.is_trusted = False
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
            self.last_problem = problem.with_traceback(None)  # whose frames know what was sent

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

    def answered(self) -> None:
        """Note that the server computed something."""
        self._failures = 0
        self.last_answer = time.monotonic()

    def shows_life(self) -> None:
        """Note that the server computes, though nothing whole has come back."""
        self.last_answer = time.monotonic()

    def _check_still_same(self, timeout_s: float) -> None:
        model, version, digest = self._wanted.entry, self.version, self.served.digest
        ready = ready_versions(self._client, model, timeout_s)
        if version in ready:
            self._gone_since = None
            served = self._wanted.served(self._client, version, timeout_s)
            if served.digest != digest:
                raise SpecError(
                    f"{model} version {version} at {self.url}: its spec was {digest[:12]} and is now "
                    f"{served.digest[:12]}: the rest would be segmented by another model; start the folder again"
                )
            self.served = served
            return
        others = []
        for candidate in sorted(ready, reverse=True) if not self._wanted.is_hidden else ():
            served = self._wanted.served(self._client, candidate, timeout_s)
            if served.digest == digest:
                log.warning("%s: version %s is gone, %s has the same spec and goes on", self.url, version, candidate)
                self._gone_since = None
                self.served = served
                return
            others.append(f"version {candidate} has {served.digest[:12]}")
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
        self,
        inputs: list[Any],
        outputs: list[Any],
        receive: Callable[[Any, Any], None],
        request_id: str = "",
        parameters: Mapping[str, str | bool] | None = None,
    ) -> Callable[[], None]:
        """Send a request; ``receive`` is called on one of gRPC's threads.

        Returns:
            Cancels the call; old servers crash upon that with a model of another kind than those for whole scans.

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
            return self._client.infer(self._wanted.entry, self.version, inputs, outputs, finish, request_id, parameters)
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

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
