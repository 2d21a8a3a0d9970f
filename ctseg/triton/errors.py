"""tritonclient's failures, told apart by gRPC's status code, and what ctseg makes of them.

A request that fails is a :class:`CallError` inside this room; :func:`server_error_of` makes of it what callers see.
"""

from collections.abc import Mapping

from tritonclient.utils import InferenceServerException

from ctseg.errors import (
    InferenceFailedError,
    ModelNotFoundError,
    RequestRejectedError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)

UNAVAILABLE = "StatusCode.UNAVAILABLE"
CANCELLED = "StatusCode.CANCELLED"
DEADLINE = "StatusCode.DEADLINE_EXCEEDED"
INTERNAL = "StatusCode.INTERNAL"
NOT_FOUND = "StatusCode.NOT_FOUND"
INVALID_ARGUMENT = "StatusCode.INVALID_ARGUMENT"
UNIMPLEMENTED = "StatusCode.UNIMPLEMENTED"
ALREADY_EXISTS = "StatusCode.ALREADY_EXISTS"
NO_ANSWER = "no answer"
"""Not of gRPC: nothing came back within the client's own limit."""
WRONG = "wrong answer"
"""Not of gRPC: what came back is not what the spec says."""
DIED = "died"
"""Not of gRPC: the server is gone each time that it gets the request."""
RESTRICTED = "restricted"
"""Not of gRPC: the server asks for a key."""
KEY_REFUSED = ("StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED", RESTRICTED)
"""The server, or what stands before it, does not take the key that is sent, or asks for one."""
AWAY = (UNAVAILABLE, CANCELLED, NO_ANSWER, NOT_FOUND)
"""A server that had the model is away: gone, starting, stopping, overloaded, hung, or loading the model again."""
HICCUPS = (INTERNAL, WRONG, DEADLINE, "StatusCode.UNKNOWN", "StatusCode.DATA_LOSS")
"""What a server may do better the second time; anything else that is not AWAY is a refusal."""
SHARED_MEMORY_REFUSALS = (INVALID_ARGUMENT, UNIMPLEMENTED, NOT_FOUND, RESTRICTED)
"""How a server says that it does not take tensors by shared memory."""

_ERROR_OF_STATUS: Mapping[str, type[ServerError]] = {
    UNAVAILABLE: ServerUnavailableError,
    CANCELLED: ServerUnavailableError,
    DEADLINE: ServerTimeoutError,
    NO_ANSWER: ServerTimeoutError,
    NOT_FOUND: ModelNotFoundError,
    INTERNAL: InferenceFailedError,
    WRONG: InferenceFailedError,
    DIED: InferenceFailedError,
    "StatusCode.UNKNOWN": InferenceFailedError,
    "StatusCode.DATA_LOSS": InferenceFailedError,
}  # every other status is a refusal: RequestRejectedError


class CallError(Exception):
    """A request failed.

    Args:
        status: gRPC's code, or one of this module's own words.
        message: The server's or the library's words.
        url: Address of the server, where it is known already.
    """

    def __init__(self, status: str, message: str, *, url: str = "") -> None:
        super().__init__(status, message)
        self.status = status
        self.text = message
        self.url = url

    def __str__(self) -> str:
        return f"{self.status.removeprefix('StatusCode.')}: {self.text}"


class SharedMemoryRefusedError(Exception):
    """The server did not take a request by shared memory."""


def call_error_of(error: InferenceServerException | ValueError) -> CallError:
    """Translate what tritonclient raised."""
    if isinstance(error, ValueError):  # gRPC's own word for a closed channel
        return CallError(CANCELLED, str(error))
    message = str(error.message())
    status = str(error.status() or "refused by the client library")
    # A denial by `--grpc-restricted-protocol` has the code of an overloaded server, and nothing else
    # in Triton's answer tells them apart: this is the one place where its words are read.
    if status == UNAVAILABLE and message.startswith("This protocol is restricted"):
        status = RESTRICTED
    return CallError(status, message)


def server_error_of(error: CallError, what: str) -> ServerError:
    """Return what callers see of a failed request.

    Args:
        error: How it failed.
        what: Which model at which server did not do what.
    """
    kind = _ERROR_OF_STATUS.get(error.status, RequestRejectedError)
    if error.status == RESTRICTED:
        return kind(f"{what}: {error}: give the header that the server's administrator named", settings=("headers",))
    return kind(f"{what}: {error}")
