"""Podman with a storage of its own, and the names that all steps share."""

import os
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.check_images.claims import ClaimError

ROOT = Path(__file__).parents[2]
TRAINER_USER = "12345:12345"  # no account has this id
SERVER_USER = "1000:1000"
MODEL = "sarcoma"
KEY = "correct-horse-battery-staple"


@dataclass(frozen=True)
class Machine:
    """Podman with a storage of its own.

    Attributes:
        scratch: Where everything lies.
        environment: What podman needs in its environment.
    """

    scratch: Path
    environment: dict[str, str]

    @classmethod
    def prepare(cls, scratch: Path) -> "Machine":
        """Write podman's configuration."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        (scratch / "storage.conf").write_text(
            f'[storage]\ndriver="overlay"\ngraphroot="{scratch}/store"\nrunroot="{scratch}/run"\n'
        )
        (scratch / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits=["nofile={limit}:{limit}","nproc=4096:4096"]\n'
            '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
            '[network]\nnetwork_backend="netavark"\n'
        )
        environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(scratch / "storage.conf"),
            "CONTAINERS_CONF": str(scratch / "containers.conf"),
            "ENGINE": "podman",
            "GPU": "",
            "TRAIN_IMAGE": "localhost/ci/train",
            "SERVE_IMAGE": "localhost/ci/serve",
        }
        return cls(scratch, environment)

    def run(
        self, *command: object, fails: bool | None = False, timeout_s: float = 900, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program; stop unless it does (or does not) fail. ``fails=None`` takes both."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**self.environment, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
        with (self.scratch / "commands.log").open("a") as log:
            log.write(f"\n$ {' '.join(words)}\n{done.stdout}[status {done.returncode}]\n")
        if fails is not None and bool(done.returncode) != fails:
            raise ClaimError(f"`{' '.join(words)}` ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done

    def podman(self, *words: object, **options: Any) -> str:
        """Run podman; return what it prints."""
        return self.run("podman", *words, **options).stdout.strip()
