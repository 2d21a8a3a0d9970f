"""A server for the benchmark of networks, reachable over a link; and plain bytes, to see what the link carries.

Runs as ``python -m benchmarks.network.server`` with one job of JSON as its argument; prints one line of JSON when it
is ready, and ends with its standard input.
"""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ctseg.documents import Document
from ctseg.serving.entries import list_models
from ctseg.serving.installation import find_server
from ctseg.serving.private_folder import private_folder
from ctseg.serving.process import Launch, Ports, RunningServer, ServerOptions, stop
from ctseg.serving.triton_flags import LOOPBACK, TritonFlags

_CHUNK = bytes(1 << 20)


class ServerJob(Document):
    """What to serve.

    Attributes:
        repository: The model repository.
        address: Where to listen.
    """

    repository: str
    address: str


class ServerThere(Document):
    """Where it is.

    Attributes:
        pid: Of tritonserver.
        port: Of gRPC.
        bytes_port: Where whoever connects gets as many bytes as it asks for.
        headers: What a client must send.
    """

    pid: int
    port: int
    bytes_port: int
    headers: dict[str, str]


@dataclass(frozen=True)
class _Launch(Launch):
    """A start of a server that a link reaches: in a network namespace of its own, where nobody else does."""

    address: str = LOOPBACK

    def flags(self, ports: Ports, key: str, backends: Path | None) -> TritonFlags:
        """See :meth:`Launch.flags`."""
        return replace(super().flags(ports, key, backends), address=self.address)


@contextmanager
def _server(job: ServerJob) -> Iterator[RunningServer]:
    installation, repository = find_server(), Path(job.repository).resolve()
    models = tuple(list_models(repository))
    with private_folder(installation.bytes_copied) as folder:
        launch = _Launch(installation, folder, repository, models, ServerOptions(), address=job.address)
        server, process = launch.start()
        try:
            yield server
        finally:
            server.life.stopped()
            stop(process)


def main() -> int:
    """Serve until nobody listens."""
    job = ServerJob.model_validate_json(sys.argv[1])
    with _server(job) as server, socket.create_server((job.address, 0)) as listener:
        threading.Thread(target=_send_bytes, args=(listener,), daemon=True).start()
        there = ServerThere(
            pid=server.pid,
            port=int(server.url.rpartition(":")[2]),
            bytes_port=listener.getsockname()[1],
            headers=dict(server.headers),
        )
        print(there.model_dump_json(), flush=True)
        sys.stdin.read()
    return 0


def _send_bytes(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            left = int(connection.recv(32))
            while left > 0:
                left -= connection.send(_CHUNK[:left])


if __name__ == "__main__":
    sys.exit(main())
