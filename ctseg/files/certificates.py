"""Files of certificates and keys (PEM), looked at before anybody is connected to."""

import ssl
from pathlib import Path

from ctseg.errors import SetupError
from ctseg.files.regular import open_regular


def read_pem(path: Path, what: str, *, settings: tuple[str, ...]) -> bytes:
    """Read a PEM file.

    Args:
        path: The file.
        what: It is, such as ``client key``.
        settings: That name it.

    Raises:
        SetupError: It cannot be read, or is no PEM file.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise SetupError(f"TLS {what} {path} cannot be read: {error.strerror or error}", settings=settings) from error
    if b"-----BEGIN " not in content:
        raise SetupError(f"TLS {what} {path} is not a PEM file (no -----BEGIN line)", settings=settings)
    return content


def check_pair(certificate: Path | None, key: Path | None, *, settings: tuple[str, ...]) -> None:
    """Refuse a client's certificate and key that do not go together; nothing is asked of a person.

    Args:
        certificate: PEM file; None: there is none.
        key: PEM file of its private key; None likewise.
        settings: That name the two.

    Raises:
        SetupError: One is missing, cannot be read or is encrypted, or they do not belong together.
    """
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise SetupError(
            "mutual TLS needs both a client certificate and a client key; only one was given", settings=settings
        )
    read_pem(certificate, "client certificate", settings=settings[:1])
    read_pem(key, "client key", settings=settings[1:])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        why = "they do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else str(error.reason or error)
        raise SetupError(
            f"TLS client certificate {certificate} and key {key} cannot be used: {why}", settings=settings
        ) from error
