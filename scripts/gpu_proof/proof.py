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

from ctseg.compiled.cpus import usable_cpus
from ctseg.deploy.cuda_driver import CudaDriver
from ctseg.errors import SetupError
from ctseg.files.atomic import write_text
from scripts.gpu_proof.rows import JSON_NAME, PAGE_NAME, Host, Proof, Row, read_rows
from scripts.gpu_proof.sections import Section
from scripts.gpu_proof.versions import installed_versions

LEAST_S = 5.0
"""With less time left no section is begun."""
REHEARSAL_PATIENCE = 4
"""How much longer a section may take in a rehearsal, on a CPU."""
ROOT = Path(__file__).parents[2]
PYTHON_PATH = str(ROOT)
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

    for section in plan.sections:
        passed_s = time.monotonic() - began
        print(f"[{passed_s:5.0f} s] {section.name}: {section.what}", flush=True)
        rows += run_section(section, plan, plan.budget_s - passed_s)
        written()
    return written()


def run_section(section: Section, plan: Plan, left_s: float) -> list[Row]:
    """Run one section in a process of its own, and end all that it started.

    Args:
        section: What runs.
        plan: Where.
        left_s: Time that is left for all.

    Returns:
        What it told, and a failed row where it died or took too long.
    """
    if left_s < LEAST_S:
        return [Row(section=section.name, what=section.what, found="the time was over", verdict="not run")]
    own_limit_s = section.limit_s * (REHEARSAL_PATIENCE if plan.rehearse else 1)
    limit_s = min(own_limit_s, left_s)
    told, log = plan.scratch / f"{section.name}.rows", plan.output / f"{section.name}.log"
    told.unlink(missing_ok=True)
    words = [sys.executable, "-m", "scripts.gpu_proof.child", section.module, section.name, str(plan.scratch)]
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*words, *(["--rehearse"] if plan.rehearse else [])],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": PYTHON_PATH},
            start_new_session=True,
        )
        ended = _ended(process, limit_s)  # whatever comes in between, nothing of it stays behind
    rows = read_rows(told)
    print(log.read_text(errors="replace") if not rows else "\n".join(_said(row) for row in rows), flush=True)
    tail = " ".join(log.read_text(errors="replace")[-_TAIL_CHARACTERS:].split())
    if not ended:
        what = f"not done within {limit_s:.0f} s, killed; the end of its log: {tail}"
        if limit_s < own_limit_s:
            what = f"the time was over after {limit_s:.0f} s of it; the end of its log: {tail}"
        rows.append(Row(section=section.name, what="the whole section", found=what, expected="done", verdict="failed"))
    elif process.returncode:
        what = f"ended with status {process.returncode}; the end of its log: {tail}"
        rows.append(Row(section=section.name, what="the whole section", found=what, expected="done", verdict="failed"))
    elif not rows:
        rows.append(
            Row(
                section=section.name,
                what="the whole section",
                found="it told nothing",
                expected="rows",
                verdict="failed",
            )
        )
    else:
        seconds = round(time.monotonic() - begun, 1)
        found = f"{seconds:.0f} s"
        rows.append(Row(section=section.name, what="its time", found=found, verdict="ok", figures={"seconds": seconds}))
    return rows


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
    processors = {
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return Host(
        system=platform.platform(terse=True),
        processor=", ".join(sorted(processors)) or platform.machine(),
        cpus=usable_cpus(),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        python=platform.python_version(),
        gpus=tuple(_gpus_from_afar()),
        versions=installed_versions(),
    )


def _gpus_from_afar() -> list[str]:
    """Ask in a process of its own: looking at a GPU takes memory of it for as long as the process lives."""
    code = "import json; from scripts.gpu_proof.proof import gpus; print(json.dumps(gpus()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    found: list[str] = json.loads(done.stdout) if done.returncode == 0 else []
    return found


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
