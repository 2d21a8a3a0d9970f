"""A real ``tritonserver`` on this machine, on loopback ports, for as long as it is needed.

The server comes from the nvidia-pytriton wheel (whose Python package is not imported) or from the
PATH. The wheel's release, 2.51 of October 2024, is older than many security fixes: it listens on
loopback only, never for production, and every protocol asks for a key that only this process knows.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np

from ctseg.errors import CtsegError, SetupError
from ctseg.serving.repository import CONFIG_NAME, list_models
from ctseg.triton import shared_memory
from ctseg.triton.configuration import config_from_text, spec_parameters
from ctseg.triton.predictor import ClientOptions, connect, is_ready

log = logging.getLogger(__name__)

SHM_PREFIX = "ctseg-server-"
"""Begin of the names of the server's shared memory (between the server and its python backend)."""
_LOOPBACK = "127.0.0.1"
_SUPERVISOR = Path(__file__).parent / "supervisor.py"
_STOP_TIMEOUT_S = 20.0
_ATTEMPTS_ON_PORTS = 4
_LOG_TAIL_LINES = 40
_LOG_LINE_CHARACTERS = 500
_INSTALL = "install it with `pip install --no-deps nvidia-pytriton` (Linux x86-64), or put tritonserver on the PATH"
_CLOSED = ("model-repository", "trace", "logging")
_OPEN_WITH_KEY = ("health", "metadata", "inference", "shared-memory", "model-config", "statistics")


@dataclass(frozen=True)
class RunningServer:
    """A server that is up.

    Attributes:
        url: ``host:port`` of its gRPC endpoint.
        headers: What a client must send; keep them secret. Empty for an open server.
        pid: Of the tritonserver process.
        log: Its log file; gone with the server.
        models: What it serves.
        metrics_url: Where its metrics are, None without them.
    """

    url: str
    pid: int
    log: Path
    models: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    metrics_url: str | None = None


@dataclass(frozen=True)
class Installation:
    """Where a tritonserver is on this machine.

    Attributes:
        binary: The program.
        library_path: Folders for the dynamic linker.
        backends: Folder of its backends, None for the program's own default.
        stub: The python backend's stub for this Python, None where the backends bring their own.
        source: Where it was found, for messages.
    """

    binary: Path
    library_path: tuple[Path, ...] = ()
    backends: Path | None = None
    stub: Path | None = None
    source: str = ""


def find_server() -> Installation:
    """Find a tritonserver: on the PATH, else in the nvidia-pytriton wheel.

    Raises:
        SetupError: Not on Linux, or none is installed, or it has no stub for this Python.
    """
    if platform.system() != "Linux":
        raise SetupError(
            f"the embedded server runs on Linux only, this is {platform.system()}: "
            "segment through a server elsewhere with --url host:8001"
        )
    if on_path := shutil.which("tritonserver"):
        return Installation(binary=Path(on_path).resolve(), source=on_path)
    try:
        distribution = importlib.metadata.distribution("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError as error:
        raise SetupError(f"no tritonserver on this machine: {_INSTALL}") from error
    root = Path(str(distribution.locate_file("pytriton"))) / "tritonserver"
    libraries = Path(str(distribution.locate_file("nvidia_pytriton.libs")))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    binary = root / "bin" / "tritonserver"
    stub = root / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not binary.is_file():
        raise SetupError(f"nvidia-pytriton is installed, but {binary} is missing: {_INSTALL}")
    if not stub.is_file():
        known = sorted(path.name for path in (root / "python_backend_stubs").glob("*"))
        raise SetupError(f"nvidia-pytriton has no python backend for Python {python}, only for {', '.join(known)}")
    return Installation(
        binary=binary,
        library_path=(libraries, _libpython_folder()),
        backends=root / "backends",
        stub=stub,
        source=f"nvidia-pytriton {distribution.version}",
    )


def supported_flags(installation: Installation) -> frozenset[str]:
    """Return the command-line flags that this tritonserver knows, such as ``--allow-client-shm``.

    Raises:
        SetupError: The program does not start.
    """
    with tempfile.TemporaryDirectory(prefix="ctseg-help-") as folder:
        binary = _executable(installation.binary, Path(folder))
        try:
            result = subprocess.run(
                [str(binary), "--help"],
                env=_environment(installation),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SetupError(f"{installation.source}: {installation.binary} does not start: {error}") from error
    text = result.stdout + result.stderr
    flags = {word.rstrip(",") for line in text.splitlines() for word in line.split()[:1] if word.startswith("--")}
    if "--model-repository" not in flags:
        raise SetupError(f"{installation.source}: `{installation.binary} --help` fails: {text.strip()[-2000:]}")
    return frozenset(flags)


@contextlib.contextmanager
def embedded_server(
    repository: Path,
    models: Sequence[str] | None = None,
    *,
    is_private: bool = True,
    watch: bool = False,
    grpc_port: int | None = None,
    metrics_port: int | None = None,
    start_timeout_s: float = 300.0,
    extra_arguments: Sequence[str] = (),
    options: ClientOptions | None = None,
    prove: bool = True,
) -> Iterator[RunningServer]:
    """Run a tritonserver on loopback while the ``with`` block runs.

    It is stopped whatever ends the block: its end, an exception, Ctrl-C, SIGTERM; and also when this
    process is killed. No process, no shared memory and no file of it stays behind.

    Args:
        repository: Model repository; only read.
        models: Models to serve; None serves all of them.
        is_private: Let every protocol ask for a key that stands in the result's ``headers``, and load the
            newest version only; otherwise only shared memory, model control, trace and logging are closed.
        watch: Serve new versions while running (Triton's poll mode); ``models`` must be None.
        grpc_port: A fixed port; None takes a free one.
        metrics_port: Serve metrics on this loopback port; None serves none.
        start_timeout_s: Longest time until the server is ready, in seconds.
        extra_arguments: Further arguments of tritonserver.
        options: How to reach the server, where ``extra_arguments`` made it ask for TLS.
        prove: Run each model once before the block begins, and check that the answer is there and finite.

    Yields:
        The running server.

    Raises:
        SetupError: No tritonserver, an unusable repository, or the server does not start (with the end
            of its log).
        ServerError: A model does not answer.
    """
    installation = find_server()
    names = tuple(models) if models is not None else tuple(list_models(repository))
    for name in names:
        if not (repository / name / CONFIG_NAME).is_file():
            raise SetupError(
                f"model repository {repository} has no model {name!r}, only {', '.join(list_models(repository))}"
            )
    shared_memory.sweep(SHM_PREFIX)
    with _sigterm_as_exit(), contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(_private_folder()))
        served = (
            repository.resolve() if watch else _linked_repository(repository, names, folder, newest_only=is_private)
        )
        launch = _Launch(installation, folder, served, is_private, watch, metrics_port, tuple(extra_arguments), options)
        server, process = launch.start(names, grpc_port, time.monotonic() + start_timeout_s)
        stack.callback(_stop, process)
        log.info("tritonserver (%s) serves %s on %s", installation.source, ", ".join(names), server.url)
        if prove:
            _prove(server, repository, names, options)
        yield server


def run_server(
    repository: Path,
    *,
    watch: bool = False,
    grpc_port: int = 8001,
    metrics_port: int | None = None,
    start_timeout_s: float = 300.0,
) -> int:
    """Serve a model repository on loopback until Ctrl-C or SIGTERM; what ``ctseg serve`` does.

    Args:
        repository: Model repository; only read.
        watch: Serve new versions while running.
        grpc_port: Port of the gRPC endpoint; 0 takes a free one.
        metrics_port: Port of the metrics; None serves none.
        start_timeout_s: Longest time until the server is ready, in seconds.

    Returns:
        0 when it was asked to stop.

    Raises:
        SetupError: See :func:`embedded_server`; or the server ended by itself.
    """
    stopped = threading.Event()
    try:
        with embedded_server(
            repository,
            is_private=False,
            watch=watch,
            grpc_port=grpc_port or None,
            metrics_port=metrics_port,
            start_timeout_s=start_timeout_s,
        ) as server:
            print(f"serving {', '.join(server.models)} on {server.url} (loopback only; Ctrl-C stops)", flush=True)
            while not stopped.wait(0.5):
                if not Path(f"/proc/{server.pid}").exists():
                    raise SetupError(f"tritonserver ended by itself; the end of its log:\n{_tail(server.log)}")
    except (KeyboardInterrupt, SystemExit):
        print("stopped", flush=True)
    return 0


@dataclass(frozen=True)
class _Launch:
    """All that a start needs but the ports."""

    installation: Installation
    folder: Path
    repository: Path
    is_private: bool
    watch: bool
    metrics_port: int | None
    extra_arguments: tuple[str, ...]
    options: ClientOptions | None

    def start(
        self, names: tuple[str, ...], grpc_port: int | None, deadline: float
    ) -> "tuple[RunningServer, subprocess.Popen[str]]":
        flags = supported_flags(self.installation)
        binary = _executable(self.installation.binary, self.folder)
        backends = _backends(self.installation, self.folder)
        key = secrets.token_hex(16)
        for attempt in range(_ATTEMPTS_ON_PORTS):
            port = grpc_port or _free_port()
            log_path = self.folder / f"tritonserver-{attempt}.log"
            command = [str(binary), *self._arguments(flags, backends, port, key)]
            job = {
                "command": command,
                "environment": {**_environment(self.installation), "TMPDIR": str(self.folder)},
                "log": str(log_path),
                "folder": str(self.folder),
                "shm_prefix": f"{SHM_PREFIX}{shared_memory.owner_tag().split('-')[0]}-",
                # a private server has no work but ours, which is done; others may have some in flight
                "stop_timeout_s": 0.0 if self.is_private else _STOP_TIMEOUT_S,
            }
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C in a terminal reaches this process only
            )
            try:
                assert process.stdin is not None  # noqa: S101 - a pipe was asked for
                assert process.stdout is not None  # noqa: S101 - a pipe was asked for
                process.stdin.write(json.dumps(job) + "\n")  # not as an argument: those are public
                process.stdin.flush()
                started = json.loads(process.stdout.readline() or "{}")
                headers = {"triton-grpc-protocol-ctseg": key} if self.is_private else {}
                server = RunningServer(
                    url=f"{_LOOPBACK}:{port}",
                    pid=int(started.get("pid", 0)),
                    log=log_path,
                    models=names,
                    headers=headers,
                    metrics_url=None
                    if self.metrics_port is None
                    else f"http://{_LOOPBACK}:{self.metrics_port}/metrics",
                )
                if self._wait_until_ready(server, process, deadline):
                    return server, process
            except BaseException:
                _stop(process)
                raise
            text = _tail(log_path)
            _stop(process)
            if grpc_port is None and "Socket" in text and "already in use" in text and attempt + 1 < _ATTEMPTS_ON_PORTS:
                continue
            raise SetupError(
                f"tritonserver ({self.installation.source}) does not start with model repository {self.repository}; "
                f"the end of its log:\n{text}"
            )
        raise SetupError(f"tritonserver found no free port in {_ATTEMPTS_ON_PORTS} attempts")

    def _wait_until_ready(self, server: RunningServer, process: "subprocess.Popen[str]", deadline: float) -> bool:
        while process.poll() is None:
            if is_ready(server.url, _client_options(server, self.options)):
                return True
            if time.monotonic() > deadline:
                raise SetupError(
                    f"tritonserver ({self.installation.source}) was not ready in time; the end of its log:\n"
                    f"{_tail(server.log)}"
                )
            time.sleep(0.05)
        return False

    def _arguments(self, flags: frozenset[str], backends: Path | None, port: int, key: str) -> list[str]:
        arguments = [
            f"--model-repository={self.repository}",
            f"--model-control-mode={'poll' if self.watch else 'none'}",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            "--allow-http=false",
            f"--grpc-address={_LOOPBACK}",
            f"--grpc-port={port}",
            "--exit-timeout-secs=10",
            "--backend-config=python,shm-region-prefix-name={shm_prefix}",
            "--backend-config=python,shm-default-byte-size=16777216",
            "--backend-config=python,shm-growth-byte-size=67108864",
            *self.extra_arguments,
        ]
        if self.watch:
            arguments.append("--repository-poll-secs=2")
        if self.metrics_port is None:
            arguments.append("--allow-metrics=false")
        else:
            arguments += [f"--metrics-address={_LOOPBACK}", f"--metrics-port={self.metrics_port}"]
        if backends is not None:
            arguments.append(f"--backend-directory={backends}")
        if self.is_private:
            arguments.append(f"--grpc-restricted-protocol={','.join(_OPEN_WITH_KEY)}:ctseg={key}")
            arguments.append(f"--grpc-restricted-protocol={','.join(_CLOSED)}:closed={secrets.token_hex(16)}")
            if "--allow-client-shm" in flags:
                arguments.append("--allow-client-shm=true")
        else:
            arguments.append(
                f"--grpc-restricted-protocol={','.join((*_CLOSED, 'shared-memory'))}:closed={secrets.token_hex(16)}"
            )
        if "--allow-gpu-metrics" in flags and self.metrics_port is None:
            arguments.append("--allow-gpu-metrics=false")
        return arguments


def _prove(server: RunningServer, repository: Path, names: tuple[str, ...], options: ClientOptions | None) -> None:
    """Run each model that carries a spec once; a server can be ready and answer nothing."""
    for name in names:
        path = repository / name / CONFIG_NAME
        config = config_from_text(path.read_text(encoding="utf-8"), source=str(path))
        if not spec_parameters(config):
            log.warning("%s carries no spec: it is served, but was not tried", name)
            continue
        try:
            with connect([server.url], name, options=_client_options(server, options)) as predictor:
                shape = (1, len(predictor.spec.channels), *predictor.spec.patch_size)
                patches = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
                logits = predictor.predict(patches)
                if not np.isfinite(logits).all():
                    raise SetupError(f"{name}: the model answers NaN or infinity for a random patch: build it again")
                del logits
        except CtsegError as error:
            raise type(error)(f"{error}\nthe end of tritonserver's log:\n{_tail(server.log)}") from error


def _client_options(server: RunningServer, options: ClientOptions | None) -> ClientOptions:
    return dataclasses.replace(
        options or ClientOptions(), headers={**(options.headers if options else {}), **server.headers}
    )


def _stop(process: "subprocess.Popen[str]") -> None:
    """Ask the supervisor to stop the server, and wait."""
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT_S + 15)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel then kills the server
        process.wait()
    process.stdout.close()


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ctseg-server-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _linked_repository(repository: Path, names: Sequence[str], folder: Path, *, newest_only: bool) -> Path:
    """Make a repository of links to the chosen models, so that the server looks at nothing else."""
    linked = folder / "models"
    linked.mkdir()
    for name in names:
        model = (repository / name).resolve()
        versions = [path for path in model.iterdir() if path.is_dir() and path.name.isdigit()]
        if newest_only:
            versions = sorted(versions, key=lambda path: int(path.name))[-1:]
        (linked / name).mkdir()
        for path in (model / CONFIG_NAME, *versions):
            (linked / name / path.name).symlink_to(path)
    return linked


def _executable(path: Path, folder: Path) -> Path:
    """Return a path at which the file may be run: itself, or a copy in the folder."""
    if os.access(path, os.X_OK):
        return path
    copy = folder / path.name
    if not copy.exists():
        shutil.copyfile(path, copy)
        copy.chmod(stat.S_IRWXU)
    return copy


def _backends(installation: Installation, folder: Path) -> Path | None:
    """Put the python backend together in the folder: the wheel keeps its stubs apart, one for each Python."""
    if installation.backends is None or installation.stub is None:
        return installation.backends
    backends = folder / "backends"
    python = backends / "python"
    python.mkdir(parents=True)
    for path in (installation.backends / "python").iterdir():
        if path.is_file():
            (python / path.name).symlink_to(path)
    stub = python / installation.stub.name
    shutil.copyfile(installation.stub, stub)
    stub.chmod(stat.S_IRWXU)
    return backends


def _environment(installation: Installation) -> dict[str, str]:
    """The server's environment. The python backend's stub takes its packages from the first python3 on the PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_PRELOAD"))}
    folders = [str(path) for path in installation.library_path if str(path)]
    if old := kept.get("LD_LIBRARY_PATH"):
        folders.append(old)
    kept["LD_LIBRARY_PATH"] = ":".join(folders)
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept.get('PATH', '/usr/bin:/bin')}"
    kept["PYTHONDONTWRITEBYTECODE"] = "1"
    kept["PYTHONNOUSERSITE"] = "1"
    return kept


def _libpython_folder() -> Path:
    """Return the folder of the shared libpython, which the python backend's stub needs."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    candidates = [
        Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"),
        Path(sys.base_prefix) / "lib",
        Path("/usr/lib") / multiarch,
        Path("/lib") / multiarch,
        Path("/usr/lib64"),
    ]
    for folder in candidates:
        if (folder / name).exists():
            return folder
    raise SetupError(
        f"the embedded server needs {name}, which this Python ({sys.executable}) does not have: install the package "
        f"libpython{sys.version_info.major}.{sys.version_info.minor}, or use a Python built with --enable-shared"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _tail(path: Path) -> str:
    """Return the last lines of a log without Triton's tables, of which only failed models matter."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"(no log: {error})"
    kept = [
        line[:_LOG_LINE_CHARACTERS]
        for line in lines
        if line.strip() and not line.startswith("+-") and (not line.startswith("|") or "UNAVAILABLE" in line)
    ]
    return "\n".join(kept[-_LOG_TAIL_LINES:]) or "(the log is empty)"


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack like an exception, where nobody else has taken it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
