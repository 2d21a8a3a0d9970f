"""What a caller may say of a connection, and what is refused before anything is sent."""

from pathlib import Path

import pytest

from ctseg.errors import SetupError
from ctseg.triton.addresses import Address
from ctseg.triton.options import MAX_MESSAGE_BYTES, ClientOptions, credentials_of
from ctseg.triton.predictor import connect


def test_no_address_at_all_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no URL"):
        connect([], "toy")


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
    assert credentials_of(ClientOptions(), Address("gpu1:8001")) is None
    assert ClientOptions(tls=True).uses_tls
    for name in ("root_certificates", "client_certificate", "client_key"):
        assert ClientOptions(**{name: Path("x.pem")}).uses_tls
    assert credentials_of(ClientOptions(tls=True), Address("gpu1:8001")) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_s": 0},
        {"connect_timeout_s": -1},
        {"max_message_bytes": 0},
        {"max_message_bytes": MAX_MESSAGE_BYTES + 1},
    ],
)
def test_options_that_cannot_work_are_the_callers_mistake(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ClientOptions(**wrong)


@pytest.mark.parametrize("number", [0, -3, 257, 100_000])
def test_a_number_of_requests_at_once_that_cannot_work_is_refused(number: int) -> None:
    with pytest.raises(SetupError, match=f"requests at once: expected 1 to 256, found {number}") as caught:
        ClientOptions(max_in_flight=number)
    assert caught.value.settings == ("max_in_flight",)


@pytest.mark.parametrize("name", ["two words", "Authorization", "token-bin", "grpc-timeout", ":path", "", "größe"])
def test_a_header_name_that_grpc_refuses_is_refused_at_once(name: str) -> None:
    with pytest.raises(SetupError, match="expected a name of small letters") as caught:
        ClientOptions(headers={name: "secret"})
    assert caught.value.settings == ("headers",)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["secret\n", "secret\r\nx: y", "secret\0", "sécret"])
def test_a_header_value_with_a_line_break_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(SetupError, match="header 'authorization': its value has a line break") as caught:
        ClientOptions(headers={"authorization": value})
    assert "cret" not in str(caught.value)
    ClientOptions(headers={"authorization": "Bearer abc.def-123=", "triton-grpc-protocol-ctseg": "k"})
