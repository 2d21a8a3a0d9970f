"""The floor of a folder: its windows, cut before, sent to the server at the best concurrency, answers dropped.

Runs as ``python -m benchmarks.experiments.replay`` with one job of JSON as its argument, and prints one line of JSON.
"""

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.results import ReplayRun
from ctseg.documents import Document
from ctseg.files.cases import find_cases
from ctseg.files.volume import read_volume
from ctseg.numerics.prepare import prepare
from ctseg.numerics.windows import cut_patches, plan_windows
from ctseg.predict.predictor import PatchPredictor
from ctseg.runs.model import ServedModel, opened

MAX_POOL_BYTES = 2 << 30
"""Windows kept in memory; of larger folders some are sent several times."""


class ReplayJob(Document):
    """What to replay.

    Attributes:
        repository: Model repository.
        model: Name of the model.
        scans: Folder of scans.
        ways: Concurrency and windows in a request (0: as many as the server takes) to try.
        probe_windows: How many windows each way is tried with before the best one sends all.
    """

    repository: str
    model: str
    scans: str
    ways: tuple[tuple[int, int], ...]
    probe_windows: int


class ReplayResult(Document):
    """What came of it."""

    run: ReplayRun
    windows: int


def main() -> int:
    """Run the job in the first argument."""
    job = ReplayJob.model_validate_json(sys.argv[1])
    with opened(ServedModel(job.model, repository=Path(job.repository))) as predictor:
        pool, count = _windows(Path(job.scans), predictor)
        ways = [(concurrency, batch or predictor.max_batch_size) for concurrency, batch in job.ways]
        best = ways[0]
        if len(ways) > 1:
            probe = min(job.probe_windows, count)
            best = min(ways, key=lambda way: _send(predictor, pool, probe, *way))
        wall_s = _send(predictor, pool, count, *best)
    result = ReplayResult(run=ReplayRun(concurrency=best[0], batch=best[1], wall_s=wall_s), windows=count)
    print(result.model_dump_json(), flush=True)
    return 0


def _windows(folder: Path, predictor: PatchPredictor) -> tuple[npt.NDArray[np.float32], int]:
    """Cut the windows of all scans; return those that fit into memory, and how many there are."""
    spec = predictor.spec
    parts: list[npt.NDArray[np.float32]] = []
    held, count = 0, 0
    for case in find_cases(folder, channels=len(spec.channels)):
        volume = read_volume(case.channels, spec.reader)
        prepared = prepare(volume.voxels, volume.spacing_mm, spec)
        plan = plan_windows(prepared.record.network_shape, spec.patch_size)
        window_bytes = 4 * len(spec.channels) * int(np.prod(spec.patch_size))
        kept = min(len(plan), max(0 if parts else 1, (MAX_POOL_BYTES - held) // window_bytes))
        if kept > 0:
            parts.append(cut_patches(prepared.voxels, plan, 0, kept))
            held += parts[-1].nbytes
        count += len(plan)
    return np.concatenate(parts), count


def _send(predictor: PatchPredictor, pool: npt.NDArray[np.float32], count: int, concurrency: int, batch: int) -> float:
    """Send so many windows and drop the answers; return the wall seconds."""
    bounds: Iterator[int] = iter(range(0, count, batch))
    lock = threading.Lock()
    failures: list[Exception] = []

    def work() -> None:
        try:
            while True:
                with lock:
                    first = next(bounds, None)
                if first is None or failures:
                    return
                size = min(batch, count - first)
                begin = first % len(pool)
                begin = min(begin, max(len(pool) - size, 0))
                patches = pool[begin : begin + size]
                if len(patches) < size:
                    patches = np.concatenate(list(itertools.repeat(pool[:1], size)))
                predictor.predict(np.ascontiguousarray(patches))
        except Exception as error:  # raised again below, in the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - started
    if failures:
        raise failures[0]
    return wall_s


if __name__ == "__main__":
    sys.exit(main())
