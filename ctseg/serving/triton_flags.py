"""The command line of ``tritonserver``: one builder for the embedded server and the serving container.

Both never let Triton guess a configuration, call a server ready only when every model is, and ask for a key
before a protocol that can change the server.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LOOPBACK = "127.0.0.1"
_MESSAGES_KEPT = 2
"""So many of the largest messages that it has had keep their memory in Triton for good; 8 if nobody says otherwise."""


@dataclass(frozen=True)
class Restriction:
    """Protocols that ask for a header.

    Attributes:
        protocols: Triton's names of them.
        header: Name of the header; over gRPC it has the prefix ``triton-grpc-protocol-``.
        key: What it must say.
        over_http: Whether it holds for the HTTP endpoint too.
    """

    protocols: Sequence[str]
    header: str
    key: str = field(repr=False)
    over_http: bool = False

    @property
    def flags(self) -> list[str]:
        """The flags that switch it on."""
        text = f"{','.join(self.protocols)}:{self.header}={self.key}"
        names = ["--grpc-restricted-protocol", *(["--http-restricted-api"] if self.over_http else [])]
        return [f"{name}={text}" for name in names]


@dataclass(frozen=True)
class TritonFlags:
    """What a tritonserver shall do.

    Attributes:
        repository: The model repository that it serves.
        restrictions: What asks for a key.
        exit_timeout_s: How long requests may go on after SIGTERM, in seconds.
        shm_prefix: Begin of the names of the python backend's shared memory.
        control: Triton's mode of model control.
        load: Models to load at the start under explicit control.
        address: Where gRPC and the metrics listen.
        grpc_port: Port of gRPC.
        http_port: Port of HTTP, which has no TLS; None has no HTTP.
        http_address: Where HTTP listens.
        metrics_port: Port of the metrics; None serves none.
        tls_files: Files by the name of Triton's flag; empty means no TLS.
        mutual_tls: Whether clients need a certificate.
        client_shared_memory: Whether clients may register shared memory, where Triton has the switch.
        backends: Folder of the backends; None for Triton's own.
        further: Further flags.
    """

    repository: Path
    restrictions: Sequence[Restriction]
    exit_timeout_s: int
    shm_prefix: str
    control: Literal["none", "poll", "explicit"] = "none"
    load: Sequence[str] = ()
    address: str = LOOPBACK
    grpc_port: int = 8001
    http_port: int | None = None
    http_address: str = LOOPBACK
    metrics_port: int | None = None
    tls_files: Mapping[str, Path] = field(default_factory=dict)
    mutual_tls: bool = False
    client_shared_memory: bool | None = None
    backends: Path | None = None
    further: Sequence[str] = ()

    def arguments(self, known_flags: Collection[str]) -> list[str]:
        """Return the arguments.

        Args:
            known_flags: The flags that this tritonserver knows: one that it does not know would end it.
        """
        return [
            f"--model-repository={self.repository}",
            f"--model-control-mode={self.control}",
            *(["--repository-poll-secs=2"] if self.control == "poll" else []),
            *(f"--load-model={name}" for name in self.load),  # `*` would also take what is no model
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            f"--exit-timeout-secs={self.exit_timeout_s}",
            *self.further,  # before what guards the server: the last of two equal flags counts
            *self._endpoints(known_flags),
            *(flag for restriction in self.restrictions for flag in restriction.flags),
            *self._tls(),
            *self._client_shared_memory(known_flags),
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            *([] if self.backends is None else [f"--backend-directory={self.backends}"]),
        ]

    def _endpoints(self, known_flags: Collection[str]) -> list[str]:
        flags = [f"--grpc-address={self.address}", f"--grpc-port={self.grpc_port}"]
        if "--grpc-infer-allocation-pool-size" in known_flags:
            flags.append(f"--grpc-infer-allocation-pool-size={_MESSAGES_KEPT}")
        if self.http_port is None:
            flags.append("--allow-http=false")
        else:
            flags += ["--allow-http=true", f"--http-address={self.http_address}", f"--http-port={self.http_port}"]
            if "--http-max-input-size" in known_flags:
                flags.append(f"--http-max-input-size={2**31 - 1}")
        if self.metrics_port is not None:
            return [*flags, f"--metrics-address={self.address}", f"--metrics-port={self.metrics_port}"]
        return [
            *flags,
            "--allow-metrics=false",
            *(["--allow-gpu-metrics=false"] if "--allow-gpu-metrics" in known_flags else []),
        ]

    def _tls(self) -> list[str]:
        if not self.tls_files:
            return []
        return [
            "--grpc-use-ssl=true",
            *(f"{flag}={path}" for flag, path in self.tls_files.items()),
            *(["--grpc-use-ssl-mutual=true"] if self.mutual_tls else []),
        ]

    def _client_shared_memory(self, known_flags: Collection[str]) -> list[str]:
        if self.client_shared_memory is None or "--allow-client-shm" not in known_flags:
            return []
        return [f"--allow-client-shm={str(self.client_shared_memory).lower()}"]


def flags_in_help(text: str) -> frozenset[str]:
    """Return the flags that ``tritonserver --help`` lists, such as ``--allow-client-shm``."""
    return frozenset(re.findall(r"^\s*(?:-\w,\s*)?(--[a-z][a-z0-9-]*)", text, re.MULTILINE))
