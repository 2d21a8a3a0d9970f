"""Commands that run as processes of their own, to be killed, stopped and joined: a server, and folder runs."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import psutil
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ctseg.predict.outcomes import MEMORY_NAME, Outcome, OutcomeStore
from ctseg.predict.report import REPORT_NAME, Report
from tests.support.live_triton import free_port, wait_for

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MODEL = "sarcoma"
CTSEG = (sys.executable, "-m", "ctseg")


@dataclass
class Command:
    """A command that runs.

    Attributes:
        process: Its process.
        log: File of what it has printed.
    """

    process: "subprocess.Popen[bytes]"
    log: Path

    @classmethod
    def start(cls, words: Sequence[str | Path], log: Path, *, prefix: Sequence[str] = ()) -> "Command":
        """Start ``ctseg`` with such words; ``prefix`` is a command that runs it, such as ``ip netns exec``."""
        with log.open("ab") as file:
            process = subprocess.Popen([*prefix, *CTSEG, *map(str, words)], stdout=file, stderr=subprocess.STDOUT)
        return cls(process, log)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal, and wait for the end; return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(timeout=500)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Server:
    """``ctseg serve`` with the demo's model on one port, however often it is started.

    Args:
        folder: For its log.
        prefix: Command that runs it.
    """

    def __init__(self, folder: Path, *, prefix: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.url = f"127.0.0.1:{self.port}"
        self._log = folder / f"server-{self.port}.log"
        self._prefix = tuple(prefix)
        self.command = self._start()

    def _start(self) -> Command:
        words = ["serve", "--repository", REPOSITORY, "--grpc_port", str(self.port)]
        return Command.start(words, self._log, prefix=self._prefix)

    def wait_until_ready(self) -> None:
        """Wait until the model answers; not for a server behind a ``prefix``, which may be out of reach."""
        wait_for(self._is_ready)

    def _is_ready(self) -> bool:
        assert not self.command.has_ended, self.command.said
        try:
            with InferenceServerClient(self.url) as client:
                return bool(client.is_model_ready(MODEL))
        except InferenceServerException:
            return False

    @property
    def processes(self) -> list[psutil.Process]:
        """All its processes: the supervisor, tritonserver, the python backend's."""
        supervisor = psutil.Process(self.command.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server by a signal, and start it again on its port."""
        self.command.kill(number)
        wait_for(self._port_is_free)  # the killed supervisor's tritonserver ends a moment later
        self.command = self._start()

    def _port_is_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
            return True

    def close(self) -> None:
        """End the server."""
        if not self.command.has_ended:
            self.command.kill(signal.SIGTERM)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that is ready, for the time of the block."""
    server = Server(folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


@dataclass(frozen=True)
class Folder:
    """A folder of scans, and what an undisturbed run makes of it.

    Attributes:
        scans: The input folder.
        undisturbed: The output folder of that run.
    """

    scans: Path
    undisturbed: Path

    @property
    def names(self) -> tuple[str, ...]:
        """Of the cases."""
        return tuple(sorted(path.name.removesuffix("_0000.nii.gz") for path in self.scans.iterdir()))

    def words(self, output: Path, *more: str) -> list[str | Path]:
        """Return the words of a run over the scans."""
        return ["predict", "-i", self.scans, "-o", output, "-m", MODEL, "--disable_tta", *more]

    def start(self, output: Path, *more: str, prefix: Sequence[str] = ()) -> Command:
        """Start a run over the scans."""
        number = len(list(output.parent.glob(f"{output.name}-*.log")))
        return Command.start(self.words(output, *more), output.parent / f"{output.name}-{number}.log", prefix=prefix)

    def assert_visible_files_are_right(self, output: Path) -> None:
        """Check that whatever label map or probabilities are there are whole, and those of an undisturbed run."""
        for path in output.glob("*.nii.gz"):
            assert np.array_equal(labels_of(path), labels_of(self.undisturbed / path.name)), path
        for path in output.glob("*.npz"):
            with np.load(path) as found, np.load(self.undisturbed / path.name) as expected:
                assert np.array_equal(found["probabilities"], expected["probabilities"]), path

    def assert_is_done(self, output: Path) -> None:
        """Check that every case is done, that its files are right, and that nothing else is left."""
        report = Report.model_validate_json((output / REPORT_NAME).read_bytes())
        assert {case.case: case.status for case in report.cases} == dict.fromkeys(self.names, "ok"), report
        assert report.finished
        assert {path.name for path in output.glob("*.nii.gz")} == {f"{name}.nii.gz" for name in self.names}
        self.assert_visible_files_are_right(output)
        assert leftovers_in(output) == []


def labels_of(path: Path) -> npt.NDArray[np.uint8]:
    """Return the voxels of a label map."""
    return np.asarray(nib.load(path).dataobj)


def outcomes_in(output: Path) -> Mapping[str, Outcome]:
    """Return the outcomes in an output folder by case."""
    return {outcome.case: outcome for _, outcome in OutcomeStore(output).all() if outcome is not None}


def runs_in(output: Path) -> list[str]:
    """Return the runs of an output folder that have not ended, or were killed."""
    folder = output / MEMORY_NAME / "runs"
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def leftovers_in(output: Path) -> list[str]:
    """Return what runs that have ended have left: claims, folders of runs, hidden files."""
    memory = output / MEMORY_NAME
    left = [path for name in ("claims", "runs") if (memory / name).is_dir() for path in (memory / name).iterdir()]
    hidden = [path for path in output.glob(".*") if path.name != MEMORY_NAME]
    return [path.name for path in (*left, *hidden)]


def cgroup_of_memory(name: str, limit_bytes: int) -> Path | None:
    """Make a control group with a limit of memory; None where this machine does not let the tests."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / name
    try:
        group.mkdir()
        (group / limit).write_text(str(limit_bytes))
    except OSError:
        return None
    return group


def may(*command: str) -> bool:
    """Return whether a command is here and does what it says; root's, most of them."""
    if os.geteuid() != 0 or shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
