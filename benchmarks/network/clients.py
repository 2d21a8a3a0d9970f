"""Several clients at once, each of which sends one whole scan after the other.

Runs as ``python -m benchmarks.network.clients`` with one job of JSON as its argument, and prints one line of JSON.
"""

import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from ctseg.documents import Document
from ctseg.files.cases import find_cases
from ctseg.files.volume import Volume, read_volume
from ctseg.predict.segment import WindowOptions
from ctseg.predict.segmenter import CaseSegmenter
from ctseg.runs.model import ServedModel
from ctseg.runs.where import opened_segmenter
from ctseg.triton.options import ClientOptions

_TIMEOUT_S = 1200.0


class ClientsJob(Document):
    """What to do.

    Attributes:
        url: Of the server.
        headers: What it asks for.
        model: Its name.
        scans: Folder; the first one is sent.
        clients: How many at once.
        scans_each: How many each of them sends.
    """

    url: str
    headers: dict[str, str]
    model: str
    scans: str
    clients: int
    scans_each: int


class ClientsResult(Document):
    """What came of it.

    Attributes:
        seconds: From the first scan sent to the last answered.
        waits_s: Of each client's scans, from when each was sent to when its labels were there.
        ends_s: Of each client's scans, when its labels were there, from the first scan sent on.
    """

    seconds: float
    waits_s: tuple[tuple[float, ...], ...]
    ends_s: tuple[tuple[float, ...], ...]

    @property
    def least_share(self) -> float:
        """Scans that the least served client had back when the first one had all, as a part of those."""
        first = min(ends[-1] for ends in self.ends_s)
        return min(sum(end <= first for end in ends) / len(ends) for ends in self.ends_s)


class _Client:
    """One client."""

    def __init__(self, segmenter: CaseSegmenter, volume: Volume) -> None:
        self._segmenter, self._volume = segmenter, volume
        self.sent_s: list[float] = []
        self.ends_s: list[float] = []

    def send(self, count: int) -> None:
        for _ in range(count):
            self.sent_s.append(time.perf_counter())
            self._segmenter.segment(self._volume)
            self.ends_s.append(time.perf_counter())


def main() -> int:
    """Run the job in the first argument."""
    job = ClientsJob.model_validate_json(sys.argv[1])
    options = ClientOptions(headers=job.headers, timeout_s=_TIMEOUT_S)
    model = ServedModel(job.model, urls=(job.url,), client=options, where="server")
    with ExitStack() as stack:
        segmenters = [
            stack.enter_context(opened_segmenter(model, WindowOptions(mirroring=False))) for _ in range(job.clients)
        ]
        case = find_cases(Path(job.scans), channels=1)[0]
        volume = read_volume(case.channels, segmenters[0].contract.reader)
        clients = [_Client(segmenter, volume) for segmenter in segmenters]
        threads = [threading.Thread(target=client.send, args=(job.scans_each,)) for client in clients]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
    result = ClientsResult(
        seconds=seconds,
        waits_s=tuple(
            tuple(end - sent for sent, end in zip(client.sent_s, client.ends_s, strict=True)) for client in clients
        ),
        ends_s=tuple(tuple(end - began for end in client.ends_s) for client in clients),
    )
    print(result.model_dump_json(), flush=True)
    return 0


def read_bytes(address: str, count: int) -> float:
    """Return the seconds in which so many bytes come from the port for plain bytes of a benchmark's server."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        buffer = bytearray(1 << 20)
        began = time.perf_counter()
        connection.sendall(str(count).encode())
        left = count
        while left > 0 and (size := connection.recv_into(buffer)):
            left -= size
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
