"""A ``tritonserver`` process on loopback: started under a supervisor, awaited, stopped."""

import contextlib
import dataclasses
import json
import logging
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ctseg.errors import SetupError
from ctseg.files.owners import own_namespace
from ctseg.serving.installation import Installation
from ctseg.serving.isolation import isolated_environment
from ctseg.serving.life import SHM_PREFIX, ServerLife
from ctseg.serving.triton_flags import LOOPBACK, Restriction, TritonFlags
from ctseg.triton.client import is_ready
from ctseg.triton.options import ClientOptions

_SUPERVISOR = Path(__file__).absolute().parent / "supervisor.py"
_WORK = "work"
"""Empty folder below the private one, in which the server runs."""
_TELL_AFTER_S = 30.0
_log = logging.getLogger(__name__)
_STOP_TIMEOUT_S = 20.0
_EXIT_TIMEOUT_S = 10
_ATTEMPTS_ON_PORTS = 4
_LOG_TAIL_LINES = 40
_LOG_LINE_CHARACTERS = 500
_CLOSED = ("model-repository", "trace", "logging")
_OPEN_WITH_KEY = ("health", "metadata", "inference", "shared-memory", "model-config", "statistics")


@dataclass(frozen=True)
class ServerOptions:
    """How a tritonserver runs on this machine.

    Attributes:
        is_private: Let every protocol ask for a key that stands in the server's ``headers``, and load the newest
            version only; otherwise only shared memory, model control, trace and logging are closed.
        watch: Serve new versions while running (Triton's poll mode); all models are served then.
        grpc_port: A fixed port; None or 0 takes a free one.
        http_port: Serve HTTP too, on this loopback port; 0 takes a free one, None serves none.
        metrics_port: Serve metrics on this loopback port; None serves none.
        start_timeout_s: Longest time until the server is ready, in seconds.
        extra_arguments: Further arguments of tritonserver; paths in them are absolute, it runs in an empty folder.
        client: How to reach the server, where ``extra_arguments`` made it ask for TLS.
        restarts: How often within ten minutes it is started again, on its port, when it has ended by itself or has
            lost a process of a model, and has computed nothing in between; 0: never, and lost processes are not looked
            for.
        prove: Run each model once before it is used, and check that the answer is there and finite.
    """

    is_private: bool = True
    watch: bool = False
    grpc_port: int | None = None
    http_port: int | None = None
    metrics_port: int | None = None
    start_timeout_s: float = 300.0
    extra_arguments: tuple[str, ...] = ()
    client: ClientOptions = field(default_factory=ClientOptions)
    restarts: int = 0
    prove: bool = True


DEFAULT_OPTIONS = ServerOptions()


class Ports(NamedTuple):
    """Where a server listens on loopback.

    Attributes:
        grpc: Port of gRPC.
        http: Port of HTTP; None has no HTTP.
    """

    grpc: int
    http: int | None = None


@dataclass(frozen=True)
class RunningServer:
    """A server that is up.

    Attributes:
        url: ``host:port`` of its gRPC endpoint.
        headers: What a client must send; keep them secret. Empty for an open server.
        pid: Of the tritonserver process that was started first.
        log: Its log file; gone with the server.
        models: What it serves.
        metrics_url: Where its metrics are, None without them.
        http_url: Where it speaks HTTP, None where it does not.
        life: Says when it has ended by itself, for good.
    """

    url: str
    pid: int
    log: Path
    models: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    metrics_url: str | None = None
    http_url: str | None = None
    life: ServerLife = field(default_factory=ServerLife, repr=False, compare=False)

    @property
    def end_of_log(self) -> str:
        """The last lines of its log without Triton's tables, of which only failed models matter."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return f"(no log: {error})"
        kept = [
            line[:_LOG_LINE_CHARACTERS]
            for line in lines
            if line.strip() and not line.startswith("+-") and (not line.startswith("|") or "UNAVAILABLE" in line)
        ]
        return "\n".join(kept[-_LOG_TAIL_LINES:]) or "(the log is empty)"

    def client_options(self, options: ClientOptions) -> ClientOptions:
        """Return how to reach it: the options, with its headers."""
        return dataclasses.replace(options, headers={**options.headers, **self.headers})


@dataclass(frozen=True)
class Launch:
    """All that a start needs but a port.

    Attributes:
        installation: The program.
        folder: Private folder of the server.
        repository: What it serves.
        models: Names of what is in there.
        options: How it runs.
    """

    installation: Installation
    folder: Path
    repository: Path
    models: tuple[str, ...]
    options: ServerOptions

    def start(self) -> "tuple[RunningServer, subprocess.Popen[str]]":
        """Start the server and wait until it is ready.

        A free port that somebody else takes first is replaced by another one.

        Returns:
            The server, and the process that keeps it (see :func:`stop`).

        Raises:
            SetupError: It does not start, with the end of its log.
        """
        deadline = time.monotonic() + self.options.start_timeout_s
        self._require_free_ports()
        known_flags = self.installation.supported_flags()
        binary = self.installation.runnable_binary(self.folder)
        backends = self.installation.complete_backends(self.folder)
        (self.folder / _WORK).mkdir()
        key = secrets.token_hex(16)
        for attempt in range(_ATTEMPTS_ON_PORTS):
            ports = self._ports()
            server = self._server(ports, key, self.folder / f"tritonserver-{attempt}.log")
            command = [str(binary), *self.flags(ports, key, backends).arguments(known_flags)]
            server, process = self._attempt(server, command, deadline)
            if process is not None:
                return server, process
            text = server.end_of_log
            if not self.options.grpc_port and "Socket" in text and "already in use" in text:
                continue
            raise SetupError(
                f"tritonserver ({self.installation.source}) does not start with model repository {self.repository}; "
                f"the end of its log:\n{text}"
            )
        raise SetupError(f"tritonserver found no free port in {_ATTEMPTS_ON_PORTS} attempts; the last log:\n{text}")

    def _require_free_ports(self) -> None:
        """Look before the start: Triton calls itself ready over gRPC, and then ends over another port in use."""
        for name in ("grpc_port", "http_port", "metrics_port"):
            port = getattr(self.options, name)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections are no listeners
                try:
                    probe.bind((LOOPBACK, port or 0))
                except (OSError, OverflowError) as error:
                    raise SetupError(
                        f"tritonserver does not start: port {port} of {LOOPBACK} is not free ({error}): name another",
                        settings=(name,),
                    ) from error

    def _ports(self) -> Ports:
        grpc, http = self.options.grpc_port, self.options.http_port
        return Ports(grpc or free_port(), None if http is None else http or free_port())

    def _server(self, ports: Ports, key: str, log: Path) -> RunningServer:
        metrics_port = self.options.metrics_port
        return RunningServer(
            url=f"{LOOPBACK}:{ports.grpc}",
            pid=0,
            log=log,
            models=self.models,
            headers={"triton-grpc-protocol-ctseg": key} if self.options.is_private else {},
            metrics_url=None if metrics_port is None else f"http://{LOOPBACK}:{metrics_port}/metrics",
            http_url=None if ports.http is None else f"http://{LOOPBACK}:{ports.http}",
        )

    def flags(self, ports: Ports, key: str, backends: Path | None) -> TritonFlags:
        """Return the server's flags for its ports and a key."""
        closed_key = secrets.token_hex(16)  # nobody knows it
        over_http = ports.http is not None
        restrictions = (
            (
                Restriction(_OPEN_WITH_KEY, "ctseg", key, over_http),
                Restriction(_CLOSED, "closed", closed_key, over_http),
            )
            if self.options.is_private
            else (Restriction((*_CLOSED, "shared-memory"), "closed", closed_key, over_http),)
        )
        return TritonFlags(
            repository=self.repository,
            restrictions=restrictions,
            exit_timeout_s=_EXIT_TIMEOUT_S,
            shm_prefix="{shm_prefix}",  # the supervisor fills in its own, by which it finds what is left behind
            control="poll" if self.options.watch else "none",
            grpc_port=ports.grpc,
            http_port=ports.http,
            metrics_port=self.options.metrics_port,
            client_shared_memory=True if self.options.is_private else None,
            backends=backends,
            further=(
                "--backend-config=python,shm-default-byte-size=16777216",
                "--backend-config=python,shm-growth-byte-size=67108864",
                *self.options.extra_arguments,
            ),
        )

    def _attempt(
        self, server: RunningServer, command: list[str], deadline: float
    ) -> "tuple[RunningServer, subprocess.Popen[str] | None]":
        """Start the server once; without a process where it ended before it was ready."""
        job = {
            "command": command,
            "environment": {**self.installation.environment(), "TMPDIR": str(self.folder)},
            "log": str(server.log),
            "folder": str(self.folder),
            "shm_prefix": f"{SHM_PREFIX}{own_namespace()}-",
            # a private server has no work but ours, which is done; others may have some in flight
            "stop_timeout_s": 0.0 if self.options.is_private else _STOP_TIMEOUT_S,
            "restarts": self.options.restarts,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SUPERVISOR)],
            cwd=self.folder / _WORK,
            env=isolated_environment(),
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
            server = dataclasses.replace(server, pid=int(started.get("pid", 0)))
            if self._wait_until_ready(server, process, deadline):
                with contextlib.suppress(BrokenPipeError):  # killed just now, which is heard in a moment
                    process.stdin.write("ready\n")
                    process.stdin.flush()
                server.life.begin(process, started["shm_prefix"])
                return server, process
        except BaseException:
            stop(process)
            raise
        stop(process, keeps_folder=True)
        return server, None

    def _wait_until_ready(self, server: RunningServer, process: "subprocess.Popen[str]", deadline: float) -> bool:
        tell_at = time.monotonic() + _TELL_AFTER_S
        while process.poll() is None:
            if is_ready(server.url, server.client_options(self.options.client)) and all(
                _is_open(url) for url in (server.http_url, server.metrics_url) if url is not None
            ):
                return True
            if time.monotonic() > tell_at:
                tell_at = time.monotonic() + _TELL_AFTER_S
                last = server.end_of_log.rpartition("\n")[2]
                _log.info("tritonserver is not ready yet; the last it said: %s", last)
            if time.monotonic() > deadline:
                raise SetupError(
                    f"tritonserver ({self.installation.source}) was not ready in time; the end of its log:\n"
                    f"{server.end_of_log}"
                )
            time.sleep(0.05)
        return False


def stop(process: "subprocess.Popen[str]", *, keeps_folder: bool = False) -> None:
    """Ask the supervisor to stop its server, and wait.

    Args:
        process: The supervisor; may have ended.
        keeps_folder: Whether the server's private folder stays, for its log or another attempt.
    """
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended, or was stopped before
        process.stdin.write("stop, keep the folder\n" if keeps_folder else "stop\n")
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT_S + 15)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel then kills the server
        process.wait()
    process.stdout.close()


def _is_open(url: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, urlsplit(url).port or 0), timeout=5):
        return True
    return False


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
