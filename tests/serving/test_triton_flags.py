"""The flags of tritonserver, whole: for the embedded server here, for the container in tests/container."""

from pathlib import Path

import pytest

from ctseg.serving.installation import Installation
from ctseg.serving.process import Launch, Ports, ServerOptions
from ctseg.serving.triton_flags import Restriction, TritonFlags, flags_in_help

HELP = """
Usage: tritonserver [options]
  --help
\tPrint usage
  --allow-client-shm <boolean>
\tNot the same as --allow-something-else.
  -h, --http-max-input-size <integer>
"""


def flags_of(options: ServerOptions, known_flags: frozenset[str] = frozenset()) -> list[str]:
    launch = Launch(Installation(Path("/bin/tritonserver")), Path("/private"), Path("/models"), ("toy",), options)
    ports = Ports(8001, options.http_port)
    flags = launch.flags(ports, "the-key", Path("/private/backends")).arguments(known_flags)
    closed = {flag.partition(":closed=")[2] for flag in flags if ":closed=" in flag}
    assert len(closed) == 1
    key = closed.pop()
    assert len(key) == 32  # random: nobody knows it
    return sorted(flag.replace(key, "random") for flag in flags)


COMMON = [
    "--allow-http=false",
    "--backend-config=python,shm-default-byte-size=16777216",
    "--backend-config=python,shm-growth-byte-size=67108864",
    "--backend-config=python,shm-region-prefix-name={shm_prefix}",
    "--backend-directory=/private/backends",
    "--disable-auto-complete-config",
    "--exit-timeout-secs=10",
    "--grpc-address=127.0.0.1",
    "--grpc-port=8001",
    "--model-repository=/models",
    "--strict-readiness=true",
]
OPEN = "--grpc-restricted-protocol=model-repository,trace,logging,shared-memory:closed=random"


def test_a_private_server_asks_for_a_key_before_every_protocol() -> None:
    asked = "health,metadata,inference,shared-memory,model-config,statistics:ctseg=the-key"
    expected = [
        *COMMON,
        "--allow-metrics=false",
        "--grpc-restricted-protocol=model-repository,trace,logging:closed=random",
        f"--grpc-restricted-protocol={asked}",
        "--model-control-mode=none",
    ]
    assert flags_of(ServerOptions()) == sorted(expected)
    known = frozenset({"--allow-client-shm", "--allow-gpu-metrics"})
    new = [*expected, "--allow-client-shm=true", "--allow-gpu-metrics=false"]
    assert flags_of(ServerOptions(), known) == sorted(new)


def test_an_open_server_closes_what_can_change_it() -> None:
    options = ServerOptions(is_private=False, watch=True, metrics_port=8002, extra_arguments=("--log-verbose=1",))
    expected = [
        *COMMON,
        OPEN,
        "--log-verbose=1",
        "--metrics-address=127.0.0.1",
        "--metrics-port=8002",
        "--model-control-mode=poll",
        "--repository-poll-secs=2",
    ]
    assert flags_of(options, frozenset({"--allow-client-shm", "--allow-gpu-metrics"})) == sorted(expected)


@pytest.mark.parametrize("is_private", [True, False])
def test_http_listens_on_loopback_and_asks_for_the_same_keys_as_grpc(is_private: bool) -> None:
    without = flags_of(ServerOptions(is_private=is_private))
    flags = flags_of(ServerOptions(is_private=is_private, http_port=8000), frozenset({"--http-max-input-size"}))
    over_grpc = [flag for flag in without if flag.startswith("--grpc-restricted-protocol=")]
    added = [
        "--allow-http=true",
        "--http-address=127.0.0.1",
        "--http-port=8000",
        f"--http-max-input-size={2**31 - 1}",
        *(flag.replace("--grpc-restricted-protocol", "--http-restricted-api") for flag in over_grpc),
    ]
    assert len(over_grpc) == 1 + is_private
    assert flags == sorted([*(flag for flag in without if flag != "--allow-http=false"), *added])


def test_flags_are_found_in_the_help_at_the_begin_of_lines() -> None:
    assert flags_in_help(HELP) == {"--help", "--allow-client-shm", "--http-max-input-size"}


def test_keys_are_not_shown() -> None:
    restriction = Restriction(("trace",), "closed", "a-key")
    assert "a-key" not in repr(TritonFlags(Path("/models"), (restriction,), 10, "prefix-"))


@pytest.mark.parametrize("files", [{}, {"--grpc-server-cert": Path("/tls.crt")}])
def test_tls_is_switched_on_by_its_files(files: dict[str, Path]) -> None:
    flags = TritonFlags(Path("/models"), (), 10, "prefix-", tls_files=files).arguments(())
    assert ("--grpc-use-ssl=true" in flags) == bool(files)
