"""What the environment asks of the serving container: the variables ``CTSEG_…``."""

import re
import secrets
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ctseg.container.build_words import BuildWords
from ctseg.container.problems import problem_of_reading
from ctseg.documents import told_of_settings
from ctseg.errors import SetupError
from ctseg.model_spec import Precision
from ctseg.serving.entries import Backend
from ctseg.serving.whole_scan.settings import read_scan_settings

_PREFIX = "CTSEG_"
_KEY = re.compile(r"[A-Za-z0-9._~-]{16,256}")


def _build_words(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return BuildWords.from_text(value)
    except ValueError as error:
        raise ValueError(f"{_PREFIX}BUILD_OPTIONS={value}: {error}") from error


class Settings(BaseSettings):
    """The settings, each read from the variable of its name in capitals after ``CTSEG_``.

    Attributes:
        bundles: A bundle, or a folder of bundles.
        models: Triton's model repository.
        backend: Of the entries that are built.
        precision: Of the entries that are built.
        build_options: Further words for ``ctseg build``.
        model_control: ``explicit`` lets holders of the key load and unload models while serving.
        tls: ``off``, ``server`` or ``mutual``.
        tls_folder: Holds ``tls.crt``, ``tls.key`` and, for ``mutual``, ``ca.crt``.
        http: ``inside`` keeps HTTP on loopback; ``open`` lets it out, in plain text.
        admin_key_file: Holds the key; without it there is a random one that nobody knows.
        exit_timeout_s: How long requests may go on after SIGTERM, in seconds.
        lock_timeout_s: Longest wait for another server that builds into the same repository, in seconds.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, validate_default=True, extra="forbid"
    )

    bundles: Path = Path("/bundles")
    models: Path = Path("/models")
    backend: Backend = "tensorrt"
    precision: Precision = "fp32"
    build_options: Annotated[BuildWords, NoDecode, BeforeValidator(_build_words)] = BuildWords()
    model_control: Literal["none", "explicit"] = "none"
    tls: Literal["off", "server", "mutual"] = "off"
    tls_folder: Path = Path("/run/ctseg/tls")
    http: Literal["inside", "open"] = "inside"
    admin_key_file: Path | None = None
    exit_timeout_s: int = Field(default=25, ge=1)
    lock_timeout_s: int = Field(default=3600, ge=1)

    @field_validator("tls_folder")
    @classmethod
    def _tls_files_are_readable(cls, folder: Path, info: ValidationInfo) -> Path:
        mode = info.data.get("tls", "off")
        problems = [problem for path in _tls_files(mode, folder).values() if (problem := problem_of_reading(path))]
        if problems:
            raise ValueError(f"{_PREFIX}TLS={mode}: {'; '.join(problems)}")
        return folder

    @field_validator("http")
    @classmethod
    def _http_is_no_way_round_tls(cls, http: str, info: ValidationInfo) -> str:
        if http == "open" and (mode := info.data.get("tls", "off")) != "off":
            raise ValueError(
                f"{_PREFIX}HTTP=open: HTTP has no TLS and would be a way round {_PREFIX}TLS={mode}: expected inside, "
                f"with a proxy in the container's network"
            )
        return http

    @field_validator("admin_key_file")
    @classmethod
    def _key_can_be_used(cls, file: Path | None) -> Path | None:
        if file is None:
            return None
        if problem := problem_of_reading(file):
            raise ValueError(f"{_PREFIX}ADMIN_KEY_FILE: {problem}")
        if not _KEY.fullmatch(_key_in(file)):
            raise ValueError(
                f"{_PREFIX}ADMIN_KEY_FILE={file}: expected one word of 16 to 256 letters, digits or . _ ~ -"
            )
        return file

    @property
    def explicit(self) -> bool:
        """Whether models can be loaded and unloaded while serving."""
        return self.model_control == "explicit"

    @property
    def tls_files(self) -> dict[str, Path]:
        """The files that TLS needs, by the name of tritonserver's flag."""
        return _tls_files(self.tls, self.tls_folder)

    @cached_property
    def admin_key(self) -> str:
        """What the header of closed protocols must say."""
        return secrets.token_hex(32) if self.admin_key_file is None else _key_in(self.admin_key_file)

    @property
    def build_words(self) -> BuildWords:
        """How bundles are built: backend and precision, unless the further words name others."""
        named = self.build_options.model_dump(exclude_unset=True)
        return BuildWords.model_validate({"backend": self.backend, "precision": self.precision, **named})


def read_settings() -> Settings:
    """Read the variables ``CTSEG_…``, and look at those that whole scans read at their first request.

    Raises:
        SetupError: Values, the key or certificates cannot be used; all problems are told at once.
    """
    problems = []
    try:
        settings = Settings()
    except ValidationError as error:
        problems += told_of_settings(error, prefix=_PREFIX)
    try:
        read_scan_settings()
    except SetupError as error:
        problems.append(str(error))
    if problems:
        raise SetupError("; ".join(problems))
    return settings


def _tls_files(mode: str, folder: Path) -> dict[str, Path]:
    files = {"--grpc-server-cert": folder / "tls.crt", "--grpc-server-key": folder / "tls.key"}
    if mode == "mutual":
        files["--grpc-root-cert"] = folder / "ca.crt"
    return {} if mode == "off" else files


def _key_in(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip()
