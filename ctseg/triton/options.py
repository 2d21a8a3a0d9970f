"""How to talk to Triton: time limits, encryption, shared memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ctseg.errors import SetupError
from ctseg.files.certificates import check_pair, read_pem
from ctseg.triton.addresses import Address

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's and Triton's own limit of one message."""

MOST_IN_FLIGHT = 256
"""Most requests at once."""
_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True)
class ClientOptions:
    """How to talk to Triton.

    Attributes:
        timeout_s: Longest time without any answer before a request is given up, in seconds. A server that is
            silent for so long is left aside until it answers something; its requests go to the others. A whole scan
            is asked after meanwhile: that its windows come back is an answer.
        connect_timeout_s: How long :func:`ctseg.connect` waits for a server that is not ready yet, in seconds.
        max_in_flight: Requests at once, all servers together; None takes one more than each server has
            instances, at least two and at most four for each server; of whole scans three for each server.
        max_message_bytes: Longest request and answer; limits the batch.
        tls: Encrypt; implied by any of the three files, and for one server by ``grpcs://`` in its address.
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
        if not (self.timeout_s > 0 and self.connect_timeout_s > 0):
            raise ValueError(f"timeouts must be positive, found {self.timeout_s} s and {self.connect_timeout_s} s")
        if self.max_in_flight is not None and not 1 <= self.max_in_flight <= MOST_IN_FLIGHT:
            raise SetupError(
                f"requests at once: expected 1 to {MOST_IN_FLIGHT}, found {self.max_in_flight}: each is a thread and "
                "the memory of an answer; a few for each server keep it busy",
                settings=("max_in_flight",),
            )
        if not 1 <= self.max_message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"max_message_bytes must be 1 to {MAX_MESSAGE_BYTES}, found {self.max_message_bytes}")
        for name, value in self.headers.items():
            _check_header(name, value)

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or any((self.root_certificates, self.client_certificate, self.client_key))


def _check_header(name: str, value: str) -> None:
    """Check what gRPC takes as a header; the value is never shown.

    Raises:
        SetupError: It would refuse every request for it.
    """
    if not _HEADER_NAME.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
        raise SetupError(
            f"header {name!r}: expected a name of small letters, digits, '-', '_' and '.', without 'grpc-' at its "
            "begin and '-bin' at its end",
            settings=("headers",),
        )
    if not _HEADER_VALUE.fullmatch(value):
        raise SetupError(
            f"header {name!r}: its value has a line break or another character that no header may have: take it out "
            "(a file's last line break, perhaps)",
            settings=("headers",),
        )


def credentials_of(options: ClientOptions, address: Address) -> Any:
    """Return gRPC's channel credentials for one server, None without TLS.

    Raises:
        SetupError: A certificate file cannot be used, half of a pair is missing, or the address says that the
            connection is not encrypted while the options ask for it.
    """
    if address.tls is False and options.uses_tls:
        raise SetupError(
            f"server {address}: grpc:// is not encrypted, and encryption is asked for: write grpcs://{address}",
            settings=("urls", "tls"),
        )
    if not (address.tls or options.uses_tls):
        return None
    import grpc

    client = ("client_certificate", "client_key")
    check_pair(options.client_certificate, options.client_key, settings=client)
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(options.root_certificates, "root certificates", "root_certificates"),
        private_key=_pem(options.client_key, "client key", "client_key"),
        certificate_chain=_pem(options.client_certificate, "client certificate", "client_certificate"),
    )


def _pem(path: Path | None, what: str, setting: str) -> bytes | None:
    return None if path is None else read_pem(path, what, settings=(setting,))
