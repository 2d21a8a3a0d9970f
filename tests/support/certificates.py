"""Certificates for tests, made by openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


@dataclass(frozen=True)
class Authority:
    """Who signs certificates.

    Attributes:
        folder: Where all files are written.
        name: Its name.
    """

    folder: Path
    name: str = "Hospital root"

    @property
    def root(self) -> Path:
        """The file of its own certificate."""
        return self.folder / f"{self.name}.pem"

    def found(self) -> "Authority":
        """Make its key and certificate."""
        self.folder.mkdir(exist_ok=True)
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{self.name}.key", "-out", f"{self.name}.pem",
            "-subj", f"/CN={self.name}", "-days", "2",
        )  # fmt: skip
        return self

    def sign(self, who: str, *, names: str = "IP:127.0.0.1,DNS:localhost", days: int = 2) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key."""
        (self.folder / "names").write_text(f"subjectAltName={names}")
        self._openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}"
        )
        self._openssl(
            "x509", "-req", "-in", f"{who}.csr", "-CA", f"{self.name}.pem", "-CAkey", f"{self.name}.key",
            "-CAcreateserial", "-days", str(days), "-out", f"{who}.pem", "-extfile", "names",
        )  # fmt: skip
        return self.folder / f"{who}.pem", self.folder / f"{who}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
