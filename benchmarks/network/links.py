"""Links between a client and a server on one machine: network namespaces that ``tc`` holds to a rate, or a relay."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from benchmarks.network.relay import Pace, relayed
from benchmarks.network.results import LinkKind
from ctseg.errors import SetupError

_SERVER_ADDRESS, _CLIENT_ADDRESS = "10.213.77.1", "10.213.77.2"
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Traffic:
    """What has passed a link, in bytes.

    Attributes:
        up: From client to server.
        down: From server to client.
    """

    up: int
    down: int

    def since(self, before: "Traffic") -> "Traffic":
        """Return what has passed since then."""
        return Traffic(self.up - before.up, self.down - before.down)


class Wires(Protocol):
    """What servers and clients are started in."""

    @property
    def kind(self) -> LinkKind:
        """What links are made of here."""
        ...

    @property
    def bind_address(self) -> str:
        """Where a server listens, so that both its own machine and the link reach it."""
        ...

    def on_server(self, words: Sequence[str]) -> list[str]:
        """Return a command line that runs another one on the server's machine."""
        ...

    def on_client(self, words: Sequence[str]) -> list[str]:
        """Return a command line that runs another one on the other side of the link."""
        ...

    @contextmanager
    def link(self, gbit_s: float, ports: Sequence[int]) -> Iterator[list[str]]:
        """Hold the link to a rate; yield the addresses by which it leads to ports of the server."""
        ...

    def traffic(self) -> Traffic:
        """Return what has passed the link so far."""
        ...


@contextmanager
def opened_wires() -> Iterator[Wires]:
    """Make two network namespaces with a link between them, or be content with a relay where that is not allowed."""
    with ExitStack() as stack:
        try:
            wires: Wires = stack.enter_context(_namespaces())
        except SetupError:
            wires = RelayWires()
        yield wires


@contextmanager
def _namespaces() -> Iterator["NamespaceWires"]:
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        raise SetupError("network namespaces need root, and the programs ip and tc")
    server, client = (f"ctseg-bench-{os.getpid()}-{side}" for side in "sc")
    try:
        for name in (server, client):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", "wire0", "netns", server, "type", "veth", "peer", "name", "wire0", "netns", client)
        for name, address in ((server, _SERVER_ADDRESS), (client, _CLIENT_ADDRESS)):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "wire0")
            _run("ip", "-n", name, "link", "set", "wire0", "up")
        wires = NamespaceWires(server, client)
        with wires.link(1.0, ()):
            yield wires
    finally:
        for name in (server, client):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class NamespaceWires:
    """Two network namespaces.

    Args:
        server: Name of the server's.
        client: Name of the client's.
    """

    kind: LinkKind = "namespaces"
    bind_address = "0.0.0.0"  # noqa: S104 - of a namespace that nobody else reaches

    def __init__(self, server: str, client: str) -> None:
        self._server, self._client = server, client

    def on_server(self, words: Sequence[str]) -> list[str]:
        """See :class:`Wires`."""
        return ["ip", "netns", "exec", self._server, *words]

    def on_client(self, words: Sequence[str]) -> list[str]:
        """See :class:`Wires`."""
        return ["ip", "netns", "exec", self._client, *words]

    @contextmanager
    def link(self, gbit_s: float, ports: Sequence[int]) -> Iterator[list[str]]:
        """See :class:`Wires`."""
        burst = f"{max(256, round(512 * gbit_s))}kb"
        for name in (self._server, self._client):
            _run("tc", "-n", name, "qdisc", "replace", "dev", "wire0", "root", "tbf", "rate", f"{gbit_s:g}gbit",
                 "burst", burst, "latency", "50ms")  # fmt: skip
        yield [f"{_SERVER_ADDRESS}:{port}" for port in ports]

    def traffic(self) -> Traffic:
        """See :class:`Wires`."""
        counts = ("/sys/class/net/wire0/statistics/tx_bytes", "/sys/class/net/wire0/statistics/rx_bytes")
        up, down = map(int, _run("ip", "netns", "exec", self._client, "cat", *counts).split())
        return Traffic(up, down)


class RelayWires:
    """A relay that waits, on this machine's loopback; it costs CPU that a network would not."""

    kind: LinkKind = "relay"
    bind_address = _LOOPBACK

    def __init__(self) -> None:
        self._past = Traffic(0, 0)
        self._paces: tuple[Pace, Pace] | None = None

    def on_server(self, words: Sequence[str]) -> list[str]:
        """See :class:`Wires`."""
        return list(words)

    def on_client(self, words: Sequence[str]) -> list[str]:
        """See :class:`Wires`."""
        return list(words)

    @contextmanager
    def link(self, gbit_s: float, ports: Sequence[int]) -> Iterator[list[str]]:
        """See :class:`Wires`."""
        up, down = self._paces = Pace(gbit_s), Pace(gbit_s)
        try:
            with ExitStack() as stack:
                yield [f"{_LOOPBACK}:{stack.enter_context(relayed(port, up, down))}" for port in ports]
        finally:
            self._past, self._paces = self.traffic(), None

    def traffic(self) -> Traffic:
        """See :class:`Wires`."""
        up, down = self._paces or (None, None)
        return Traffic(self._past.up + (up.passed if up else 0), self._past.down + (down.passed if down else 0))


def _run(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
