"""What tests with a real Triton server share."""

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ctseg.arrays import Patches
from ctseg.serving.process import RunningServer
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import TritonPredictor, connect
from tests.support.toy_models import toy_patches

ANSWER = "return self.respond(self.logits(patches))"
"""Code of a python model that answers what the toy network does."""

_FIRST_MARK = 1000
_marks = itertools.count(_FIRST_MARK)


@contextlib.contextmanager
def connected(server: RunningServer, model: str = "toy", **options: object) -> Iterator[TritonPredictor]:
    """Connect with the server's key."""
    with connect([server.url], model, options=ClientOptions(headers=server.headers, **options)) as predictor:
        yield predictor


def free_port() -> int:
    """Return a port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], object], timeout_s: float = 240.0) -> None:
    """Wait until something has come true; how long that takes is no verdict."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.05)


def holding_code(folder: Path) -> str:
    """Return code of a python model that answers a :class:`HeldPatches` when it is released, others at once."""
    return (
        "import os\n"
        "mark = int(patches[0, 0, 0, 0, 0])\n"
        f"if mark >= {_FIRST_MARK}:\n"
        f"    open(f'{folder}/begun-{{mark}}', 'w').close()\n"
        f"    while not os.path.exists(f'{folder}/released-{{mark}}'):\n"
        "        time.sleep(0.02)\n"
        f"{ANSWER}"
    )


class HeldPatches:
    """A batch that a model with :func:`holding_code` answers when the test says so.

    Args:
        folder: The one that the model knows.
    """

    def __init__(self, folder: Path) -> None:
        self._mark = next(_marks)
        self._folder = folder
        self.patches: Patches = toy_patches(1)
        self.patches[0, 0, 0, 0, 0] = self._mark

    def wait_until_begun(self) -> None:
        """Wait until the model works on it."""
        wait_for((self._folder / f"begun-{self._mark}").exists)

    def release(self) -> None:
        """Let the model answer."""
        (self._folder / f"released-{self._mark}").touch()
