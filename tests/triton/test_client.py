"""The connections to one server, and what they say when there is none."""

import logging
import socket
from collections.abc import Iterator

import pytest

from ctseg.errors import RequestRejectedError, ServerTimeoutError
from ctseg.serving.process import RunningServer
from ctseg.triton.addresses import Address
from ctseg.triton.client import TritonClient, is_ready
from ctseg.triton.errors import CANCELLED, UNAVAILABLE, CallError
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from tests.support.live_triton import free_port
from tests.support.toy_models import toy_patches

pytestmark = pytest.mark.live


@pytest.fixture
def deaf() -> Iterator[str]:
    """Address of a server that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_refused_connection_is_not_called_a_timeout() -> None:
    client = TritonClient(Address(f"127.0.0.1:{free_port()}"), ClientOptions(), connections=1)
    with pytest.raises(CallError, match=r"[Cc]onnection refused") as caught:
        client.ask("get_model_metadata", "toy", timeout_s=240)  # refused at once, however long it may take
    client.close()
    assert caught.value.status == UNAVAILABLE


def test_a_server_that_never_answers_is_a_timeout(deaf: str) -> None:
    with pytest.raises(ServerTimeoutError, match="DEADLINE_EXCEEDED"):
        connect([deaf], "toy", options=ClientOptions(connect_timeout_s=0.5))


def test_a_closed_client_says_so_and_calls_nobody_back() -> None:
    client = TritonClient(Address(f"127.0.0.1:{free_port()}"), ClientOptions(), connections=1)
    client.close()
    for call in (
        lambda: client.ask("is_server_ready", timeout_s=240),
        lambda: client.infer("toy", 1, [], [], lambda *_: pytest.fail("called back")),
    ):
        with pytest.raises(CallError) as caught:
            call()
        assert caught.value.status == CANCELLED


def test_readiness_is_told_of_every_kind_of_server(server: RunningServer, deaf: str) -> None:
    assert is_ready(server.url, ClientOptions(headers=server.headers), timeout_s=240)
    with pytest.raises(RequestRejectedError, match="restricted"):
        is_ready(server.url, timeout_s=240)
    assert not is_ready(f"127.0.0.1:{free_port()}", timeout_s=240)
    assert not is_ready(deaf, timeout_s=0.2)


def test_headers_are_not_shown(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    options = ClientOptions(headers={**server.headers, "authorization": "Bearer secret-token"})
    with connect([server.url], "toy", options=options) as predictor:
        predictor.predict(toy_patches(1))
    (key,) = server.headers.values()
    for text in (repr(options), repr(server), caplog.text):
        assert "secret-token" not in text
        assert key not in text


def test_loopback_is_never_reached_through_a_proxy(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert is_ready(server.url, ClientOptions(headers=server.headers), timeout_s=240)
