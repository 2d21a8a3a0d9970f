"""What is said when something else listens than the address says; with real gRPC, TLS and HTTP servers."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from ctseg.errors import CtsegError, ServerUnavailableError, SetupError
from ctseg.serving.process import ServerOptions
from ctseg.serving.server import embedded_server
from ctseg.triton.addresses import address_of
from ctseg.triton.diagnosis import look_at
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from ctseg.triton.proxies import proxy_of
from tests.support.certificates import Authority, needs_openssl
from tests.support.live_triton import free_port
from tests.support.toy_models import write_toy_entry

PATIENCE_S = 240.0
"""The longest that a test that has gone wrong may take: what is certain is told long before."""


def refusal(url: str, **options: object) -> CtsegError:
    """Return why a first contact fails."""
    with pytest.raises(CtsegError) as caught:
        connect([url], "toy", options=ClientOptions(connect_timeout_s=PATIENCE_S, **options))
    return caught.value


@contextlib.contextmanager
def grpc_server(
    certificate: tuple[Path, Path] | None = None, *, root: Path | None = None, host: str = "127.0.0.1"
) -> Iterator[int]:
    """Run a gRPC server that knows no method, encrypted or not; yield its port."""
    server = grpc.server(ThreadPoolExecutor(1))
    if certificate is None:
        port = server.add_insecure_port(f"{host}:0")
    else:
        pem, key = certificate
        credentials = grpc.ssl_server_credentials(
            [(key.read_bytes(), pem.read_bytes())],
            root_certificates=None if root is None else root.read_bytes(),
            require_client_auth=root is not None,
        )
        port = server.add_secure_port(f"{host}:0", credentials)
    server.start()
    yield port
    server.stop(None).wait()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates")).found()


@pytest.mark.parametrize("url", ["127.0.0.1:{}", "grpcs://127.0.0.1:{}"])
def test_a_port_that_speaks_http_is_named_as_that(url: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        port = http.server_address[1]
        error = refusal(url.format(port))
        http.shutdown()
    assert isinstance(error, SetupError)
    told = "this port speaks HTTP, as Triton's ports for HTTP (8000) and metrics (8002) do"
    assert f"server 127.0.0.1:{port}: {told}; its gRPC port is usually 8001: write 127.0.0.1:8001" in str(error)
    assert error.settings == ("urls",)


@pytest.mark.live
def test_tritons_metrics_port_is_named_as_what_it_is(tmp_path: Path) -> None:
    write_toy_entry(tmp_path / "models")
    port = free_port()
    with embedded_server(tmp_path / "models", options=ServerOptions(is_private=False, prove=False, metrics_port=port)):
        assert "this port speaks HTTP" in str(refusal(f"127.0.0.1:{port}"))


@needs_openssl
def test_tls_against_plain_and_plain_against_tls_say_what_to_write(authority: Authority) -> None:
    with grpc_server(authority.sign("server")) as port:
        error = refusal(f"127.0.0.1:{port}")
        assert f"it wants TLS, and this connection is not encrypted: write grpcs://127.0.0.1:{port}" in str(error)
        assert error.settings == ("urls", "tls")
    with grpc_server() as port:
        error = refusal(f"grpcs://127.0.0.1:{port}")
        assert f"it does not speak TLS: write grpc://127.0.0.1:{port}" in str(error)


@needs_openssl
def test_a_certificate_that_is_not_trusted_is_told_with_who_signed_it(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other root").found()
    with grpc_server(authority.sign("server")) as port:
        for options, among in (
            ({"root_certificates": other.root}, str(other.root)),
            ({}, "the authorities that gRPC knows"),
        ):
            error = refusal(f"grpcs://127.0.0.1:{port}", **options)
            assert f"is not trusted: it is signed by Hospital root, who is not in {among}" in str(error)
            assert error.settings == ("root_certificates",)


@needs_openssl
def test_a_certificate_for_another_name_is_told_with_its_names(authority: Authority) -> None:
    with grpc_server(authority.sign("elsewhere", names="DNS:gpu1.example,DNS:gpu2.example")) as port:
        error = refusal(f"grpcs://127.0.0.1:{port}", root_certificates=authority.root)
    assert "its certificate is for gpu1.example, gpu2.example, not for 127.0.0.1" in str(error)


@needs_openssl
def test_a_certificate_that_has_expired_is_told_with_when(authority: Authority) -> None:
    with grpc_server(authority.sign("old", days=-1)) as port:
        error = refusal(f"grpcs://127.0.0.1:{port}", root_certificates=authority.root)
    assert "its certificate has expired (" in str(error)
    assert "GMT)" in str(error)


@needs_openssl
def test_mutual_tls_says_what_is_missing_or_not_accepted(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other root").found()
    with grpc_server(authority.sign("server"), root=authority.root) as port:
        url = f"grpcs://127.0.0.1:{port}"
        error = refusal(url, root_certificates=authority.root)
        assert "it asks for a certificate of this client (mutual TLS)" in str(error)
        assert error.settings == ("client_certificate", "client_key")
        certificate, key = other.sign("stranger")
        error = refusal(url, root_certificates=authority.root, client_certificate=certificate, client_key=key)
        assert f"it does not accept this client's certificate {certificate}" in str(error)


@needs_openssl
def test_a_client_certificate_and_another_ones_key_are_told_before_anything_is_sent(authority: Authority) -> None:
    (one, _), (_, other) = authority.sign("one"), authority.sign("two")
    error = refusal("grpcs://gpu1.invalid:8001", client_certificate=one, client_key=other)
    assert f"certificate {one} and key {other} cannot be used: they do not belong together" in str(error)


def test_a_server_that_is_what_the_address_says_is_waited_for() -> None:
    with grpc_server() as port:
        look_at(address_of(f"127.0.0.1:{port}"), ClientOptions())
    look_at(address_of(f"127.0.0.1:{free_port()}"), ClientOptions())
    look_at(address_of("unix:/run/triton.sock"), ClientOptions())


def test_nothing_that_is_secret_is_sent_to_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listening.accept()[0]
                    connection.settimeout(0.2)
                    with contextlib.suppress(OSError):
                        heard.append(connection.recv(4096))
                    connection.close()

        threading.Thread(target=listen, daemon=True).start()
        address = address_of(f"127.0.0.1:{listening.getsockname()[1]}")
        look_at(address, ClientOptions(headers={"authorization": "Bearer secret-token"}))
        listening.shutdown(socket.SHUT_RDWR)
    assert heard
    assert b"secret-token" not in b"".join(heard)


# --- proxies


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_proxy_that_is_not_there_is_named_without_its_credentials(
    variable: str, no_proxies: pytest.MonkeyPatch
) -> None:
    port = free_port()
    no_proxies.setenv(variable, f"http://doctor:secret@127.0.0.1:{port}")
    error = refusal("gpu1.invalid:8001")
    assert f"goes through the proxy 127.0.0.1:{port} ({variable}), which does not answer" in str(error)
    assert "name gpu1.invalid in no_proxy" in str(error)
    assert "secret" not in str(error)
    assert "doctor" not in str(error)


@pytest.mark.parametrize("url", ["http://doctor:secret@127.0.0.1:99999", "http://doctor:secret@127.0.0.1:port"])
def test_a_proxy_that_nobody_can_reach_is_named_too(url: str, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("http_proxy", url)
    error = refusal("gpu1.invalid:8001")
    assert "goes through the proxy 127.0.0.1:0 (http_proxy), which does not answer" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "https://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_what_grpc_takes_for_no_proxy_is_none(url: str, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("http_proxy", url)
    assert proxy_of(address_of("gpu1:8001")) is None
    code = (
        "import grpc, os, socket\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "listening.settimeout(60)\n"
        "grpc.channel_ready_future(grpc.insecure_channel(f'localhost:{listening.getsockname()[1]}'))\n"
        "print(listening.accept()[0].recv(3), flush=True)\n"
        "os._exit(0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "b'PRI'\n"


def test_a_proxy_that_refuses_is_named(no_proxies: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as proxy:  # it knows no CONNECT
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        no_proxies.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        with pytest.raises(CtsegError, match="goes through the proxy") as caught:
            connect(["gpu1.invalid:8001"], "toy", options=ClientOptions(connect_timeout_s=1))
        proxy.shutdown()
    assert f"127.0.0.1:{proxy.server_address[1]} (https_proxy): name gpu1.invalid in no_proxy" in str(caught.value)


def test_whom_a_proxy_serves_is_what_grpc_says(no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("http_proxy", "http://proxy:3128")
    no_proxies.setenv("no_proxy", "hospital.example, 10.0.0.0/8,gpu7")
    for url, is_served in (
        ("gpu1.elsewhere:8001", True),
        ("gpu1.hospital.example:8001", False),
        ("gpu7:8001", False),
        ("10.1.2.3:8001", False),
        ("192.168.1.1:8001", True),
        ("localhost:8001", False),
        ("[::1]:8001", False),
        ("unix:/run/triton.sock", False),
    ):
        assert (proxy_of(address_of(url)) is not None) == is_served, url


def test_a_server_that_is_not_there_is_still_waited_for(no_proxies: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="refused"):
        connect([f"127.0.0.1:{free_port()}"], "toy", options=ClientOptions(connect_timeout_s=1))
    assert time.monotonic() - started >= 1
