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
        gRPC's ``http_proxy_mapper.cc``: the first variable that is set counts, names in lower case only.
    """
    host = address.host
    if host is None or address.is_local or _is_excepted(host):
        return None
    for variable in _VARIABLES:
        if url := os.environ.get(variable):
            parts = urlsplit(url if "://" in url else f"http://{url}")
            return Proxy(parts.hostname or "?", parts.port or 80, variable)
    return None


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
