"""What the serving image's entry point decides, without a container."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from filelock import FileLock

from ctseg.container.entrypoint import server_environment, server_flags
from ctseg.serving.triton_flags import flags_in_help
from tests.support.container_entries import entry, settings_of
from tests.support.toy_models import write_toy_entry
from tests.support.whole_scans import write_scannable_entry


def flags_of(changes: dict[str, str], help_text: str = "", backend: str = "python") -> list[str]:
    flags = server_flags(settings_of(**changes), Path("/models"), [entry(backend)], ["m"])
    return flags.arguments(flags_in_help(help_text))


def test_the_flags_are_these_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("correct-horse-battery-staple")
    flags = flags_of({"CTSEG_ADMIN_KEY_FILE": str(tmp_path / "key")})
    prefix = next(flag for flag in flags if "shm-region-prefix-name=ctseg-serve-" in flag)
    closed = "model-repository,trace,logging,shared-memory:ctseg-admin=correct-horse-battery-staple"
    assert sorted(flags) == sorted(
        [
            "--model-repository=/models",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            "--exit-on-error=true",
            "--exit-timeout-secs=25",
            "--grpc-address=0.0.0.0",
            "--grpc-port=8001",
            "--allow-http=true",
            "--http-address=127.0.0.1",
            "--http-port=8000",
            "--metrics-address=0.0.0.0",
            "--metrics-port=8002",
            f"--grpc-restricted-protocol={closed}",
            f"--http-restricted-api={closed}",
            "--log-format=ISO8601",
            prefix,
        ]
    )


def test_admin_protocols_ask_for_a_key_on_both_endpoints_and_reading_does_not() -> None:
    flags = flags_of({})
    grpc = next(flag for flag in flags if flag.startswith("--grpc-restricted-protocol="))
    http = next(flag for flag in flags if flag.startswith("--http-restricted-api="))
    for flag in (grpc, http):
        closed, _, key = flag.partition("=")[2].partition(":")
        assert closed.split(",") == ["model-repository", "trace", "logging", "shared-memory"]
        assert key.startswith("ctseg-admin=")
    assert grpc.partition("=")[2] == http.partition("=")[2]


def test_model_control_is_off_unless_asked_for() -> None:
    assert "--model-control-mode=none" in flags_of({})
    assert not any(flag.startswith("--load-model") for flag in flags_of({}))
    explicit = flags_of({"CTSEG_MODEL_CONTROL": "explicit"})
    assert "--model-control-mode=explicit" in explicit
    assert [flag for flag in explicit if flag.startswith("--load-model")] == ["--load-model=m"]


def test_http_stays_on_the_loopback_interface_unless_asked_for() -> None:
    assert "--http-address=127.0.0.1" in flags_of({})
    opened = flags_of({"CTSEG_HTTP": "open"})
    assert "--http-address=0.0.0.0" in opened
    assert [flag for flag in opened if flag.startswith("--http-restricted-api=")]


def test_flags_that_an_old_server_does_not_know_are_left_out() -> None:
    assert not any("client-shm" in flag or "-size" in flag for flag in flags_of({}))
    new = flags_of({}, "--allow-client-shm <boolean>\n --http-max-input-size\n --grpc-infer-allocation-pool-size")
    assert "--allow-client-shm=false" in new
    assert "--http-max-input-size=2147483647" in new
    assert "--grpc-infer-allocation-pool-size=2" in new, "Triton's own 8 keep up to 2 GB each"


def test_pools_are_raised_for_tensorrt_only() -> None:
    assert any("pinned-memory-pool" in flag for flag in flags_of({}, backend="tensorrt"))
    assert not any("pinned-memory-pool" in flag for flag in flags_of({}))


def test_tls_passes_its_files_on(tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text("x")
    server = flags_of({"CTSEG_TLS": "server", "CTSEG_TLS_FOLDER": str(tmp_path)})
    assert "--grpc-use-ssl=true" in server
    assert not any("mutual" in flag or "root-cert" in flag for flag in server)
    mutual = flags_of({"CTSEG_TLS": "mutual", "CTSEG_TLS_FOLDER": str(tmp_path)})
    assert "--grpc-use-ssl-mutual=true" in mutual
    assert f"--grpc-root-cert={tmp_path}/ca.crt" in mutual


@pytest.mark.parametrize(
    ("backend", "scans", "found"), [("python", False, True), ("tensorrt", True, True), ("tensorrt", False, False)]
)
def test_python_backends_find_this_python_and_its_packages(
    tmp_path: Path, backend: str, scans: bool, found: bool
) -> None:
    (write_scannable_entry if scans else write_toy_entry)(tmp_path / "models")
    environment = server_environment([entry(backend)], tmp_path / "models")
    assert (environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)) == found
    assert (environment.get("PYTHONPATH") == sysconfig.get_path("purelib")) == found


def started(**environment: str) -> "subprocess.Popen[str]":
    variables = {**os.environ, **environment}
    command = [sys.executable, "-m", "ctseg.container.entrypoint"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)


def test_what_is_wrong_with_the_settings_is_one_line_and_status_2() -> None:
    with started(CTSEG_TLS="on", CTSEG_BACKEND="torch") as server:
        assert server.stderr is not None
        lines = server.stderr.read().splitlines()
    assert server.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("ctseg: SetupError: CTSEG_BACKEND=torch: expected ")
    assert "; CTSEG_TLS=on: expected " in lines[0]


def test_a_server_that_waits_for_another_one_ends_at_sigterm(tmp_path: Path) -> None:
    for name in ("models", "bundle"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundle" / "ctseg.json").write_text("{}")
    with FileLock(tmp_path / "models" / ".ctseg-start.lock"):
        folders = {"CTSEG_MODELS": str(tmp_path / "models"), "CTSEG_BUNDLES": str(tmp_path / "bundle")}
        with started(**folders) as server:
            assert server.stderr is not None
            assert "waiting for another server" in server.stderr.readline()
            server.send_signal(signal.SIGTERM)
            assert server.wait(120) == 128 + signal.SIGTERM  # by a handler: a container's first process has no other


@pytest.mark.parametrize(
    ("words", "begin"), [(["echo", "a program"], "a program\n"), (["build", "--help"], "usage: ctseg build")]
)
def test_other_words_are_a_program_or_a_command_of_ctseg(words: list[str], begin: str) -> None:
    command = [sys.executable, "-m", "ctseg.container.entrypoint", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(begin)
