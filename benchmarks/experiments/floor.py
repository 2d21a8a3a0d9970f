"""The floor: a folder by ``ctseg predict`` beside the replay of its windows, in turns."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.bench import Bench
from benchmarks.experiments.commands import ReadyNetwork
from benchmarks.experiments.replay import ReplayJob, ReplayResult
from benchmarks.models import write_sleeper
from benchmarks.record import Record
from benchmarks.results import Floor, ProgramRun
from benchmarks.scans import megavoxels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Subject:
    """A model whose folder is compared with its windows.

    Attributes:
        ready: The network itself, or the one whose patches a sleeping model takes.
        sleep_ms: Milliseconds a window of a model that only sleeps; None for the network itself.
        copies: How often each scan is in the folder.
    """

    ready: ReadyNetwork
    sleep_ms: float | None
    copies: int


def measure_floors(bench: Bench, record: Record, ready: Sequence[ReadyNetwork]) -> None:
    """Measure models that sleep, as a GPU elsewhere would, and the networks themselves."""
    if not ready:
        return
    most_windows = ready[-1]  # the last has the smallest patch
    for sleep_ms, copies in bench.sizes.sleeps_ms:
        subject = _Subject(most_windows, sleep_ms, copies)
        record.step(f"floor, {sleep_ms:g} ms a window", partial(_floor, bench, subject), record.floor.append)
    for network in ready:
        subject = _Subject(network, None, bench.sizes.real_copies)
        record.step(f"floor, {network.network.name}", partial(_floor, bench, subject), record.floor.append)


def _floor(bench: Bench, subject: _Subject) -> Floor:
    sizes, scans = bench.sizes, bench.scans.given
    model = subject.ready.network.name
    if subject.sleep_ms is not None:
        model = write_sleeper(bench.repository, model, subject.sleep_ms)
    folder = bench.link(scans, copies=subject.copies)
    job = ReplayJob(
        repository=str(bench.repository),
        model=model,
        scans=str(folder),
        ways=sizes.ways,
        probe_windows=sizes.probe_windows,
    )
    replays: list[ReplayResult] = []
    folders: list[ProgramRun] = []
    for _ in range(sizes.floor_repeats):
        measured = bench.child("benchmarks.experiments.replay", job)
        replays.append(ReplayResult.model_validate_json(measured.output.strip().splitlines()[-1]))
        folders.append(bench.predict_by_ctseg(model, folder).run)
    floor = Floor(
        model=model,
        sleep_ms=subject.sleep_ms,
        scans=len(scans) * subject.copies,
        megavoxels=megavoxels(scans) * subject.copies,
        windows=replays[-1].windows,
        replays=tuple(replay.run for replay in replays),
        folders=tuple(folders),
        startup_client_cpu_s=median(run.client_cpu_s for run in subject.ready.startups["ctseg"]),
    )
    log.info("    replay %.2f s, folder %.2f s: %.3f", floor.replay_s, floor.folder_s, floor.ratio)
    return floor
