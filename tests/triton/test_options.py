"""What a caller may say of a connection, and what is refused before anything is sent."""

import socket
from pathlib import Path

import pytest

from ctseg.errors import SetupError
from ctseg.triton.options import MAX_MESSAGE_BYTES, ClientOptions, address_of, credentials_of, is_local
from ctseg.triton.predictor import connect


@pytest.mark.parametrize("url", ["http://gpu1:8000", "gpu1", "gpu1:", ":8001", "gpu1:99999"])
def test_a_url_that_cannot_be_right_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="host:port") as caught:
        connect([url], "toy")
    assert url in str(caught.value)
    assert caught.value.settings == ("urls",)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("gpu1:8001", "gpu1:8001"),
        ("grpc://gpu1:8001", "gpu1:8001"),
        ("grpcs://gpu1:8001", "gpu1:8001"),
        ("[::1]:8001", "[::1]:8001"),
        ("unix:/run/triton.sock", "unix:/run/triton.sock"),
        ("dns:///gpu1", "dns:///gpu1"),
    ],
)
def test_an_address_is_what_grpc_takes(url: str, address: str) -> None:
    assert address_of(url) == address


def test_no_address_at_all_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no URL"):
        connect([], "toy")


def test_local_servers_are_known_by_their_address() -> None:
    for address in ("localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1", f"{socket.gethostname()}:1", "unix:/x"):
        assert is_local(address), address
    for address in ("gpu1.example:1", "10.0.0.1:1", "[2001:db8::1]:1"):
        assert not is_local(address), address


def test_certificate_files_are_checked_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for options, message, settings in (
        (
            ClientOptions(root_certificates=tmp_path / "none.pem"),
            "cannot be read: No such file",
            ("root_certificates",),
        ),
        (ClientOptions(root_certificates=tmp_path / "text.pem"), "not a PEM file", ("root_certificates",)),
        (
            ClientOptions(client_key=tmp_path / "text.pem"),
            "needs both",
            ("client_certificate", "client_key"),
        ),
    ):
        with pytest.raises(SetupError, match=message) as caught:
            connect(["gpu1:8001"], "toy", options=options)
        assert caught.value.settings == settings


def test_each_certificate_file_means_encryption() -> None:
    assert not ClientOptions().uses_tls
    assert credentials_of(ClientOptions()) is None
    assert ClientOptions(tls=True).uses_tls
    for name in ("root_certificates", "client_certificate", "client_key"):
        assert ClientOptions(**{name: Path("x.pem")}).uses_tls
    assert credentials_of(ClientOptions(tls=True)) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_s": 0},
        {"connect_timeout_s": -1},
        {"max_in_flight": 0},
        {"max_message_bytes": 0},
        {"max_message_bytes": MAX_MESSAGE_BYTES + 1},
    ],
)
def test_options_that_cannot_work_are_the_callers_mistake(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ClientOptions(**wrong)
