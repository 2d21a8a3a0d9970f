"""One Triton server that runs a network: what it takes at once, and the memory that it shares."""

import logging
import time
from collections.abc import Callable

from ctseg.model_spec import ModelSpec
from ctseg.triton.addresses import Address
from ctseg.triton.client import TritonClient
from ctseg.triton.errors import ALREADY_EXISTS, INTERNAL, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.served_version import ServedVersion, WantedModel
from ctseg.triton.server import Server, connect_to
from ctseg.triton.shared_memory import Segment

log = logging.getLogger(__name__)

_UNREGISTER_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 5.0
_SHARED_MEMORY_CHANCES = 3


def connect_server(
    address: Address, wanted: WantedModel, options: ClientOptions, on_wait: Callable[[], None] = lambda: None
) -> "ServerConnection":
    """Connect to one server, see :func:`ctseg.triton.server.connect_to`."""
    client, served = connect_to(address, wanted, options, on_wait)
    return ServerConnection(client, wanted, served)


class ServerConnection(Server[ServedVersion]):
    """One Triton server, as the predictor sees it.

    Attributes:
        shares_memory: Whether requests may go by shared memory.
    """

    def __init__(self, client: TritonClient, wanted: WantedModel, served: ServedVersion) -> None:
        super().__init__(client, wanted, served)
        self.shares_memory = False
        self._shared_memory_failures = 0
        self._registered: set[str] = set()
        self._abandoned: list[str] = []

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

    def suspect(self, problem: CallError) -> None:
        """See :meth:`Server.suspect`; what it knows of the memory may be gone."""
        with self._lock:
            self._registered.clear()
        super().suspect(problem)

    def forget_failure(self) -> None:
        """See :meth:`Server.forget_failure`; it may forget memory that was abandoned."""
        super().forget_failure()
        self._unregister_abandoned()

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
                self._client.ask("unregister_system_shared_memory", name, timeout_s=_ANSWER_TIMEOUT_S)
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
        super().close()
