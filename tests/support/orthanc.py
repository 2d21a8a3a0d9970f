"""A real PACS: Debian's Orthanc with its DICOMweb plugin, on loopback, started and stopped by tests."""

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.support.live_triton import free_port

_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
_STARTS_S = 120.0


@dataclass
class Orthanc:
    """One Orthanc, which keeps what it stores while it is stopped.

    Attributes:
        program: Its path.
        folder: For its configuration, its log and what it stores.
        settings: Beside, or in place of, those that tests need.
    """

    program: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    http_port: int = field(default_factory=free_port)
    dicom_port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def root(self) -> str:
        """Of its own interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def url(self) -> str:
        """Of its DICOMweb."""
        return f"{self.root}/dicom-web"

    @property
    def log(self) -> Path:
        """Of all its starts."""
        return self.folder / "orthanc.log"

    def start(self) -> None:
        """Start it, and wait until it answers; the first time at other ports, where others have taken these."""
        is_first = not self.log.exists()
        while not self._has_started():
            log = self.log.read_text()
            assert is_first, log
            assert "port" in log, log
            self.http_port, self.dicom_port = free_port(), free_port()
            self.log.unlink()

    def _has_started(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "orthanc.json"
        config.write_text(
            json.dumps(
                {
                    "Name": "ctseg tests",
                    "StorageDirectory": str(self.folder / "stored"),
                    "IndexDirectory": str(self.folder / "stored"),
                    "HttpPort": self.http_port,
                    "DicomPort": self.dicom_port,
                    "RemoteAccessAllowed": False,  # from loopback alone
                    "AuthenticationEnabled": False,
                    "DicomAlwaysAllowStore": False,
                    "DicomCheckModalityHost": True,
                    "DicomModalities": {"scanner": ["SCANNER", "127.0.0.1", free_port()]},
                    "Plugins": [_PLUGIN],
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                    "StableAge": 1,
                    **self.settings,
                }
            )
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, str(config)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        give_up_at = time.monotonic() + _STARTS_S
        while not self._answers():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < give_up_at, "Orthanc does not answer"
            time.sleep(0.05)
        return True

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal, and wait for its end."""
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, number)
            self._process.wait(timeout=_STARTS_S)
            self._process = None

    def send(self, folder: Path) -> None:
        """Send the files of a folder by C-STORE."""
        words = ["-v", "-aet", "SCANNER", "-aec", "ORTHANC", "+sd", "127.0.0.1", str(self.dicom_port), str(folder)]
        done = subprocess.run(["dcmsend", *words], check=False, capture_output=True, text=True, timeout=600)
        told = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"{told}{self.log.read_text()[-3000:]}"
        assert "NOT sent" not in told, told  # which is no failure to dcmsend

    def put(self, *paths: Path) -> None:
        """Store files by its own interface, the quickest way."""
        for path in paths:
            requests.post(f"{self.root}/instances", data=path.read_bytes(), timeout=60).raise_for_status()

    def ids(self, level: str, **query: str) -> list[str]:
        """Return its own names of what it has, such as series whose ``Modality`` is ``SEG``."""
        what = {"Level": level, "Query": query}
        found: list[str] = requests.post(f"{self.root}/tools/find", json=what, timeout=60).json()
        return found

    def delete(self, level: str, name: str) -> None:
        """Delete one thing, as a person does."""
        requests.delete(f"{self.root}/{level}/{name}", timeout=60).raise_for_status()

    def clear(self) -> None:
        """Delete everything."""
        for name in self.ids("Patient"):
            self.delete("patients", name)

    def _answers(self) -> bool:
        for port in (self.http_port, self.dicom_port):
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)):
                    return False
        return True
