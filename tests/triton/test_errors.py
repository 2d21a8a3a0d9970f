"""What becomes of tritonclient's failures."""

import pytest
from tritonclient.utils import InferenceServerException

from ctseg.errors import (
    InferenceFailedError,
    ModelNotFoundError,
    RequestRejectedError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from ctseg.triton.errors import CANCELLED, NO_ANSWER, WRONG, CallError, call_error_of, server_error_of


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("StatusCode.UNAVAILABLE", ServerUnavailableError),
        ("StatusCode.CANCELLED", ServerUnavailableError),
        ("StatusCode.DEADLINE_EXCEEDED", ServerTimeoutError),
        ("StatusCode.NOT_FOUND", ModelNotFoundError),
        ("StatusCode.INTERNAL", InferenceFailedError),
        ("StatusCode.UNKNOWN", InferenceFailedError),
        ("StatusCode.DATA_LOSS", InferenceFailedError),
        ("StatusCode.INVALID_ARGUMENT", RequestRejectedError),
        ("StatusCode.PERMISSION_DENIED", RequestRejectedError),
        ("StatusCode.ALREADY_EXISTS", RequestRejectedError),
        (None, RequestRejectedError),
    ],
)
def test_errors_are_told_apart_by_their_status(status: str | None, kind: type[ServerError]) -> None:
    error = server_error_of(call_error_of(InferenceServerException("these words", status)), "toy at gpu1:8001")
    assert type(error) is kind
    assert "toy at gpu1:8001: " in str(error)
    assert "these words" in str(error)
    assert error.settings == ()


@pytest.mark.parametrize(("status", "kind"), [(NO_ANSWER, ServerTimeoutError), (WRONG, InferenceFailedError)])
def test_what_the_client_finds_itself_is_an_error_of_the_server(status: str, kind: type[ServerError]) -> None:
    assert type(server_error_of(CallError(status, "x"), "toy")) is kind


def test_a_server_that_asks_for_a_key_is_not_called_overloaded() -> None:
    words = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"
    error = server_error_of(call_error_of(InferenceServerException(words, "StatusCode.UNAVAILABLE")), "toy")
    assert type(error) is RequestRejectedError
    assert "give the header that the server's administrator named" in str(error)
    assert error.settings == ("headers",)


def test_a_closed_channel_is_a_cancelled_call() -> None:
    assert call_error_of(ValueError("Cannot invoke RPC on closed channel!")).status == CANCELLED
