"""A DICOMweb server whose answers a test decides: what a real PACS says only on a bad day."""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Said:
    """An answer; ``length`` in place of the body's own lets it end too early."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


@contextlib.contextmanager
def canned_pacs(
    answer: Callable[[Asked], Said], *, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[Asked]]]:
    """Answer requests on loopback; yields the address, and what came, in order."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            one = Asked(self.command, self.path, dict(self.headers.items()), self.rfile.read(length))
            asked.append(one)
            said = answer(one)
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body) if said.length is None else said.length))
            self.end_headers()
            with contextlib.suppress(OSError):  # whoever asked has seen enough
                self.wfile.write(said.body)

        do_GET = do_POST = _do

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}/dicom-web", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
