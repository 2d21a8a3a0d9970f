"""A process that runs the functions of one program, driven line by line so that the programs alternate.

Runs as ``python -m benchmarks.experiments.function_worker PROGRAM``; it reads a job of JSON a line and answers with a
result of JSON a line. Each program has its own process, so that neither loads the other's libraries.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from types import TracebackType

from benchmarks.experiments.function_jobs import Job, JobResult
from benchmarks.results import Program
from ctseg.errors import SetupError


class Worker:
    """A process that runs the functions of one program; use it as a context.

    Args:
        program: Whose functions.
        environment: Added to this process's own.

    Raises:
        SetupError: The process does not start.
    """

    def __init__(self, program: Program, environment: Mapping[str, str]) -> None:
        self._program = program
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the worker ends
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.experiments.function_worker", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )

    def run(self, job: Job) -> JobResult:
        """Run a job.

        Raises:
            SetupError: It failed; the end of the process's output stands in the message.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        line = ""
        try:
            if stdin is not None and stdout is not None:
                stdin.write(job.model_dump_json() + "\n")
                stdin.flush()
                line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace")[-2000:].strip()
            raise SetupError(f"{job.function} of {self._program} failed; the end of its output:\n{text}")
        return JobResult.model_validate_json(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        self._errors.close()


def main() -> int:
    """Do the jobs that stand on standard input until it ends."""
    run_job = _functions_of(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        result = run_job(Job.model_validate_json(line))
        print(result.model_dump_json(), file=answers, flush=True)
    return 0


def _functions_of(program: str) -> Callable[[Job], JobResult]:
    """Load the functions of one program, and nothing of the other."""
    if program == "ctseg":
        from benchmarks.experiments import ctseg_functions

        return ctseg_functions.run_job
    from benchmarks.experiments import nnunet_functions

    return nnunet_functions.run_job


if __name__ == "__main__":
    sys.exit(main())
