"""A TCP relay that lets no more bytes through than a link of so many bits a second, each way."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

_CHUNK = 256 << 10
_BURST_S = 0.002


class Pace:
    """Holds all that passes it to a rate.

    Args:
        gbit_s: The rate.
    """

    def __init__(self, gbit_s: float) -> None:
        self._bytes_s = gbit_s * 1e9 / 8
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.passed = 0

    def wait(self, size: int) -> None:
        """Wait until so many bytes may have passed."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST_S) + size / self._bytes_s
            self.passed += size
            pause = self._free_at - now
        if pause > 0:
            time.sleep(pause)


@contextlib.contextmanager
def relayed(port: int, up: Pace, down: Pace) -> Iterator[int]:
    """Relay a port of loopback to another one, while the context lasts.

    Args:
        port: Where the server listens.
        up: What clients send.
        down: What they get.

    Yields:
        The port where clients connect.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, up, down), daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, port: int, up: Pace, down: Pace) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # the relay has ended
            return
        threading.Thread(target=_serve, args=(client, port, up, down), daemon=True).start()


def _serve(client: socket.socket, port: int, up: Pace, down: Pace) -> None:
    with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upwards = threading.Thread(target=_pass_on, args=(client, server, up), daemon=True)
        upwards.start()
        _pass_on(server, client, down)
        upwards.join()


def _pass_on(source: socket.socket, target: socket.socket, pace: Pace) -> None:
    buffer = memoryview(bytearray(_CHUNK))
    with contextlib.suppress(OSError):  # either end has gone: so has the other, then
        while size := source.recv_into(buffer):
            pace.wait(size)
            target.sendall(buffer[:size])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
