"""``CTSEG_BUILD_OPTIONS``: the words of ``ctseg build`` as typed settings of the container.

They are not parsed by the command line's own parser: that room lies above this one, and flags are known there
alone. A test holds that both take the same words.
"""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from ctseg.documents import Document, told_of_settings
from ctseg.model_spec import Precision
from ctseg.serving.entries import Backend

if TYPE_CHECKING:
    from ctseg.deploy.build import BuildOptions


class BuildWords(Document):
    """Further words for a build, each of the name and meaning that it has for ``ctseg build``."""

    backend: Backend = "tensorrt"
    precision: Precision = "fp32"
    name: str | None = None
    version: int | None = Field(default=None, ge=1)
    max_batch_size: int | None = Field(default=None, ge=1)
    instances: int = Field(default=1, ge=1)
    max_queue_delay_us: int = Field(default=2000, ge=0)
    warmup: bool = False
    if_needed: bool = True
    accept_unproven: bool = False
    no_whole_scans: bool = False
    prove_live: bool = False
    device: Literal["cpu", "gpu"] = "cpu"
    runtime: Literal["exact", "fast", "onnxruntime", "openvino"] = "exact"
    threads: int = Field(default=0, ge=0)
    workspace_mb: int = Field(default=4096, ge=1)
    builder_level: int = Field(default=3, ge=0, le=5)
    tf32: bool = False
    timing_cache: Path | None = None
    server_tensorrt: str | None = None

    @classmethod
    def from_text(cls, text: str) -> "BuildWords":
        """Read the words as a shell would.

        Raises:
            ValueError: A word is none of a build's, or its value cannot be used; all problems are told at once.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        for name, field in cls.model_fields.items():
            if field.annotation is bool:
                parser.add_argument(f"--{name}", action="store_const", const=True)
            else:
                parser.add_argument(f"--{name}")
        words = [_snake_case(word) for word in shlex.split(text)]
        try:
            found, unknown = parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise ValueError(str(error)) from error
        if unknown:
            raise ValueError(f"{' '.join(unknown)}: no words of `ctseg build` that a server may take")
        try:
            return cls.model_validate({name: value for name, value in vars(found).items() if value is not None})
        except ValidationError as error:
            raise ValueError("; ".join(told_of_settings(error, prefix="--"))) from error

    def options(self) -> "BuildOptions":
        """Return the options of a build; loads the room of deployment."""
        from ctseg.deploy.build import BuildOptions
        from ctseg.deploy.tensorrt_plan import PlanOptions

        batch = self.max_batch_size or 4
        return BuildOptions(
            backend=self.backend,
            precision=self.precision,
            name=self.name,
            version=self.version,
            device=self.device,
            runtime=self.runtime,
            max_batch_size=self.max_batch_size,
            instance_count=self.instances,
            max_queue_delay_us=self.max_queue_delay_us,
            threads=self.threads,
            warmup=self.warmup,
            if_needed=self.if_needed,
            accept_unproven=self.accept_unproven,
            whole_scans=not self.no_whole_scans,
            prove_live=self.prove_live,
            plan=PlanOptions(
                opt_batch=batch,
                max_batch=batch,
                workspace_mb=self.workspace_mb,
                optimization_level=self.builder_level,
                tf32=self.tf32,
                timing_cache=self.timing_cache,
            ),
            server_tensorrt=self.server_tensorrt,
        )


def _snake_case(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word
