"""Where there are no network namespaces, a relay is the link: every byte passes, none faster than the link's rate."""

import socket
import threading
import time

from benchmarks.network.links import RelayWires, Traffic


def test_bytes_pass_a_relay_both_ways_and_are_counted_and_none_is_early():
    sent, answered = b"u" * 300_000, b"d" * 1_000_000
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_answer, args=(listener, len(sent), answered), daemon=True).start()
        wires = RelayWires()
        with wires.link(0.08, [listener.getsockname()[1]]) as (address,):
            host, _, port = address.partition(":")
            began = time.monotonic()
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
                got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            seconds = time.monotonic() - began
            assert wires.traffic() == Traffic(len(sent), len(answered))
    assert got == answered
    assert seconds > 0.1, "13 Mbit at 80 Mbit/s take 0.13 s, less a burst"
    assert wires.traffic() == Traffic(len(sent), len(answered)), "what has passed is known when the link is gone"


def _answer(listener: socket.socket, size: int, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        while size > 0:
            size -= len(connection.recv(1 << 16))
        connection.sendall(answer)
