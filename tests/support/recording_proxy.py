"""A port in front of a server's, which keeps every byte that a client sends."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Recording:
    """What went through.

    Attributes:
        url: Where clients connect.
        sent: What each connection sent, as it came.
    """

    url: str
    sent: list[bytearray] = field(default_factory=list)


@contextlib.contextmanager
def recording(target: str) -> Iterator[Recording]:
    """Pass on to ``host:port`` for the time of the block."""
    host, _, port = target.rpartition(":")
    sockets: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Recording(f"127.0.0.1:{listener.getsockname()[1]}")

        def accept() -> None:
            with contextlib.suppress(OSError):  # it was closed
                while True:
                    near, _ = listener.accept()
                    far = socket.create_connection((host, int(port)))
                    sockets.extend((near, far))
                    sent = bytearray()
                    found.sent.append(sent)
                    for arguments in ((near, far, sent), (far, near, None)):
                        threading.Thread(target=_pass_on, args=arguments, daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for end in sockets:
                end.close()


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            if kept is not None:
                kept += piece
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
