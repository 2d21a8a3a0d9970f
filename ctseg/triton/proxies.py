"""Whether gRPC reaches a server through a proxy that the environment names."""

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from ctseg.triton.addresses import Address

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """A proxy, without the credentials that its URL may carry.

    Attributes:
        host: Where it is.
        port: Its port.
        variable: The environment variable that names it.
    """

    host: str
    port: int
    variable: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port} ({self.variable})"


def proxy_of(address: Address) -> Proxy | None:
    """Return the proxy through which gRPC goes to a server, None where it goes directly.

    Source:
        gRPC's ``http_proxy_mapper.cc``: the first variable that is set counts, names in lower case only; what does not
        begin with ``http://`` is taken for none.
    """
    host = address.host
    if host is None or address.is_local or _is_excepted(host):
        return None
    for variable in _VARIABLES:
        if url := os.environ.get(variable):
            return _proxy_at(url, variable) if url.startswith("http://") else None
    return None


def _proxy_at(url: str, variable: str) -> Proxy:
    """Return a proxy by its URL; where that is none, one that nobody reaches: gRPC tries, and does not either."""
    try:
        parts = urlsplit(url)
        return Proxy(parts.hostname or "?", parts.port or 80, variable)
    except ValueError:  # brackets or a port that are none
        return Proxy(url.partition("://")[2].rpartition("@")[2].rpartition(":")[0], 0, variable)


def _is_excepted(host: str) -> bool:
    text = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    return any(_covers(entry.strip(), host) for entry in text.split(",") if entry.strip())


def _covers(entry: str, host: str) -> bool:
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
