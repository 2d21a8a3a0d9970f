"""tritonclient's connections to one server, with every failure translated."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ctseg.triton.addresses import Address, address_of
from ctseg.triton.errors import CANCELLED, DEADLINE, UNAVAILABLE, CallError, call_error_of, server_error_of
from ctseg.triton.options import MAX_MESSAGE_BYTES, ClientOptions, credentials_of
from ctseg.triton.pulse import Pulse

_CONNECTIONS = 4
_BEAT_TIMEOUT_S = 10.0
_KEEPALIVE_MS = 310_000  # Triton answers pings closer than 300 s without data by closing the connection
_CHANNEL_ARGUMENTS = [
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


def is_ready(url: str, options: ClientOptions | None = None, *, timeout_s: float = 5.0) -> bool:
    """Whether a server answers and has loaded its models.

    Raises:
        SetupError: The URL or a certificate file cannot be used.
        RequestRejectedError: The server answers, and refuses to say.
    """
    options = options or ClientOptions()
    client = TritonClient(address_of(url), options, connections=1)
    try:
        return bool(client.ask("is_server_ready", timeout_s=timeout_s))
    except CallError as error:
        if error.status in (UNAVAILABLE, CANCELLED, DEADLINE):
            return False
        raise server_error_of(error, f"{url}: is the server ready?") from error.__cause__
    finally:
        client.close()


class TritonClient:
    """The connections to one server; used from any number of threads.

    Args:
        address: Where it is.
        options: Encryption, and headers that are sent with every request.
        connections: How many; patches take turns on them.
    """

    def __init__(self, address: Address, options: ClientOptions, *, connections: int = _CONNECTIONS) -> None:
        self.address = address
        self._headers = dict(options.headers) or None
        credentials = credentials_of(options, address)
        # nobody reaches this machine's loopback through a proxy, whatever the environment says
        arguments = [*_CHANNEL_ARGUMENTS, *([("grpc.enable_http_proxy", 0)] if address.is_local else [])]
        self._clients = [
            InferenceServerClient(address.target, creds=credentials, channel_args=arguments) for _ in range(connections)
        ]
        self._next = 0
        self._lock = threading.Lock()
        self._pulse = Pulse([partial(self._beat, client) for client in self._clients])

    def ask(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Call one of the library's short methods.

        Raises:
            CallError: It failed.
        """
        try:
            return getattr(self._clients[0], method)(*arguments, headers=self._headers, client_timeout=timeout_s)
        except (InferenceServerException, ValueError) as error:
            raise call_error_of(error) from error

    def infer(
        self,
        model: str,
        version: int,
        inputs: list[Any],
        outputs: list[Any],
        receive: Callable[[Any, Any], None],
        request_id: str = "",
        parameters: Mapping[str, str | bool] | None = None,
    ) -> Callable[[], None]:
        """Send a request; ``receive`` is called with result and error on one of gRPC's threads.

        Returns:
            Cancels the call.

        Raises:
            CallError: It could not be sent; ``receive`` will not be called.
        """
        with self._lock:
            index = self._next = (self._next + 1) % len(self._clients)

        def finish(result: Any, error: Any) -> None:
            self._pulse.came(index)
            receive(result, error)

        self._pulse.sent(index)
        try:
            call = self._clients[index].async_infer(
                model, inputs, callback=finish, model_version=str(version), outputs=outputs, request_id=request_id,
                headers=self._headers, parameters=dict(parameters or {}),
            )  # fmt: skip
        except (InferenceServerException, ValueError) as error:
            self._pulse.came(index)
            raise call_error_of(error) from error
        return cast("Callable[[], None]", call.cancel)

    def tell(self, model: str, version: int, parameters: Mapping[str, str | bool], *, timeout_s: float) -> Any:
        """Send a request that has no inputs, only parameters, and return its result.

        Raises:
            CallError: It failed.
        """
        try:
            return self._clients[0].infer(
                model, [], model_version=str(version), headers=self._headers, client_timeout=timeout_s,
                parameters=dict(parameters),
            )  # fmt: skip
        except (InferenceServerException, ValueError) as error:
            raise call_error_of(error) from error

    def _beat(self, client: InferenceServerClient) -> None:
        with contextlib.suppress(InferenceServerException, ValueError):
            client.is_server_live(headers=self._headers, client_timeout=_BEAT_TIMEOUT_S)

    def close(self) -> None:
        """Close the connections; what is on its way is cancelled."""
        self._pulse.close()
        for client in self._clients:
            client.close()
