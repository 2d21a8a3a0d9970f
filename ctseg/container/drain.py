"""Lets a container finish its whole scans before it is stopped: Triton does not wait for them after SIGTERM.

No scan is taken in any more, and this ends when none waits and none is worked on, or at a time limit. What an
orchestrator runs before it stops the container: ``python -I -m ctseg.container.drain SECONDS``.
"""

import http.client
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ctseg.serving.whole_scan.stopping import stopping_file

VIEW = Path("/tmp/ctseg/models")  # noqa: S108 (see the entry point)
METRICS_PORT = 8002
_PERIOD_S = 1.0
_GAUGES = re.compile(r"^ctseg_scans_(?:waiting|running)\{[^}]*\} (\S+)$", re.MULTILINE)


def unfinished_scans(port: int = METRICS_PORT) -> int:
    """Return how many scans wait or are worked on; none where the server does not answer.

    Args:
        port: Of Triton's metrics.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
    return int(sum(float(value) for value in _GAUGES.findall(text)))


def drain(view: Path, timeout_s: float, count: Callable[[], int] = unfinished_scans, pause_s: float = _PERIOD_S) -> int:
    """Take no more scans in, and wait for those that are there.

    Args:
        view: The repository that is served.
        timeout_s: Longest wait, in seconds.
        count: Says how many there are.
        pause_s: Between two looks, in seconds.

    Returns:
        How many are left.
    """
    stopping_file(view).touch()
    until = time.monotonic() + timeout_s
    while (left := count()) and time.monotonic() < until:
        time.sleep(pause_s)
    return left


if __name__ == "__main__":
    remaining = drain(VIEW, float(sys.argv[1]))
    print(f"{remaining} scans are left" if remaining else "no scan is left")
