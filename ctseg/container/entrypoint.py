"""Entry point of the serving image: build what is not fresh, then become ``tritonserver``.

Without words, or with flags of tritonserver only, it serves:

1. every bundle under ``CTSEG_BUNDLES`` goes through ``ctseg build --if-needed``, under a lock that
   servers with the same repository share; versions that nobody serves any more are removed;
2. everything that would make a start end badly is checked and told: no model, no GPU for a plan,
   shared memory, rights, certificates;
3. ``readiness.py`` is started, and this process becomes ``tritonserver`` (signals reach it directly).

Any other first word is a program, which is run, or else a command of ctseg: ``docker run IMAGE doctor``.
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from ctseg.errors import CtsegError, SetupError
from ctseg.model_spec import SPEC_NAME
from ctseg.serving.entries import BUILD_NAME, CONFIG_NAME, Entry, EntryVersion, list_entries
from ctseg.serving.upkeep import remove_leftovers, remove_versions
from ctseg.triton.configuration import config_from_text

ADMIN_HEADER = "ctseg-admin"
CLOSED = ("model-repository", "trace", "logging", "shared-memory")
"""Protocols that ask for the header; health, metadata, inference, model-config and statistics do not."""
GRPC_PORT, METRICS_PORT, READY_PORT, LOCAL_HTTP_PORT = 8001, 8002, 8003, 8000
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Linux keeps POSIX shared memory)
VIEW = Path("/tmp/ctseg/models")  # noqa: S108 (the container's own; its root file system is read-only)

CHILD_TIMEOUT_S = 20.0
"""What a build may take to clean up when the container is stopped."""

_TLS_MODES = ("off", "server", "mutual")
_LOCK_NAME = ".ctseg-start.lock"
_ITEM_BYTES = {"FP32": 4, "FP16": 2, "BF16": 2}
_PYTHON_BACKEND_OWN_BYTES = 16 << 20
_KEY = re.compile(r"[A-Za-z0-9._~-]{16,256}")


@dataclass(frozen=True)
class Settings:
    """What the environment asks for.

    Attributes:
        bundles: A bundle, or a folder of bundles.
        models: Triton's model repository.
        backend: Of the entries that are built.
        precision: Of the entries that are built.
        build_options: Further words for ``ctseg build``.
        explicit: Let holders of the key load and unload models while serving.
        tls: ``off``, ``server`` or ``mutual``.
        tls_folder: Holds ``tls.crt``, ``tls.key`` and, for ``mutual``, ``ca.crt``.
        admin_key: What the header must say; a random one that nobody knows unless a file gives it.
        exit_timeout_s: How long requests may go on after SIGTERM, in seconds.
        lock_timeout_s: Longest wait for another server that builds into the same repository, in seconds.
    """

    bundles: Path
    models: Path
    backend: str
    precision: str
    build_options: tuple[str, ...]
    explicit: bool
    tls: str
    tls_folder: Path
    admin_key: str
    exit_timeout_s: int
    lock_timeout_s: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the variables ``CTSEG_…``.

        Raises:
            SetupError: A value, the key or a certificate cannot be used.
        """
        control = _choice(environment, "CTSEG_MODEL_CONTROL", ("none", "explicit"))
        settings = cls(
            bundles=Path(environment.get("CTSEG_BUNDLES", "/bundles")),
            models=Path(environment.get("CTSEG_MODELS", "/models")),
            backend=_choice(environment, "CTSEG_BACKEND", ("tensorrt", "onnxruntime", "python")),
            precision=_choice(environment, "CTSEG_PRECISION", ("fp32", "fp16", "bf16")),
            build_options=tuple(shlex.split(environment.get("CTSEG_BUILD_OPTIONS", ""))),
            explicit=control == "explicit",
            tls=_choice(environment, "CTSEG_TLS", _TLS_MODES),
            tls_folder=Path(environment.get("CTSEG_TLS_FOLDER", "/run/ctseg/tls")),
            admin_key=_admin_key(environment.get("CTSEG_ADMIN_KEY_FILE")),
            exit_timeout_s=_seconds(environment, "CTSEG_EXIT_TIMEOUT_S", 25),
            lock_timeout_s=_seconds(environment, "CTSEG_LOCK_TIMEOUT_S", 3600),
        )
        for path in settings.tls_files.values():
            _require_readable(path, f"CTSEG_TLS={settings.tls}")
        return settings

    @property
    def tls_files(self) -> dict[str, Path]:
        """The files that TLS needs, by the name of tritonserver's flag."""
        files = {"--grpc-server-cert": self.tls_folder / "tls.crt", "--grpc-server-key": self.tls_folder / "tls.key"}
        if self.tls == "mutual":
            files["--grpc-root-cert"] = self.tls_folder / "ca.crt"
        return {} if self.tls == "off" else files


def _choice(environment: Mapping[str, str], name: str, values: Sequence[str]) -> str:
    value = environment.get(name) or values[0]
    if value not in values:
        raise SetupError(f"{name}={value}: expected one of {', '.join(values)}")
    return value


def _seconds(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise SetupError(f"{name}={text}: expected a whole number of seconds, at least 1")
    return int(text)


def _admin_key(file: str | None) -> str:
    """Return the key in the file, or one that nobody knows."""
    if not file:
        return secrets.token_hex(32)
    _require_readable(Path(file), "CTSEG_ADMIN_KEY_FILE")
    key = Path(file).read_text(encoding="utf-8").strip()
    if not _KEY.fullmatch(key):
        raise SetupError(f"CTSEG_ADMIN_KEY_FILE={file}: expected one word of 16 to 256 letters, digits or . _ ~ -")
    return key


def _require_readable(path: Path, why: str) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise SetupError(
            f"{why}: {path} cannot be read by user {os.getuid()} ({error.strerror}): mount it, readable for this user"
        ) from error


def find_bundles(folder: Path) -> list[Path]:
    """Return the bundles in a folder: itself, or the folders in it.

    Raises:
        SetupError: It cannot be read.
    """
    try:
        if not folder.is_dir():
            return []
        if (folder / SPEC_NAME).is_file():
            return [folder]
        return sorted(path.parent for path in folder.glob(f"*/{SPEC_NAME}") if path.parent.name[0] != ".")
    except OSError as error:
        raise SetupError(
            f"{error.filename or folder}: cannot be read by user {os.getuid()} ({error.strerror}): make the mounted "
            f"bundles readable, or run with --user of their owner"
        ) from error


def require_writable(folder: Path) -> None:
    """Refuse a repository that cannot be written to.

    Raises:
        SetupError: With what to do.
    """
    if not folder.is_dir():
        raise SetupError(f"{folder}: no such folder: mount a volume there for the model repository")
    if not os.access(folder, os.W_OK | os.X_OK):
        owner = folder.stat()
        raise SetupError(
            f"{folder}: user {os.getuid()}:{os.getgid()} cannot write there (owner {owner.st_uid}:{owner.st_gid}, "
            f"mode {owner.st_mode & 0o777:o}): `chown {os.getuid()}:{os.getgid()}` the mounted folder, or run with "
            f"--user {owner.st_uid}:{owner.st_gid}"
        )


@contextlib.contextmanager
def turn(settings: Settings) -> Iterator[None]:
    """Hold the lock that servers with the same repository share.

    Raises:
        SetupError: The repository cannot be written, or another server builds for too long.
    """
    require_writable(settings.models)
    lock = FileLock(settings.models / _LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another server that builds into {settings.models}")
        try:
            lock.acquire(timeout=settings.lock_timeout_s)
        except Timeout as error:
            raise SetupError(
                f"{settings.models}: another server has been building for {settings.lock_timeout_s} s: look at its "
                "log, or raise CTSEG_LOCK_TIMEOUT_S"
            ) from error
    try:
        yield
    finally:
        lock.release()


def build_entries(settings: Settings, bundles: Sequence[Path]) -> dict[str, int]:
    """Let ``ctseg build --if-needed`` make each bundle's entry fresh.

    Returns:
        The version that was built for this machine, by the model's name.

    Raises:
        SystemExit: A build failed; it has told why.
    """
    fitting = {}
    for bundle in bundles:
        say(f"{bundle}: {settings.backend}, {settings.precision}")
        words = ["build", str(bundle), "--repository", str(settings.models), "--if-needed"]
        words += ["--backend", settings.backend, "--precision", settings.precision, *settings.build_options]
        status, last_line = run_child([sys.executable, "-I", "-u", "-m", "ctseg", *words], keep_last_line=True)
        if status:
            say(f"{bundle}: `ctseg build` failed with status {status}: nothing is served")
            raise SystemExit(2)
        folder = Path(last_line.partition(": ")[0])  # <repository>/<name>/<version>: …
        fitting[folder.parent.name] = int(folder.name)
    return fitting


def run_child(command: Sequence[str], *, keep_last_line: bool = False) -> tuple[int, str]:
    """Run a program; it ends with this process.

    Returns:
        Its status, and the last line that it printed.
    """
    last_line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE if keep_last_line else None, text=True) as child:
        try:
            for line in child.stdout or ():
                print(line, end="", flush=True)
                last_line = line.rstrip("\n")
            status = child.wait()
            return status if status >= 0 else 128 - status, last_line
        finally:
            if child.poll() is None:
                child.terminate()  # it removes what it has half-written
                try:
                    child.wait(CHILD_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    child.kill()


def end_by_signals() -> None:
    """Let SIGTERM and SIGINT end this process: the first process of a container has no default handlers."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (the signature of a handler)
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def builds_of(version: EntryVersion) -> list[Mapping[str, Any]]:
    """Return what is recorded of each build in a version: one, or one for each GPU type."""
    others = sorted(version.folder.glob("build_sm*.json"))
    return [version.build, *(json.loads(file.read_text(encoding="utf-8")) for file in others)]


def served_versions(entry: Entry, fitting: int | None) -> list[EntryVersion]:
    """Return the versions that a server may load, oldest first: the one for its machine, and the one before.

    Of a model of TensorRT the one before counts only if it has plans of the same TensorRT for the same GPUs: a plan
    that does not load keeps the whole server from starting.

    Args:
        entry: A model of the repository.
        fitting: The version that was built for this machine; None takes the newest.
    """
    versions = [item for item in entry.versions if fitting is None or item.version <= fitting][-2:]
    if entry.backend != "tensorrt":
        return versions
    plans = [{(build.get("tensorrt"), build.get("gpu")) for build in builds_of(item)} for item in versions]
    return [item for item, its_plans in zip(versions, plans, strict=True) if its_plans >= plans[-1]]


def hold(versions: Iterable[EntryVersion]) -> None:
    """Mark versions as served, until this process, which becomes tritonserver, ends."""
    for version in versions:
        file = os.open(version.folder / BUILD_NAME, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: there nothing is removed either
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.set_inheritable(file, True)


def is_held(version: EntryVersion) -> bool:
    """Whether a server serves a version, or may do so."""
    try:
        with (version.folder / BUILD_NAME).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def superseded(entry: Entry) -> list[EntryVersion]:
    """Return the versions for whose machines there are two newer ones each."""
    machines = [{str(build.get("gpu") or build.get("machine")) for build in builds_of(item)} for item in entry.versions]
    return [
        item
        for i, item in enumerate(entry.versions)
        if all(sum(machine in newer for newer in machines[i + 1 :]) >= 2 for machine in machines[i])
    ]


def tidy(settings: Settings, entries: Sequence[Entry]) -> None:
    """Remove what killed builds have left, and superseded versions that are older than all that servers hold.

    Newer ones than those may have been loaded while a server runs.
    """
    try:
        remove_leftovers(settings.models)
        for entry in entries:
            free = itertools.takewhile(lambda version: not is_held(version), entry.versions)
            old = [version.version for version in free if version in superseded(entry)]
            if old:
                say(f"{entry.name}: versions {', '.join(map(str, old))} are superseded and removed")
                remove_versions(settings.models, entry.name, old)
    except CtsegError as error:
        say(f"what is old stays: {error}")


def shared_memory_needed(entry: Entry, instances: int) -> int:
    """Return what the python backend puts into shared memory at most, in bytes: a full batch for each instance."""
    spec = entry.newest.spec
    if entry.backend != "python":
        return 0
    voxels = 1
    for side in spec.patch_size:
        voxels *= side
    sent = len(spec.channels) * _ITEM_BYTES[spec.input.dtype]
    answered = spec.num_heads * _ITEM_BYTES[spec.output.dtype]
    return instances * (spec.max_batch_size * voxels * (sent + answered) + _PYTHON_BACKEND_OWN_BYTES)


def require_shared_memory(entries: Sequence[Entry], folder: Path = SHARED_MEMORY) -> None:
    """Refuse a start with less shared memory than the python backend can fill.

    Raises:
        SetupError: With the size to ask for.
    """
    needed = 0
    for entry in entries:
        path = entry.folder / CONFIG_NAME
        config = config_from_text(path.read_text(encoding="utf-8"), source=str(path))
        needed += shared_memory_needed(entry, sum(max(1, group.count) for group in config.instance_group) or 1)
    size = shutil.disk_usage(folder).total
    if needed > size:
        raise SetupError(
            f"{folder} has {size >> 20} MB, the models of the python backend need {-(-needed // (1 << 20))} MB of "
            f"shared memory: run the container with --shm-size {-(-needed // (1 << 20))}m or more (Kubernetes: an "
            "emptyDir of medium Memory at /dev/shm)"
        )


def served_view(entries: Sequence[Entry], view: Path, fitting: Mapping[str, int], *, grows: bool = False) -> Path:
    """Make the repository that this server sees: links to the models, with what it can load.

    Whatever else lies in the repository, it does not see.

    Args:
        entries: What the repository holds.
        view: An empty or missing folder.
        fitting: See :func:`build_entries`.
        grows: Let later versions be seen too, where all that Triton would take now can be loaded.
    """
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for entry in entries:
        folder = view / entry.name
        versions = served_versions(entry, fitting.get(entry.name))
        hidden = [str(item.version) for item in entry.versions[-2:] if item not in versions]
        if hidden:
            say(f"{entry.name}: versions {', '.join(hidden)} are for other machines or of another TensorRT: hidden")
        if grows and not hidden:
            folder.symlink_to(entry.folder, target_is_directory=True)
            continue
        folder.mkdir()
        (folder / CONFIG_NAME).symlink_to(entry.folder / CONFIG_NAME)
        for version in versions:
            (folder / str(version.version)).symlink_to(version.folder, target_is_directory=True)
    return view


def server_flags(settings: Settings, repository: Path, entries: Sequence[Entry], known_flags: str) -> list[str]:
    """Return tritonserver's arguments.

    Args:
        settings: What was asked for.
        repository: What it serves.
        entries: What is in it.
        known_flags: What ``tritonserver --help`` prints; an unknown flag would end the server.
    """
    closed = f"{','.join(CLOSED)}:{ADMIN_HEADER}={settings.admin_key}"
    flags = [
        f"--model-repository={repository}",
        f"--model-control-mode={'explicit' if settings.explicit else 'none'}",
        *(f"--load-model={entry.name}" for entry in entries if settings.explicit),  # `*` also takes what is no model
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        "--grpc-address=0.0.0.0",
        f"--grpc-port={GRPC_PORT}",
        "--allow-http=true",  # for readiness.py, which needs no certificate there: it never leaves the container
        "--http-address=127.0.0.1",
        f"--http-port={LOCAL_HTTP_PORT}",
        "--metrics-address=0.0.0.0",
        f"--metrics-port={METRICS_PORT}",
        f"--grpc-restricted-protocol={closed}",
        f"--http-restricted-api={closed}",
        "--log-format=ISO8601",
        f"--backend-config=python,shm-region-prefix-name=ctseg-serve-{secrets.token_hex(4)}-",
    ]
    if settings.tls != "off":
        flags += ["--grpc-use-ssl=true", *(f"{flag}={path}" for flag, path in settings.tls_files.items())]
    if settings.tls == "mutual":
        flags.append("--grpc-use-ssl-mutual=true")
    if any(entry.backend == "tensorrt" for entry in entries):  # a batch of logits is larger than the default pools
        flags += ["--pinned-memory-pool-byte-size=1073741824", "--cuda-memory-pool-byte-size=0:536870912"]
    if "--allow-client-shm" in known_flags:
        flags.append("--allow-client-shm=false")
    if "--http-max-input-size" in known_flags:
        flags.append(f"--http-max-input-size={2**31 - 1}")
    return flags


def serve(extra_flags: Sequence[str]) -> NoReturn:
    """Build, check, start the readiness process, and become tritonserver.

    Raises:
        SetupError: It cannot be served.
    """
    end_by_signals()
    os.umask(0o022)
    settings = Settings.from_environment(os.environ)
    bundles = find_bundles(settings.bundles)
    with turn(settings) if bundles else contextlib.nullcontext():
        fitting = build_entries(settings, bundles)
        entries = entries_of(settings)
        hold(version for entry in entries for version in served_versions(entry, fitting.get(entry.name)))
        if bundles:
            tidy(settings, entries)
            entries = entries_of(settings)
    require_shared_memory(entries)
    server = shutil.which("tritonserver")
    if server is None:
        raise SetupError("tritonserver is not on the PATH: the base of this image is not NVIDIA's Triton image")
    known = subprocess.run([server, "--help"], capture_output=True, text=True, check=False, timeout=120)
    repository = served_view(entries, VIEW, fitting, grows=settings.explicit)
    flags = server_flags(settings, repository, entries, known.stdout + known.stderr)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}
    if any(entry.backend == "python" for entry in entries):
        # the backend's Python is the base's, of the same version; it looks for its packages where the first python3
        # of the PATH has them, and, in some releases, in PYTHONPATH
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    _start_readiness(settings)
    say(f"serving {', '.join(entry.name for entry in entries)}: gRPC {GRPC_PORT} (TLS {settings.tls}), metrics "
        f"{METRICS_PORT}, readiness {READY_PORT}")  # fmt: skip
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(server, [server, *flags, *extra_flags], environment)  # noqa: S606 (an argument list, no shell)


def entries_of(settings: Settings) -> list[Entry]:
    """Return the models of the repository.

    Raises:
        SetupError: There is none, or it cannot be read.
    """
    try:
        return list_entries(settings.models)
    except PermissionError as error:
        raise SetupError(f"{error.filename}: cannot be read by user {os.getuid()}: make it readable") from error
    except SetupError as error:
        raise SetupError(
            f"nothing to serve: no bundle in {settings.bundles} and no model in {settings.models}: mount a folder of "
            f"`ctseg export` at {settings.bundles}, or a model repository at {settings.models}"
        ) from error


def _start_readiness(settings: Settings) -> None:
    job = {
        "server": f"http://127.0.0.1:{LOCAL_HTTP_PORT}",
        "headers": {ADMIN_HEADER: settings.admin_key},
        "port": READY_PORT,
    }
    program = Path(__file__).with_name("readiness.py")
    child = subprocess.Popen([sys.executable, "-I", str(program)], stdin=subprocess.PIPE, start_new_session=True)
    if child.stdin is None:
        raise SetupError("readiness.py has no standard input")
    child.stdin.write(json.dumps(job).encode())  # not as arguments: those are public
    child.stdin.close()


def _ctseg() -> list[str]:
    return [sys.executable, "-I", "-m", "ctseg"]


def say(text: str) -> None:
    """Write a line into the container's log."""
    print(f"ctseg: {text}", file=sys.stderr, flush=True)


def main(words: Sequence[str]) -> int:
    """Serve, or run what the words say; return an exit status."""
    if words and not words[0].startswith("-"):
        program = shutil.which(words[0])
        command = list(words) if program else [*_ctseg(), *words]
        if program is None and os.getpid() == 1:  # which could not be ended: ctseg has no handler of its own
            end_by_signals()
            return run_child(command)[0]
        os.execv(program or sys.executable, command)  # noqa: S606 (an argument list, no shell)
    try:
        serve(words)
    except CtsegError as error:
        say(f"{type(error).__name__}: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
