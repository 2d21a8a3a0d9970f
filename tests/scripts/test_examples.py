"""The examples for schedulers: the script for Slurm with processes for tasks, the Jobs for Kubernetes as text."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from ctseg import ServerOptions, embedded_server
from ctseg.cli.exit_codes import INTERRUPTED, SOME_FAILED, TERMINATED, WENT_AWAY, WRONG_SETUP
from ctseg.predict.report import Report
from tests.support.toy_models import write_toy_entry

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "slurm_array.sh"

SBATCH = """
echo "$*" >> sbatch.txt
for word in "$@"; do case $word in
    --array=*) last=${word##*-} ;;
    --output=*|--parsable|--dependency=*) ;;
    *) words+=("$word") ;;
esac; done
if [ -z "${last:-}" ]; then "${words[@]}" > report.txt 2>&1; echo $? > report.status; exit 0; fi
for task in $(seq 0 "$last"); do (
    export SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=$last
    export SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT=$((last + 1)) SLURM_RESTART_COUNT=0
    while true; do
        status=0; "${words[@]}" >> "task$task.txt" 2>&1 || status=$?
        echo $status >> "task$task.status"
        [ -e "requeued_7_$task" ] || break
        rm "requeued_7_$task"; SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
    done
) & done
wait; echo 7
"""
SLURM = {
    "sbatch": SBATCH,
    "srun": 'shift; exec "$@"',
    "squeue": "echo ${STATE:-RUNNING}",
    "scontrol": 'touch "requeued_$2"',
    "ctseg": f'exec {shlex.quote(sys.executable)} -m ctseg "$@"',
}
"""Commands in whose place there is a shell script: a task is a process of this machine."""


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder to work in, and ``bin`` in it with Slurm's commands."""
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        install(tmp_path, name, text)
    return tmp_path


def install(slurm: Path, name: str, text: str) -> None:
    (slurm / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    (slurm / "bin" / name).chmod(0o755)


def run(slurm: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{slurm / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "SLURM_CPUS_PER_TASK": "1", **variables}
    return subprocess.run(
        [str(SCRIPT), *map(str, words)], cwd=slurm, env=environment, capture_output=True, text=True, check=False
    )


def statuses(slurm: Path, task: int) -> list[int]:
    return [int(word) for word in (slurm / f"task{task}.status").read_text().split()]


@pytest.mark.live
def test_an_array_does_all_cases_and_its_last_job_names_what_is_not_done(slurm: Path) -> None:
    scans = slurm / "in"
    scans.mkdir()
    write_toy_entry(slurm / "models")
    for case in range(5):
        for channel in range(2):
            voxels = np.random.default_rng([case, channel]).normal(0, 1, (14, 10, 6)).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), scans / f"c{case}_{channel:04d}.nii.gz")
    with embedded_server(slurm / "models", options=ServerOptions(is_private=False)) as server:
        for bad in (False, True):
            if bad:
                (scans / "c5_0000.nii.gz").write_bytes(b"no scan")
            done = run(slurm, scans, slurm / "out", "toy", server.url, PARTS="3")
            assert done.returncode == 0, done.stderr
            report = Report.model_validate_json((slurm / "out" / "report.json").read_bytes())
            assert report.finished
            parts = {case.case: case.made_by.part for case in report.cases if case.made_by is not None}
            assert parts == {f"c{i}": f"{i % 3}/3" for i in range(6 if bad else 5)}
            assert (slurm / "report.status").read_text() == ("1\n" if bad else "0\n"), (
                slurm / "report.txt"
            ).read_text()
    assert "c5: " in (slurm / "report.txt").read_text()
    assert statuses(slurm, 0) == [0, 0]
    assert statuses(slurm, 2) == [0, SOME_FAILED]


@pytest.mark.parametrize(
    ("status", "state", "expected"),
    [
        (0, "RUNNING", [0]),
        (SOME_FAILED, "RUNNING", [1]),
        (WRONG_SETUP, "RUNNING", [2]),
        (WENT_AWAY, "RUNNING", [3, 3, 3]),
        (TERMINATED, "RUNNING", [143, 143, 143]),
        (TERMINATED, "COMPLETING", [143]),  # somebody has cancelled it
    ],
)
def test_a_task_starts_again_where_that_may_help_and_not_for_ever(
    slurm: Path, status: int, state: str, expected: list[int]
) -> None:
    install(slurm, "ctseg", f"[ $1 = report ] || exit {status}")
    assert run(slurm, "in", "out", "m", "gpu1:8001", PARTS="1", TRIES="2", STATE=state).returncode == 0
    assert statuses(slurm, 0) == expected


def test_the_script_says_how_it_is_used(slurm: Path) -> None:
    done = run(slurm, "in", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "SCANS LABELS MODEL HOST:PORT" in done.stderr


def test_the_indexed_job_counts_its_parts_once_and_tries_again_what_is_worth_it() -> None:
    text = (ROOT / "examples" / "kubernetes_indexed_job.yaml").read_text()
    job, report = (document["spec"] for document in yaml.safe_load_all(text))
    (container,) = job["template"]["spec"]["containers"]
    assert f"--num_parts={job['completions']}" in container["args"]
    assert "--c" in container["args"]
    by_action = {rule["action"]: rule.get("onExitCodes", {}).get("values") for rule in job["podFailurePolicy"]["rules"]}
    assert by_action == {
        "Ignore": None, "FailIndex": [SOME_FAILED, WRONG_SETUP], "Count": [WENT_AWAY, INTERRUPTED, TERMINATED],
    }  # fmt: skip
    assert report["suspend"]
    assert report["template"]["spec"]["containers"][0]["args"][:2] == ["ctseg", "report"]
