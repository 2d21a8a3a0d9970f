"""Where a server is: what a person may write, and what gRPC takes."""

import socket
import string
from dataclasses import dataclass
from urllib.parse import urlsplit

from ctseg.errors import SetupError

_GRPC_NAMES = ("dns:", "ipv4:", "ipv6:", "unix:")
_SCHEMES = {"grpc": False, "grpcs": True}
_HOST_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-._")
_GRPC_PORT = 8001


@dataclass(frozen=True)
class Address:
    """A server's address.

    Attributes:
        target: As gRPC takes it: ``host:port``, ``[ipv6]:port``, or one of gRPC's own forms such as ``unix:``.
        tls: True for ``grpcs://``, False for ``grpc://``; None where the address does not say.
    """

    target: str
    tls: bool | None = None

    def __str__(self) -> str:
        return self.target

    @property
    def host(self) -> str | None:
        """The host without brackets; None in gRPC's own forms."""
        return None if self.target.startswith(_GRPC_NAMES) else self.target.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int | None:
        """The port; None in gRPC's own forms."""
        return None if self.host is None else int(self.target.rpartition(":")[2])

    @property
    def is_local(self) -> bool:
        """Whether it is plainly of this host."""
        if self.target.startswith("unix:"):
            return True
        host = (self.host or "").lower()
        return host in ("localhost", "::1", socket.gethostname().lower()) or host.startswith("127.")


def address_of(url: str) -> Address:
    """Read a server's address.

    Args:
        url: ``host:port`` or ``[ipv6]:port``; with ``grpcs://`` before it the connection is encrypted, with
            ``grpc://`` it is not; or one of gRPC's own forms.

    Raises:
        SetupError: It has no port, is of another protocol, or of another shape; says what to write.
    """
    if url.startswith(_GRPC_NAMES):
        return Address(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Address(_checked(url, url))
    if scheme.lower() not in _SCHEMES:
        secure = scheme.lower() in ("https", "wss")
        raise _refusal(
            url,
            f"ctseg speaks gRPC, not {scheme}: Triton's gRPC port is {_GRPC_PORT} by default: write "
            f"{'grpcs://' if secure else ''}{_host_in(url)}:{_GRPC_PORT}",
        )
    return Address(_checked(rest, url), _SCHEMES[scheme.lower()])


def _checked(text: str, url: str) -> str:
    """Return ``host:port`` if that is what a text is."""
    if "," in text:
        apart = " ".join(part.strip() for part in text.split(","))
        raise _refusal(url, f"these are several servers: write them apart: {apart}")
    if len(parts := text.split()) > 1:
        raise _refusal(url, f"a blank in an address; several servers are written apart: {' '.join(parts)}, unquoted")
    if text.count(":") > 1 and not text.startswith("["):
        host, _, port = text.rpartition(":")
        example = f"[{host}]:{port}" if port.isdigit() else f"[{text}]:{_GRPC_PORT}"
        raise _refusal(url, f"an IPv6 address stands in brackets: write {example}")
    if text.startswith("[") and "]:" not in text:
        inside = text[1:].partition("]")[0] or "::1"
        raise _refusal(url, f"expected [address]:port: write [{inside}]:{_GRPC_PORT}, if that is its port")
    host, colon, port = text.rpartition(":")
    if not colon or not host or "/" in text or any(c.isspace() for c in text):
        host = (host if colon else text).split("/")[0].strip() or "gpu1"
        raise _refusal(
            url, f"expected host:port of Triton's gRPC endpoint: write {host}:{_GRPC_PORT}, if that is its port"
        )
    if not text.startswith("[") and not set(host) <= _HOST_CHARACTERS:
        foreign = "".join(sorted(set(host) - _HOST_CHARACTERS))
        raise _refusal(url, f"expected host:port, found {foreign!r} in the host {host}: no host has that in its name")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise _refusal(url, f"expected a port of 1 to 65535 after {host}:, found {port!r}: Triton's is {_GRPC_PORT}")
    return text


def _host_in(url: str) -> str:
    """Return the host of a URL, as it stands in an address; one of no name where the URL is none."""
    try:
        host = urlsplit(url).hostname or "gpu1"
    except ValueError:  # brackets that hold no address
        return "gpu1"
    return f"[{host}]" if ":" in host else host


def _refusal(url: str, why: str) -> SetupError:
    return SetupError(f"server {url}: {why}", settings=("urls",))
