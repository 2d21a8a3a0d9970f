"""PatchPredictor over Triton's gRPC protocol.

A predictor must be used in the process that made it: gRPC does not survive ``fork``. Make it in the
worker, or start workers by ``spawn``.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from types import TracebackType

import numpy as np

from ctseg.arrays import Logits, Patches
from ctseg.errors import ServerAwayError, ServerError, SpecError
from ctseg.model_spec import ModelSpec
from ctseg.numerics.finite import all_finite
from ctseg.predict.predictor import Identity, Runner
from ctseg.triton.addresses import address_of
from ctseg.triton.arrivals import Arrivals
from ctseg.triton.connection import ServerConnection, connect_server
from ctseg.triton.course import Course
from ctseg.triton.errors import WRONG, CallError, SharedMemoryRefusedError, server_error_of
from ctseg.triton.options import ClientOptions
from ctseg.triton.rota import NobodyAnswersError, Probes, Rota
from ctseg.triton.served_version import WantedModel
from ctseg.triton.transport import Call, MessageTransport, Traffic, batch_limit, share_memory_with

log = logging.getLogger(__name__)

_DRAIN_TIMEOUT_S = 10.0


def _zeros(server: ServerConnection) -> Patches:
    spec = server.spec
    return np.zeros((1, spec.num_input_channels, *spec.patch_size), np.float32)


_PROBES: Probes[ServerConnection, Patches] = Probes(
    after=lambda patches: patches[:1].copy(), of=lambda patches: patches.copy(), blank=_zeros
)


def connect(
    urls: Sequence[str],
    model: str,
    *,
    version: int | None = None,
    spec: ModelSpec | None = None,
    digest: str | None = None,
    options: ClientOptions | None = None,
) -> "TritonPredictor":
    """Connect to one or more Triton servers that serve the same model.

    The spec comes from the server's configuration, is checked against the server's own tensors, and
    must be the same (by digest) on all servers. One server that answers is enough to begin: the others get work when
    they come.

    Args:
        urls: ``host:port`` of each server's gRPC endpoint, ``grpcs://host:port`` where it is encrypted.
        model: Name of the model.
        version: Version to use; None takes the newest that is ready on each server.
        spec: The spec, where the servers hide their configuration.
        digest: Of the spec that is asked for, as a recipe names it; None takes any.
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
    wanted = WantedModel(model, version, spec, digest)
    arrivals = Arrivals(
        list(dict.fromkeys(map(address_of, urls))),
        lambda address, on_wait: connect_server(address, wanted, options, on_wait),
        options.connect_timeout_s,
    )
    servers: list[ServerConnection] = []
    try:
        servers = arrivals.first()
        for other in servers[1:]:
            _check_same(servers[0], other)
        return TritonPredictor(servers, options, arrivals)
    except BaseException:
        arrivals.close()
        for server in servers:
            server.close()
        raise


def _check_same(first: ServerConnection, other: ServerConnection) -> None:
    if other.spec.digest != first.spec.digest:
        raise SpecError(
            f"{first.spec.name}: {first.url} serves version {first.version} with the spec {first.spec.digest[:12]}, "
            f"{other.url} version {other.version} with {other.spec.digest[:12]}: results would depend on the "
            "server; deploy the same version to both, or name one of them only",
            settings=("urls",),
        )


class TritonPredictor:
    """Runs the network on Triton; made by :func:`connect`, used from any number of threads.

    Answers are float32: FP16 and BF16 answers are widened; FP32 ones are not copied and may lie in
    shared memory that is used again once the array and its views are gone.
    """

    def __init__(
        self,
        servers: Sequence[ServerConnection],
        options: ClientOptions,
        arrivals: Arrivals[ServerConnection] | None = None,
    ) -> None:
        self._timeout_s = options.timeout_s
        self._spec = servers[0].spec
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._retries = 0
        self._answers: Counter[ServerConnection] = Counter()
        self._max_in_flight = options.max_in_flight
        self._max_batch_size = min(
            batch_limit(self._spec, options.max_message_bytes), *(server.max_batch_size for server in servers)
        )
        self._traffic = Traffic()
        self._messages = MessageTransport(self._spec, options.timeout_s, self._closing, self._traffic)
        self._shared_memory = share_memory_with(servers, self._messages, options)
        self._rota = Rota(servers, self._ask, options.timeout_s, _PROBES)
        self._arrivals = arrivals
        if arrivals is not None:
            arrivals.take_in_later(self._take_in)

    @property
    def spec(self) -> ModelSpec:
        """The contract of the network that runs."""
        return self._spec

    @property
    def identity(self) -> Identity:
        """The model, the version that the first server runs, and all servers."""
        kinds = {"shared memory" if server.shares_memory else "grpc" for server in self._rota.servers}
        return Identity(
            model=self._spec.name,
            version=self._rota.servers[0].version,
            digest=self._spec.digest,
            servers=self.urls,
            transport=" and ".join(sorted(kinds, reverse=True)),
            runners=tuple(
                Runner(
                    server=server.url,
                    model=self._spec.name,
                    runtime=server.spec.parity.detail,
                    relative_l2=server.spec.parity.relative_l2,
                    answers=self._answers[server],
                )
                for server in self._rota.servers
            ),
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers' addresses, of those too that have not answered yet."""
        return tuple(server.url for server in self._rota.servers) if self._arrivals is None else self._arrivals.urls

    @property
    def max_batch_size(self) -> int:
        """Most patches in one call: as spec and server allow, and no more than are worth their memory."""
        return self._max_batch_size

    @property
    def max_in_flight(self) -> int:
        """How many calls at once keep the servers busy: more when another one comes."""
        return self._max_in_flight or sum(min(4, max(2, server.instances + 1)) for server in self._rota.servers)

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

    def predict(self, patches: Patches, *, votes: bool = False) -> Logits:
        """See :meth:`ctseg.predict.predictor.PatchPredictor.predict`.

        A request that found no server, or whose server went away, is sent again until nothing has been computed for
        ``timeout_s``. One that a server fails is tried again, by another server where there is one; it fails when its
        server has proven to be well, and fails it once more.

        Raises:
            ValueError: The patches have another shape, dtype or layout than the spec says, or there are
                too many; or the predictor was made in another process; or votes are wanted of a network without.
            ServerAwayError: Every server has been away for ``timeout_s``.
            ServerError: Another of its children: the patches themselves could not be computed.
            SpecError: The model was replaced by another one under way.
        """
        self._check(patches)
        if votes and self._spec.votes is None:
            raise ValueError(f"{self._spec.name}: expected a network whose folds vote")
        course = Course(self._rota, partial(self._ask, votes=votes), patches, self._count_retry)
        try:
            return course.run()
        except CallError as error:
            raise self._error_of(error, patches.shape, course.seconds) from error.__cause__
        except NobodyAnswersError as error:
            raise self._away_error(course) from error

    def close(self) -> None:
        """Stop waiting, release the shared memory, and close the connections; may be called twice.

        Requests on their way are left a little time, because closing cancels them, which old servers
        do not survive.
        """
        self._closing.set()
        if self._arrivals is not None:
            self._arrivals.close()
        self._rota.close()
        for server in self._rota.servers:
            server.wait_until_idle(_DRAIN_TIMEOUT_S)
        if self._shared_memory is not None:
            self._shared_memory.close(self._rota.servers)
        for server in self._rota.servers:
            server.close()

    def __enter__(self) -> "TritonPredictor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take_in(self, server: ServerConnection) -> None:
        """Let a server that came later have work, if it gives the same results."""
        first = self._rota.servers[0]
        try:
            _check_same(first, server)
            if server.max_batch_size < self._max_batch_size:
                raise SpecError(
                    f"{server.url} takes {server.max_batch_size} patches at once, the others {self._max_batch_size}"
                )
        except SpecError as error:
            log.warning("%s has come and is not used: %s", server.url, error)
            server.close()
            return
        if self._shared_memory is not None and server.is_local:
            self._shared_memory.offer(server)
        log.info("%s has come and gets work, too", server.url)
        if not self._rota.add(server):
            server.close()

    def _check(self, patches: Patches) -> None:
        if os.getpid() != self._process:
            raise ValueError("the predictor was made in another process: connect in the process that predicts")
        expected = (self._spec.num_input_channels, *self._spec.patch_size)
        if patches.dtype != np.float32 or patches.shape[1:] != expected or not patches.flags.c_contiguous:
            raise ValueError(
                f"{self._spec.name}: expected C-contiguous float32 patches of shape (batch, *{expected}), "
                f"found {patches.dtype} {patches.shape}"
            )
        if not 1 <= len(patches) <= self._max_batch_size:
            raise ValueError(f"{self._spec.name}: expected 1 to {self._max_batch_size} patches, found {len(patches)}")

    # --- one request

    def _count_retry(self) -> None:
        with self._lock:
            self._retries += 1

    def _ask(self, server: ServerConnection, patches: Patches, *, votes: bool = False) -> Logits:
        """Send patches to one server and return finite logits.

        Raises:
            CallError: No answer, or a wrong one.
        """
        started = time.monotonic()

        def deadline() -> float:
            return max(started, server.last_answer) + self._timeout_s

        try:
            logits = self._exchange(Call(server, patches, deadline, votes))
            if not all_finite(logits):
                raise CallError(
                    WRONG,
                    "expected finite logits, found NaN or infinity: serve the network with a higher precision (fp32), "
                    "or check the scan's intensities",
                )
        except CallError as error:
            error.url = server.url
            raise
        server.answered()
        with self._lock:
            self._answers[server] += 1
        return logits

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

    def _away_error(self, course: Course[ServerConnection, Patches, Logits]) -> ServerError:
        if hang := course.hang():
            return self._error_of(hang, course.request.shape, course.seconds)
        return ServerAwayError(
            f"{self._spec.name}: no server has computed anything for {self._timeout_s:g} s: {self._rota.problems()}: "
            "what is not done is left, start the folder again when a server answers",
            settings=("timeout_s",),
        )
