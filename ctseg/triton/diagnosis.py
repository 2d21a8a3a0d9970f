"""What listens at an address, when the first contact fails: a short look by plain sockets that sends no credentials."""

import contextlib
import os
import socket
import ssl
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.triton.addresses import Address
from ctseg.triton.options import ClientOptions
from ctseg.triton.proxies import proxy_of

_LOOK_TIMEOUT_S = 2.0
_HTTP2_BEGINS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_FRAME = 4
_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_IP = 9, 10, 62, 64  # OpenSSL's X509_V_ERR_*


def look_at(address: Address, options: ClientOptions) -> None:
    """Look why a server does not answer; return where waiting may help.

    Raises:
        SetupError: Waiting cannot help: another protocol, encryption on one side only, a certificate that is not
            trusted or asked for, a proxy that is not there. Says what to write.
    """
    if address.host is None or address.port is None:
        return
    if (proxy := proxy_of(address)) is not None:
        with contextlib.suppress(OSError), _connected(proxy.host, proxy.port):
            return
        raise SetupError(
            f"server {address}: the connection goes through the proxy {proxy}, which does not answer: name "
            f"{address.host} in no_proxy if it is reached without one",
            settings=("urls",),
        )
    try:
        with _connected(address.host, address.port):
            pass
    except OSError:
        return  # nobody is there yet
    if address.tls or options.uses_tls:
        _look_through_tls(address, options)
    else:
        _look_at_plain(address)


def proxy_hint(address: Address) -> str:
    """Return what to add to the message of a failure, empty where no proxy is between."""
    if (proxy := proxy_of(address)) is None:
        return ""
    return (
        f"; the connection goes through the proxy {proxy}: name {address.host} in no_proxy if it is reached without one"
    )


def _connected(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), _LOOK_TIMEOUT_S)


# --- without encryption


def _look_at_plain(address: Address) -> None:
    answer = _answer_to(address, _HTTP2_BEGINS)
    if _is_http2(answer):
        return
    if _is_http1(answer) or _is_http1(_answer_to(address, b"GET / HTTP/1.0\r\n\r\n")):
        raise _speaks_http(address)
    if _speaks_tls(address):
        raise SetupError(
            f"server {address}: it wants TLS, and this connection is not encrypted: write grpcs://{address}",
            settings=("urls", "tls"),
        )


def _answer_to(address: Address, words: bytes) -> bytes:
    """Return the begin of what a server says, empty if it says nothing."""
    assert address.host is not None and address.port is not None  # noqa: S101, PT018 - looked at before
    with contextlib.suppress(OSError), _connected(address.host, address.port) as connection:
        connection.sendall(words)
        return connection.recv(64)
    return b""


def _is_http2(answer: bytes) -> bool:
    return len(answer) > 3 and answer[3] == _SETTINGS_FRAME


def _is_http1(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1")


def _speaks_http(address: Address) -> SetupError:
    host = address.target.rpartition(":")[0]
    return SetupError(
        f"server {address}: this port speaks HTTP, as Triton's ports for HTTP (8000) and metrics (8002) do; its gRPC "
        f"port is usually 8001: write {host}:8001",
        settings=("urls",),
    )


# --- with TLS


def _look_through_tls(address: Address, options: ClientOptions) -> None:
    if not _speaks_tls(address):
        answer = _answer_to(address, _HTTP2_BEGINS)
        if _is_http1(answer) or _is_http1(_answer_to(address, b"GET / HTTP/1.0\r\n\r\n")):
            raise _speaks_http(address)
        if _is_http2(answer):
            raise SetupError(
                f"server {address}: it does not speak TLS: write grpc://{address} and leave out certificates, if "
                "everybody between may read scans and keys",
                settings=("urls", "tls"),
            )
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(OSError):
        context.load_verify_locations(options.root_certificates or _grpc_roots())
    try:
        _shake_hands(address, context)
    except ssl.SSLCertVerificationError as error:
        raise _bad_certificate(address, options, error) from error
    except ssl.SSLError as error:
        if options.client_certificate is None:
            raise SetupError(
                f"server {address}: it asks for a certificate of this client (mutual TLS): {_reason(error)}: give a "
                "certificate that it trusts, and its key",
                settings=("client_certificate", "client_key"),
            ) from error
    except OSError:
        return
    if options.client_certificate is not None and options.client_key is not None:
        _show_certificate(address, options, context)


def _show_certificate(address: Address, options: ClientOptions, context: ssl.SSLContext) -> None:
    """Try the client's certificate on a server that was verified."""
    try:
        context.load_cert_chain(str(options.client_certificate), str(options.client_key))
        _shake_hands(address, context)
    except ssl.SSLError as error:
        raise SetupError(
            f"server {address}: it does not accept this client's certificate {options.client_certificate}: "
            f"{_reason(error)}",
            settings=("client_certificate", "client_key"),
        ) from error
    except OSError:
        return


def _speaks_tls(address: Address) -> bool:
    context = _unverifying()
    try:
        _shake_hands(address, context, say=False)
    except ssl.SSLError as error:
        return "CERTIFICATE" in _reason(error).upper()
    except OSError:
        return False
    return True


def _unverifying() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only looked at: nothing is sent to whoever this is
    return context


def _shake_hands(address: Address, context: ssl.SSLContext, *, say: bool = True) -> bytes:
    """Shake hands; return the server's certificate (DER). A server refuses a client after it."""
    assert address.host is not None and address.port is not None  # noqa: S101, PT018 - looked at before
    context.set_alpn_protocols(["h2"])
    with (
        _connected(address.host, address.port) as connection,
        context.wrap_socket(connection, server_hostname=address.host) as encrypted,
    ):
        certificate = encrypted.getpeercert(binary_form=True) or b""
        if say:
            encrypted.sendall(_HTTP2_BEGINS)
            if not encrypted.recv(64):
                raise ssl.SSLError("the server ends the connection after the handshake")
        return certificate


def _bad_certificate(address: Address, options: ClientOptions, error: ssl.SSLCertVerificationError) -> SetupError:
    certificate = _read_certificate(address)
    names = ", ".join(certificate.get("names", ())) or "no name"
    what = f"server {address}: its certificate"
    if error.verify_code == _EXPIRED:
        return SetupError(f"{what} has expired{certificate.get('until', '')}: the server needs a new one")
    if error.verify_code == _NOT_YET_VALID:
        return SetupError(f"{what} is not valid yet: is the clock of this machine right?")
    if error.verify_code in (_OTHER_NAME, _OTHER_IP):
        return SetupError(f"{what} is for {names}, not for {address.host}: write one of its names", settings=("urls",))
    among = str(options.root_certificates or "the authorities that gRPC knows")
    return SetupError(
        f"{what} is not trusted: it is signed by {certificate.get('issuer', 'somebody')}, who is not in {among} "
        f"({error.verify_message}): name the file of that authority's certificate",
        settings=("root_certificates",),
    )


def _read_certificate(address: Address) -> dict[str, str | list[str]]:
    """Return issuer, names and end of a server's certificate, read without trusting it."""
    try:
        der = _shake_hands(address, _unverifying(), say=False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=der)  # only a certificate that verifies is read by the ssl module
        context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME) | ssl.VERIFY_X509_PARTIAL_CHAIN
        assert address.host is not None and address.port is not None  # noqa: S101, PT018 - looked at before
        with (
            _connected(address.host, address.port) as connection,
            context.wrap_socket(connection, server_hostname=address.host) as encrypted,
        ):
            read = encrypted.getpeercert() or {}
    except OSError:
        return {}
    issuer = {str(part[0][0]): str(part[0][1]) for part in read.get("issuer", ())}
    return {
        "issuer": issuer.get("commonName") or issuer.get("organizationName") or str(issuer),
        "names": [str(name[1]) for name in read.get("subjectAltName", ())],
        "until": f" ({read.get('notAfter')})",
    }


def _grpc_roots() -> str | None:
    """Return the file of the authorities that gRPC trusts where none are named."""
    import grpc

    named = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    return named or str(Path(grpc.__file__).parent / "_cython" / "_credentials" / "roots.pem")


def _reason(error: ssl.SSLError) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()
