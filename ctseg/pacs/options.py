"""How to talk to a PACS: its address, who asks, encryption, patience."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ctseg.errors import SetupError
from ctseg.files.certificates import check_pair, read_pem
from ctseg.files.regular import open_regular

_BEARER = "bearer "
_MOST_CREDENTIALS_BYTES = 1 << 16


@dataclass(frozen=True)
class Credentials:
    """Where the credentials lie; they are read anew for every request, since tokens expire.

    Attributes:
        file: Holds ``USER:PASSWORD``, or ``Bearer TOKEN``.
        variable: Of the environment, with the same.

    Raises:
        SetupError: Both are given.
    """

    file: Path | None = None
    variable: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.variable is not None:
            raise SetupError(
                "credentials in a file, or in a variable of the environment: give one of the two",
                settings=("credentials", "credentials_env"),
            )

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return self.file is not None or self.variable is not None

    def read(self) -> tuple[str, str] | str | None:
        """Return user and password, or a token; None: there are none.

        Raises:
            SetupError: They cannot be read, or are neither.
        """
        if not self.given:
            return None
        text, where = self._text()
        if text.lower().startswith(_BEARER) and (token := text[len(_BEARER) :].strip()):
            return _printable(token, where)
        user, colon, password = text.partition(":")
        if not colon or not user:
            raise SetupError(f"{where}: expected USER:PASSWORD, or Bearer TOKEN", settings=("credentials",))
        return _printable(user, where), password

    def _text(self) -> tuple[str, str]:
        if self.variable is not None:
            where = f"the variable {self.variable}"
            if not os.environ.get(self.variable):
                raise SetupError(f"{where} is not set, or empty", settings=("credentials_env",))
            return os.environ[self.variable].strip(), where
        if self.file is None:
            raise ValueError("no credentials are given")
        try:
            with open_regular(self.file) as file:
                return file.read(_MOST_CREDENTIALS_BYTES).decode().strip(), str(self.file)
        except OSError as error:
            raise SetupError(
                f"{self.file}: credentials cannot be read: {error.strerror or error}", settings=("credentials",)
            ) from error
        except UnicodeDecodeError as error:
            raise SetupError(f"{self.file}: credentials are no text", settings=("credentials",)) from error


@dataclass(frozen=True)
class PacsOptions:
    """How to talk to a PACS.

    Attributes:
        url: Root of its DICOMweb, such as ``https://pacs.example/dicom-web``; without credentials.
        credentials: Where the credentials lie.
        ca_certificates: PEM file of the trusted authorities; None: those that requests trusts.
        client_certificate: PEM file, for mutual TLS.
        client_key: PEM file of its private key.
        timeout_s: Longest time without a byte of an answer.
        patience_s: How long a request is tried again while the PACS is away.
        most_series_bytes: Of one series; more is refused.

    Raises:
        SetupError: The address cannot be used, or a certificate.
    """

    url: str
    credentials: Credentials = Credentials()
    ca_certificates: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    timeout_s: float = 60.0
    patience_s: float = 60.0
    most_series_bytes: int = 8 << 30

    def __post_init__(self) -> None:
        self._check_url()
        if self.ca_certificates is not None:
            read_pem(self.ca_certificates, "authorities", settings=("ca_certificates",))
        check_pair(self.client_certificate, self.client_key, settings=("pacs_client_certificate", "pacs_client_key"))

    @property
    def root(self) -> str:
        """The address without a slash at its end."""
        return self.url.rstrip("/")

    @property
    def shown(self) -> str:
        """What messages call the PACS."""
        return urlsplit(self.url).netloc

    def _check_url(self) -> None:
        setting = ("dicomweb",)
        try:
            parts = urlsplit(self.url)
            named = (parts.hostname, parts.port)
        except ValueError as error:
            raise SetupError("the address of the PACS is no URL: write https://HOST/PATH", settings=setting) from error
        if parts.username is not None or parts.password is not None or "@" in parts.netloc:
            raise SetupError(
                "the address of the PACS holds credentials, which command lines and logs would show: put them into a "
                "file or the environment",
                settings=("credentials", "credentials_env"),
            )
        if parts.scheme not in ("http", "https") or not named[0] or parts.query or parts.fragment:
            raise SetupError("the address of the PACS cannot be used: write https://HOST/PATH", settings=setting)


def _printable(text: str, where: str) -> str:
    if not text.isprintable():
        raise SetupError(f"{where}: credentials have a line break or another control", settings=("credentials",))
    return text
