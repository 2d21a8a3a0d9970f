"""How to talk to Triton: time limits, addresses, encryption, shared memory."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ctseg.errors import SetupError

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's and Triton's own limit of one message."""


@dataclass(frozen=True)
class ClientOptions:
    """How to talk to Triton.

    Attributes:
        timeout_s: Longest time without any answer before a request is given up, in seconds. A server that is
            silent for so long is left aside until it answers something; its requests go to the others.
        connect_timeout_s: How long :func:`ctseg.connect` waits for a server that is not ready yet, in seconds.
        max_in_flight: Requests at once, all servers together; None takes one more than each server has
            instances, at least two and at most four for each server.
        max_message_bytes: Longest request and answer; limits the batch.
        tls: Encrypt; implied by any of the three files.
        root_certificates: PEM file of the authorities that vouch for the server; None takes gRPC's own.
        client_certificate: PEM file of this client's certificate chain, for mutual TLS.
        client_key: PEM file of its private key.
        headers: Sent with every request, such as ``{"authorization": "Bearer …"}``; never logged.
        shared_memory: ``auto`` tries system shared memory with servers on this host and falls back to
            gRPC; ``on`` tries it whatever the server's address and fails without it; ``off`` does not try.
        max_shared_memory_bytes: Most shared memory of this client; what does not fit goes by gRPC.
    """

    timeout_s: float = 300.0
    connect_timeout_s: float = 20.0
    max_in_flight: int | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    tls: bool = False
    root_certificates: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    shared_memory: Literal["auto", "on", "off"] = "auto"
    max_shared_memory_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.connect_timeout_s <= 0:
            raise ValueError(f"timeouts must be positive, found {self.timeout_s} s and {self.connect_timeout_s} s")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, found {self.max_in_flight}")
        if not 1 <= self.max_message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"max_message_bytes must be 1 to {MAX_MESSAGE_BYTES}, found {self.max_message_bytes}")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or any((self.root_certificates, self.client_certificate, self.client_key))


def address_of(url: str) -> str:
    """Check a server's URL and return it as gRPC wants it.

    Args:
        url: ``host:port``, also with ``grpc://`` before it, or one of gRPC's own forms such as ``unix:``.

    Raises:
        SetupError: It has no port, or is of another protocol.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("grpc", "grpcs"):
        url = rest
    elif separator and scheme in ("http", "https"):
        raise SetupError(
            f"server {url}: ctseg speaks gRPC: give host:port of Triton's gRPC endpoint, such as {rest}:8001",
            settings=("urls",),
        )
    if url.startswith(("dns:", "ipv4:", "ipv6:", "unix:")):
        return url
    host, colon, port = url.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SetupError(
            f"server {url}: expected host:port of Triton's gRPC endpoint, such as gpu1:8001", settings=("urls",)
        )
    return url


def is_local(address: str) -> bool:
    """Whether an address is plainly of this host."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]").lower()
    return host in ("localhost", "::1", socket.gethostname().lower()) or host.startswith("127.")


def credentials_of(options: ClientOptions) -> Any:
    """Return gRPC's channel credentials, None without TLS.

    Raises:
        SetupError: A certificate file cannot be used, or half of a pair is missing.
    """
    if not options.uses_tls:
        return None
    import grpc

    if (options.client_certificate is None) != (options.client_key is None):
        raise SetupError(
            "mutual TLS needs both a client certificate and a client key; only one was given",
            settings=("client_certificate", "client_key"),
        )
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(options.root_certificates, "root certificates"),
        private_key=_pem(options.client_key, "client key"),
        certificate_chain=_pem(options.client_certificate, "client certificate"),
    )


def _pem(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    setting = f"{what.replace(' ', '_')}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetupError(f"TLS {what} {path} cannot be read: {error.strerror or error}", settings=(setting,)) from error
    if b"-----BEGIN " not in content:
        raise SetupError(f"TLS {what} {path} is not a PEM file (no -----BEGIN line)", settings=(setting,))
    return content
