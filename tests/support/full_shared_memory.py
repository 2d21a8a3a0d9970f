"""Asks a server for whole scans while ``/dev/shm`` is full; prints what came back as JSON.

Run by a test in a mount namespace of its own, whose ``/dev/shm`` is small. Usage: python -m … FOLDER.
"""

import json
import sys
from pathlib import Path

import numpy as np

from ctseg.serving.process import ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.toy_models import toy_spec
from tests.support.whole_scans import ScanClient, write_scannable_entry

PATCH = (32, 64, 64)
LARGE = (640, 128, 128)
"""Its label map is larger than what calls leave to be used again."""
WINDOWS = 80
"""Of the large scan, side by side."""
SMALL_STEPS = tuple(f"--backend-config=python,shm-{what}-byte-size=1048576" for what in ("default", "growth"))
FILLER = Path("/dev/shm/filler")


def write_filling_entry(repository: Path) -> None:
    """Write a network that fills the memory at the first window of one large scan, and at the last of the next."""
    write_scannable_entry(repository, toy_spec(patch_size=PATCH, max_batch_size=1))
    (repository / "toy" / "1" / "model.py").write_text(
        f"""
import os
import shutil
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.count = 0

    def execute(self, requests):
        return [self.answer() for _ in requests]

    def answer(self):
        self.count += 1
        if self.count in (1, 1 + {WINDOWS}):
            with open({str(FILLER)!r}, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage("/dev/shm").free)
        logits = np.zeros((1, 3, *{PATCH}), np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("logits", logits)])
"""
    )


def main(folder: Path) -> None:
    """Serve, ask, and print."""
    write_filling_entry(folder / "models")
    said: dict[str, str] = {}
    with embedded_server(folder / "models", options=ServerOptions(prove=False, extra_arguments=SMALL_STEPS)) as server:
        client = ScanClient(server)

        def ask(what: str, shape: tuple[int, int, int]) -> None:
            said[what] = client.send(np.zeros((2, *shape), np.int16), tile_step_size="1").outcome

        ask("calls", LARGE)
        FILLER.unlink()
        ask("an answer", LARGE)
        ask("a small one while it is full", (8, 8, 8))
        ask("a request", (1280, 128, 128))
        ask("a small one after it", (8, 8, 8))
        FILLER.unlink()
        ask("when there is room again", LARGE)
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
