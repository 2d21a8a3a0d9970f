"""The parts of the proof, one after the other, each in a process of its own that may die or hang."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil

from benchmarks.machine import installed_versions, processor_name
from ctseg.compiled.cpus import usable_cpus
from ctseg.deploy.cuda_driver import CudaDriver
from ctseg.errors import SetupError
from ctseg.files.atomic import write_text
from scripts.gpu_proof.rows import JSON_NAME, PAGE_NAME, Host, Proof, Row, read_rows, without_machine_paths
from scripts.gpu_proof.sections import Section
from scripts.gpu_proof.versions import PACKAGES

LEAST_S = 5.0
"""With less time left no section is begun."""
REHEARSAL_PATIENCE = 4
"""How much longer a section may take in a rehearsal, on a CPU."""
ROOT = Path(__file__).parents[2]
PYTHON_PATH = str(ROOT)
GPU_QUESTION_S = 30.0
_TAIL_CHARACTERS = 1500
_MOST_GPUS = 16


@dataclass(frozen=True)
class Plan:
    """What is to be proven, and in how much time.

    Attributes:
        sections: In their order.
        output: Folder for the results and the sections' logs.
        scratch: Folder for what the sections make and hand on.
        rehearse: On the CPU, with small sizes.
        budget_s: For all sections together.
    """

    sections: Sequence[Section]
    output: Path
    scratch: Path
    rehearse: bool
    budget_s: float


def prove(plan: Plan) -> Proof:
    """Run the sections; write ``gpu.json`` and ``gpu.md`` after each.

    A section that fails, dies or takes too long never stops the others.

    Returns:
        All that was found.

    Raises:
        OutputError: The results cannot be written.
    """
    began, started = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    host = this_host()
    rows: list[Row] = []

    def written() -> Proof:
        proof = Proof(
            started=started,
            seconds=round(time.monotonic() - began, 1),
            rehearsal=plan.rehearse,
            host=host,
            rows=tuple(rows),
        )
        write_text(plan.output / JSON_NAME, proof.model_dump_json(indent=2) + "\n")
        write_text(plan.output / PAGE_NAME, proof.to_markdown())
        return proof

    limits = Limits(plan)
    for section in plan.sections:
        passed_s = time.monotonic() - began
        print(f"[{passed_s:5.0f} s] {section.name}: {section.what}", flush=True)
        limit_s = limits.of(section, plan.budget_s - passed_s)
        if limit_s < LEAST_S:
            rows.append(Row(section=section.name, what=section.what, found="the time was over", verdict="not run"))
            written()
            continue
        outcome = None
        try:
            outcome = run_section(section, plan, limit_s)
        finally:  # also where this process is ended meanwhile
            told = read_rows(told_by(section, plan))
            rows += [*told, verdict_of(section, plan, told, outcome)]
            written()
    return written()


@dataclass(frozen=True)
class Limits:
    """How long each part may take: its own limit, and never what is kept for those after it."""

    plan: Plan

    @property
    def patience(self) -> float:
        """By how much the parts' own limits are stretched."""
        return REHEARSAL_PATIENCE if self.plan.rehearse else 1

    def own(self, section: Section) -> float:
        """Return the part's own limit, in seconds."""
        return section.limit_s * self.patience

    def of(self, section: Section, left_s: float) -> float:
        """Return how long a part may take when so much time is left for all, in seconds; perhaps nothing.

        A budget smaller than all that is to be kept is shared out in proportion.
        """
        sections = list(self.plan.sections)
        kept_s = sum(later.least_s for later in sections[sections.index(section) + 1 :])
        all_kept_s = sum(every.least_s for every in sections)
        share = min(1.0, self.plan.budget_s / all_kept_s) if all_kept_s else 1.0
        return min(self.own(section), left_s - share * kept_s)


@dataclass(frozen=True)
class Outcome:
    """How a part's process ended.

    Attributes:
        limit_s: How long it might take.
        seconds: How long it took.
        status: Its exit status; None where it was killed at the limit.
    """

    limit_s: float
    seconds: float
    status: int | None


def told_by(section: Section, plan: Plan) -> Path:
    """Return the file in which a part tells its rows."""
    return plan.scratch / f"{section.name}.rows"


def _log_of(section: Section, plan: Plan) -> Path:
    return plan.output / f"{section.name}.log"


def run_section(section: Section, plan: Plan, limit_s: float) -> Outcome:
    """Run one section in a process of its own, and end all that it started.

    Args:
        section: What runs.
        plan: Where.
        limit_s: After this it is killed.
    """
    told_by(section, plan).unlink(missing_ok=True)
    words = [sys.executable, "-m", "scripts.gpu_proof.child", section.module, section.name, str(plan.scratch)]
    begun = time.monotonic()
    with _log_of(section, plan).open("wb") as file:
        process = subprocess.Popen(
            [*words, str(limit_s), *(["--rehearse"] if plan.rehearse else [])],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": PYTHON_PATH},
            start_new_session=True,
        )
        ended = _ended(process, limit_s)  # whatever comes in between, nothing of it stays behind
    return Outcome(limit_s, round(time.monotonic() - begun, 1), process.returncode if ended else None)


def verdict_of(section: Section, plan: Plan, told: Sequence[Row], outcome: Outcome | None) -> Row:
    """Say how a part ended, and print what it told.

    Args:
        section: What ran.
        plan: Where.
        told: Its rows.
        outcome: None where the whole proof was stopped while it ran.
    """
    file = _log_of(section, plan)
    log = file.read_text(errors="replace") if file.is_file() else ""
    print("\n".join(_said(row) for row in told) if told else log, flush=True)
    tail = without_machine_paths(" ".join(log[-_TAIL_CHARACTERS:].split()))
    expected = "done"
    if outcome is None:
        found = f"the proof was stopped; the end of its log: {tail}"
    elif outcome.status is None and outcome.limit_s < Limits(plan).own(section):
        found = f"the time was over after {outcome.limit_s:.0f} s of it; the end of its log: {tail}"
    elif outcome.status is None:
        found = f"not done within {outcome.limit_s:.0f} s, killed; the end of its log: {tail}"
    elif outcome.status:
        found = f"ended with status {outcome.status}; the end of its log: {tail}"
    elif not told:
        found, expected = "it told nothing", "rows"
    else:
        seconds = outcome.seconds
        found = f"{seconds:.0f} s"
        return Row(section=section.name, what="its time", found=found, verdict="ok", figures={"seconds": seconds})
    return Row(section=section.name, what="the whole section", found=found, expected=expected, verdict="failed")


def _said(row: Row) -> str:
    return f"  {row.verdict:9}  {row.what}: {row.found[:300]}"


def _ended(process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    """Wait, then kill what is left of it: its group, and children that made groups of their own; False if it hung."""
    family: set[psutil.Process] = set()
    give_up_at = time.monotonic() + limit_s
    try:
        while (status := process.poll()) is None and time.monotonic() < give_up_at:
            family |= _descendants(process.pid)
            time.sleep(0.2)
    finally:
        family |= _descendants(process.pid)
        process.kill()
        process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()  # psutil looks first whether the number is still that process
        with contextlib.suppress(ProcessLookupError):  # nothing of its group may be left
            os.killpg(process.pid, signal.SIGKILL)
    return status is not None


def _descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def this_host() -> Host:
    """Return this machine, its GPUs and the versions of what is installed."""
    found, problem = _gpus_from_afar()
    return Host(
        system=platform.platform(terse=True),
        processor=processor_name(),
        cpus=usable_cpus(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        python=platform.python_version(),
        gpus=found,
        versions=installed_versions(PACKAGES),
        gpus_problem=problem,
    )


def _gpus_from_afar() -> tuple[tuple[str, ...], str]:
    """Ask in a process of its own: looking at a GPU takes memory of it for as long as the process lives.

    Returns:
        The GPUs; and why nobody knows them, empty where the driver was asked.
    """
    code = "import json; from scripts.gpu_proof.proof import gpus; print(json.dumps(gpus()))"
    words = [sys.executable, "-c", code]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=GPU_QUESTION_S, check=False)
        if done.returncode == 0:
            return tuple(json.loads(done.stdout.splitlines()[-1])), ""  # a library may have said something before
        said = done.stderr.strip()[-_TAIL_CHARACTERS:]
        problem = f"the question ended with status {done.returncode}: {said}"
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        problem = f"the question failed: {type(error).__name__}: {error}"
    return (), without_machine_paths(" ".join(problem.split()))


def gpus() -> list[str]:
    """Return what GPUs the driver shows; none without a driver."""
    found: list[str] = []
    for number in range(_MOST_GPUS):
        try:
            gpu = CudaDriver(number).gpu()
        except SetupError:
            break
        found.append(
            f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_bytes / 2**30:.0f} GiB, "
            f"driver for CUDA {gpu.driver}"
        )
    return found
