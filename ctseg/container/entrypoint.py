"""Entry point of the serving image: build what is not fresh, then become ``tritonserver``.

Without words, or with flags of tritonserver only, it serves:

1. an entry is built of every bundle under ``CTSEG_BUNDLES`` that has none for this machine yet, under a lock that
   servers with the same repository share; versions that nobody serves any more are removed. Bundles that lie in the
   image itself may hold no voxels of patients;
2. everything that would make a start end badly is checked and told: no model, no GPU for a plan,
   shared memory, rights, certificates;
3. the readiness process is started, and this process becomes ``tritonserver`` (signals reach it directly).

Any other first word is a program, which is run, or else a command of ctseg: ``docker run IMAGE doctor``.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ctseg.container.baked import bundles_in_image, require_no_patients
from ctseg.container.builds import build_entries, find_bundles, members_of, repository_lock
from ctseg.container.children import end_by_signals, run_child
from ctseg.container.log import log_to_standard_error
from ctseg.container.settings import Settings, read_settings
from ctseg.container.shared_memory import networks_of_scans, require_shared_memory
from ctseg.container.versions import mark_as_served, remove_superseded, served_versions
from ctseg.container.view import names_in, served_view
from ctseg.errors import CtsegError, SetupError
from ctseg.serving.entries import Entry, list_entries, list_models, list_recipes, takes_scans
from ctseg.serving.isolation import isolated_environment, python_command, temporary_parent
from ctseg.serving.triton_flags import LOOPBACK, Restriction, TritonFlags, flags_in_help

ADMIN_HEADER = "ctseg-admin"
CLOSED = ("model-repository", "trace", "logging", "shared-memory")
"""Protocols that ask for the header; health, metadata, inference, model-config and statistics do not."""
HTTP_PORT, GRPC_PORT, METRICS_PORT, READY_PORT = 8000, 8001, 8002, 8003
EVERYWHERE = "0.0.0.0"  # noqa: S104 (clients ask from outside)
VIEW = Path("/tmp/ctseg/models")  # noqa: S108 (the container's own; its root file system is read-only)

_log = logging.getLogger("ctseg.container.entrypoint")  # not __name__, which is "__main__" here


def main(words: Sequence[str]) -> int:
    """Serve, or run what the words say; return an exit status."""
    log_to_standard_error()
    if words and not words[0].startswith("-"):
        program = shutil.which(words[0])
        command = list(words) if program else python_command("-m", "ctseg", *words)
        if program is None and os.getpid() == 1:  # which could not be ended: ctseg has no handler of its own
            end_by_signals()
            return run_child(command)[0]
        environment = dict(os.environ) if program else isolated_environment()
        os.execve(program or sys.executable, command, environment)  # noqa: S606 (an argument list, no shell)
    try:
        serve(words)
    except CtsegError as error:
        _log.error("%s: %s", type(error).__name__, error)
        return 2


def serve(extra_flags: Sequence[str]) -> NoReturn:
    """Build, check, start the readiness process, and become tritonserver.

    Raises:
        SetupError: It cannot be served.
    """
    end_by_signals()
    os.umask(0o022)
    settings = read_settings()
    bundles = find_bundles(settings.bundles)
    require_no_patients(bundles_in_image(members_of(bundles)))
    with repository_lock(settings) if bundles else contextlib.nullcontext():
        fitting = build_entries(settings, bundles)
        entries = entries_of(settings)
        mark_as_served(version for entry in entries for version in served_versions(entry, fitting.get(entry.name)))
        if bundles:
            remove_superseded(settings.models, entries)
            entries = entries_of(settings)
    isolated = isolated_environment()
    server = shutil.which("tritonserver", path=isolated["PATH"])
    if server is None:
        raise SetupError("tritonserver is not on the PATH: the base of this image is not NVIDIA's Triton image")
    repository = served_view(entries, VIEW, fitting, list_recipes(settings.models), grows=settings.explicit)
    require_shared_memory(entries, networks_of_scans(repository, entries))
    names = names_in(repository)
    os.chdir(tempfile.mkdtemp(prefix="ctseg-work-", dir=temporary_parent(needed_bytes=0)))  # empty: see isolation.py
    known = subprocess.run([server, "--help"], env=isolated, capture_output=True, text=True, check=False, timeout=120)
    flags = server_flags(settings, repository, entries, names).arguments(flags_in_help(known.stdout + known.stderr))
    _start_readiness(settings)
    _log.info(
        "serving %s: gRPC %d (TLS %s), HTTP %d (%s), metrics %d, readiness %d", ", ".join(names),
        GRPC_PORT, settings.tls, HTTP_PORT, settings.http, METRICS_PORT, READY_PORT,
    )  # fmt: skip
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing of what was done here stays in the server: exec replaces memory and threads, files close but for the
    # marks of what is served, and builds ran in processes of their own (see build_process.py).
    os.execve(server, [server, *flags, *extra_flags], server_environment(entries, repository))  # noqa: S606 (no shell)


def server_flags(settings: Settings, repository: Path, entries: Sequence[Entry], names: Sequence[str]) -> TritonFlags:
    """Return what tritonserver shall do.

    Args:
        settings: What was asked for.
        repository: What it serves.
        entries: The models in it.
        names: Of all that is in it.
    """
    pools = ("--pinned-memory-pool-byte-size=1073741824", "--cuda-memory-pool-byte-size=0:536870912")
    has_plans = any(entry.backend == "tensorrt" for entry in entries)
    return TritonFlags(
        repository=repository,
        restrictions=(Restriction(CLOSED, ADMIN_HEADER, settings.admin_key, over_http=True),),
        exit_timeout_s=settings.exit_timeout_s,
        shm_prefix=f"ctseg-serve-{secrets.token_hex(4)}-",
        control="explicit" if settings.explicit else "none",
        load=names if settings.explicit else (),
        address=EVERYWHERE,
        grpc_port=GRPC_PORT,
        http_port=HTTP_PORT,  # also for the readiness process, which needs no certificate there
        http_address=EVERYWHERE if settings.http == "open" else LOOPBACK,
        metrics_port=METRICS_PORT,
        tls_files=settings.tls_files,
        mutual_tls=settings.tls == "mutual",
        client_shared_memory=False,
        further=(
            "--exit-on-error=true",
            "--log-format=ISO8601",
            *(pools if has_plans else ()),  # a batch of logits is larger than the default pools
        ),
    )


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


def server_environment(entries: Sequence[Entry], view: Path) -> dict[str, str]:
    """Return the environment of tritonserver: where python backends run, they find this Python and its packages.

    Args:
        entries: The models in it.
        view: The repository that is served.
    """
    environment = {**isolated_environment(), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}
    if any(entry.backend == "python" for entry in entries) or any(
        takes_scans(view / name) for name in list_models(view)
    ):
        # the backend's Python is the base's, of the same version; it looks for its packages where the first python3
        # of the PATH has them, and, in some releases, in PYTHONPATH
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    return environment


def _start_readiness(settings: Settings) -> None:
    job = {
        "server": f"http://127.0.0.1:{HTTP_PORT}",
        "headers": {ADMIN_HEADER: settings.admin_key},
        "port": READY_PORT,
    }
    command = python_command("-m", "ctseg.container.readiness")
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env=isolated_environment(), start_new_session=True)
    if child.stdin is None:
        raise SetupError("the readiness process has no standard input")
    child.stdin.write(json.dumps(job).encode())  # not as arguments: those are public
    child.stdin.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
