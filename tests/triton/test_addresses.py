"""What a person may write for a server's address, and what is said of anything else."""

import socket

import pytest

from ctseg.errors import SetupError
from ctseg.triton.addresses import Address, address_of
from ctseg.triton.options import ClientOptions, credentials_of
from ctseg.triton.predictor import connect


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("gpu1:8001", Address("gpu1:8001")),
        ("grpc://gpu1:8001", Address("gpu1:8001", tls=False)),
        ("grpcs://gpu1:8001", Address("gpu1:8001", tls=True)),
        ("GRPCS://gpu1:8001", Address("gpu1:8001", tls=True)),
        ("[::1]:8001", Address("[::1]:8001")),
        ("grpcs://[2001:db8::1]:443", Address("[2001:db8::1]:443", tls=True)),
        ("unix:/run/triton.sock", Address("unix:/run/triton.sock")),
        ("dns:///gpu1", Address("dns:///gpu1")),
    ],
)
def test_an_address_is_what_grpc_takes(url: str, address: Address) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://gpu1:8000", "ctseg speaks gRPC, not http: .* write gpu1:8001$"),
        ("https://gpu1", "write grpcs://gpu1:8001$"),
        ("http://[::1]:8000/v2", r"write \[::1\]:8001$"),
        ("::1:8001", r"an IPv6 address stands in brackets: write \[::1\]:8001$"),
        ("grpcs://2001:db8::5:8001", r"brackets: write \[2001:db8::5\]:8001$"),
        ("[::1]", r"write \[::1\]:8001"),
        ("[::1]8001", r"write \[::1\]:8001"),
        ("gpu1", "write gpu1:8001"),
        ("gpu1:", "expected a port of 1 to 65535 after gpu1:, found ''"),
        (":8001", "expected host:port.*: write gpu1:8001, if"),
        ("gpu1:8001 gpu2:8001", "a blank in an address; several .*: gpu1:8001 gpu2:8001, unquoted"),
        ("gpu1:99999", "found '99999'"),
        ("gpu1:http", "found 'http'"),
        ("gpu1:8001/v2", "expected host:port"),
        ("me@gpu1:8001", "found '@' in the host me@gpu1"),
        ("gpu１:8001", "found '１' in the host"),
        ("gpu1:8001,gpu2:8001", "several servers: write them apart: gpu1:8001 gpu2:8001$"),
        ("", "expected host:port"),
        ("gpu1:²", "expected a port of 1 to 65535 after gpu1:, found '²'"),
        ("http://[::1:8001", "ctseg speaks gRPC, not http: .* write gpu1:8001$"),
    ],
)
def test_what_is_no_address_is_refused_with_the_one_to_write(url: str, told: str) -> None:
    with pytest.raises(SetupError, match=told) as caught:
        connect([url], "toy")
    assert str(caught.value).startswith(f"server {url}: ")
    assert caught.value.settings == ("urls",)


def test_grpcs_encrypts_and_grpc_does_not() -> None:
    assert credentials_of(ClientOptions(), address_of("grpcs://gpu1:8001")) is not None
    assert credentials_of(ClientOptions(), address_of("grpc://gpu1:8001")) is None
    with pytest.raises(SetupError, match="write grpcs://gpu1:8001"):
        credentials_of(ClientOptions(tls=True), address_of("grpc://gpu1:8001"))


def test_local_servers_are_known_by_their_address() -> None:
    for target in ("localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1", f"{socket.gethostname()}:1", "unix:/x"):
        assert Address(target).is_local, target
    for target in ("gpu1.example:1", "10.0.0.1:1", "[2001:db8::1]:1"):
        assert not Address(target).is_local, target
