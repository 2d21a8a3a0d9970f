"""Walk the road from a PACS and back with a real Orthanc, and print a table of what came.

    .venv/bin/python -m scripts.pacs --output pacs_output

Orthanc and dcmtk come from Debian's packages (scripts/dicom_tools.sh). Everything runs on loopback: CT series are sent
by C-STORE, `ctseg watch` finds, segments and stores, and what is fetched again is compared byte for byte. Watchers are
killed in every step and started again; the PACS is stopped under one; two share a folder. With CTSEG_TEST_DATA real CT
is sent, else a synthetic series. pacs_output/ keeps the logs of Orthanc and of every watcher.

Exit status: 0 where everything came as it must.
"""

import argparse
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dicomweb_client.api import DICOMwebClient
from rich.console import Console
from rich.table import Table

from ctseg.files.dicom.objects import is_same_data_set, uids_of
from tests.support.certificates import Authority
from tests.support.dicom_series import ct_series, write_series
from tests.support.live_triton import free_port
from tests.support.orthanc import Orthanc

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "model_repository"
REAL = "sts_sarcoma_dicom/STS_042/ct"
QUICK = ["--disable_tta", "-step_size", "1"]
ALL_FORMATS = ["--output_format", "nifti", "dicom_seg", "dicom_rtstruct", "dicom_sr"]
MODALITIES = ("SEG", "RTSTRUCT", "SR")
_WAITS_S = 600.0


@dataclass
class Walk:
    """One Orthanc, and the watchers that are started beside it.

    Attributes:
        orthanc: Runs.
        folder: For output folders and logs.
        sent: Folder of the series that is sent.
        rows: What was done, what came, whether it was right, seconds.
    """

    orthanc: Orthanc
    folder: Path
    sent: Path
    rows: list[tuple[str, str, bool, float]] = field(default_factory=list)
    _watchers: int = 0

    def step(self, what: str, do: Callable[[], str]) -> None:
        """Do a step in an empty PACS; an assertion that fails is what came."""
        began = time.monotonic()
        self.orthanc.clear()
        try:
            came, is_right = do(), True
        except Exception as error:  # whatever it is, it is what came
            came, is_right = f"NOT AS IT MUST: {type(error).__name__}: {error}", False
        self.rows.append((what, came, is_right, time.monotonic() - began))
        print(f"{'ok ' if is_right else 'BAD'} {what}: {came}", flush=True)

    def start(
        self, output: str, *words: str, url: str | None = None, server: str | None = None, **environment: str
    ) -> "Watcher":
        """Start a watcher, with a server of its own where none is named."""
        self._watchers += 1
        log = self.folder / f"watch-{self._watchers:02}-{output}.log"
        served = ["--repository", str(MODELS)] if server is None else ["--url", server]
        command = [
            sys.executable, "-m", "ctseg", "watch", "--dicomweb", url or self.orthanc.url, "-m", "sarcoma", *served,
            "-o", str(self.folder / output), "--study_date", "19000101-", "--stable_s", "1", "--poll_s", "1",
            "--pacs_patience_s", "5", *QUICK, *words,
        ]  # fmt: skip
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
        return Watcher(process, log)

    def once(self, output: str, *words: str, **options: Any) -> "Watcher":
        """Let a watcher do what is there."""
        watcher = self.start(output, "--once", *words, **options)
        watcher.wait()
        return watcher

    def results(self) -> dict[str, int]:
        """Return how many results are in the PACS, by modality."""
        found = {modality: len(self.orthanc.ids("Instance", Modality=modality)) for modality in MODALITIES}
        return {modality: count for modality, count in found.items() if count}

    def compared(self, output: str) -> int:
        """Fetch the results of a folder by another client, and return how many are the same byte for byte."""
        client = DICOMwebClient(self.orthanc.url)
        count = 0
        for path in sorted((self.folder / output).glob("*.dcm")):
            uids = uids_of(path)
            fetched = self.folder / "fetched.dcm"
            instance = client.retrieve_instance(
                uids.study, uids.series, uids.instance, media_types=(("application/dicom", "*"),)
            )
            instance.save_as(fetched)
            assert is_same_data_set(path, fetched), f"{path.name} came back as another"
            count += 1
        return count

    def nothing_is_left(self, output: str) -> None:
        """Check that no watcher has left a run, or anything that it fetched."""
        memory = self.folder / output / ".ctseg"
        left = [*memory.glob("runs/*"), *memory.glob("claims/*"), *(self.folder / output).rglob("fetched")]
        assert not left, f"left: {[str(path.relative_to(self.folder)) for path in left]}"


@dataclass
class Watcher:
    """A process of ``ctseg watch``."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def said(self) -> str:
        """Its lines so far."""
        return self.log.read_text()

    def wait(self) -> int:
        """Wait for its end; return the exit status."""
        return self.process.wait(timeout=_WAITS_S)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something has come true while it runs."""
        give_up_at = time.monotonic() + _WAITS_S
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.said[-500:]}"
            assert time.monotonic() < give_up_at, f"waited in vain for {what}: {self.said[-500:]}"
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it, as the kernel does where memory is short."""
        self.process.kill()
        self.process.wait()

    def expect(self, status: int) -> None:
        """Check its exit status."""
        found = self.wait()
        assert found == status, f"exit status {found}, not {status}: {self.said[-500:]}"


class Gate:
    """Hands bytes on between a watcher and Orthanc; may hold them in the middle of one request or its answer.

    Args:
        port: Of Orthanc.
        mark: Bytes of the request; None: nothing is held.
        of_answer: Whether its answer is held, else the request itself.
        after: Bytes that pass before.
        tls: How the watcher's side is encrypted.
    """

    def __init__(
        self,
        port: int,
        mark: bytes | None = None,
        *,
        of_answer: bool = False,
        after: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._port, self._mark, self._of_answer, self._after, self._tls = port, mark, of_answer, after, tls
        self.reached = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.getsockname()[1]}/dicom-web"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            with suppress(OSError):
                if self._tls is not None:
                    client = self._tls.wrap_socket(client, server_side=True)
                pacs = socket.create_connection(("127.0.0.1", self._port))
                held = threading.Event()
                for ends in ((client, pacs, True), (pacs, client, False)):
                    threading.Thread(target=self._hand_on, args=(*ends, held), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket, is_request: bool, held: threading.Event) -> None:
        left = self._after
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if is_request and self._mark is not None and self._mark in data:
                    held.set()
                if held.is_set() and is_request != self._of_answer:
                    left -= len(data)
                    if left < 0:
                        self.reached.set()
                        threading.Event().wait()  # until the process ends
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def main(argv: Sequence[str] | None = None) -> int:
    """Walk; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("pacs_output"), help="for logs; removed before")
    parser.add_argument("--only", default="", metavar="WORDS", help="steps whose names have these words")
    args = parser.parse_args(argv)
    folder: Path = args.output.absolute()
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or shutil.which("dcmsend") is None:
        print("Orthanc or dcmtk is not installed: scripts/dicom_tools.sh", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    real = Path(os.environ.get("CTSEG_TEST_DATA") or "/nowhere") / REAL
    sent = real if real.is_dir() else _synthetic(folder / "series")
    orthanc = Orthanc(program, folder / "orthanc")
    orthanc.start()
    walk = Walk(orthanc, folder, sent)
    try:
        for what, do in STEPS.items():
            if args.only in what:
                walk.step(what, partial(do, walk))
    finally:
        orthanc.stop()
        shutil.rmtree(folder / "orthanc" / "stored", ignore_errors=True)
    table = Table("", "what was done", "what came", "s", title=REAL if sent == real else "a synthetic series")
    for what, came, is_right, seconds in walk.rows:
        table.add_row("ok" if is_right else "BAD", what, came, f"{seconds:.0f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    lines = [line for line in orthanc.log.read_text(errors="replace").splitlines() if line.startswith("E")]
    print(f"{orthanc.log}: {len(lines)} errors")
    return 0 if all(row[2] for row in walk.rows) else 1


def _synthetic(folder: Path) -> Path:
    """Write a series of the demo's spacing: a bright ball in a dark field."""
    z, y, x = np.ogrid[-1:1:40j, -1:1:96j, -1:1:96j]
    stored = np.where(z**2 + y**2 + x**2 < 0.5, 1064, 24).astype(np.uint16)
    series = ct_series(
        stored.shape, stored=stored, pixel_spacing_mm=(0.98, 0.98), slice_spacing_mm=3.27, StudyDate="20260105"
    )
    write_series(folder, series.datasets)
    return folder


def _whole_road(walk: Walk) -> str:
    walk.orthanc.send(walk.sent)
    walk.once("road", *ALL_FORMATS).expect(0)
    assert walk.results() == dict.fromkeys(MODALITIES, 1), walk.results()
    same = walk.compared("road")
    walk.nothing_is_left("road")
    again = walk.once("road", *ALL_FORMATS)
    again.expect(0)
    assert "0 stored" in again.said, again.said
    return f"SEG, RTSTRUCT and SR stored; {same} fetched by another client are the same; nothing is done twice"


def _labelmap(walk: Walk) -> str:
    walk.orthanc.send(walk.sent)
    walk.once("labelmap", "--segmentation_type", "labelmap").expect(0)
    return f"a SEG of the type LABELMAP is stored; {walk.compared('labelmap')} came back the same"


def _killed(output: str, mark: bytes, *, of_answer: bool, after: int) -> Callable[[Walk], str]:
    def do(walk: Walk) -> str:
        walk.orthanc.send(walk.sent)
        gate = Gate(walk.orthanc.http_port, mark, of_answer=of_answer, after=after)
        watcher = walk.start(output, *ALL_FORMATS, "--once", url=gate.url)
        watcher.wait_for(gate.reached.is_set, "the gate")
        watcher.kill()
        before = walk.results()
        return _started_again(walk, output, before)

    return do


def _killed_at_work(walk: Walk) -> str:
    walk.orthanc.send(walk.sent)
    watcher = walk.start("killed_work", *ALL_FORMATS, "--once")
    watcher.wait_for(lambda: "fetched" in watcher.said, "the fetch")
    time.sleep(1)
    watcher.kill()
    return _started_again(walk, "killed_work", walk.results())


def _told_to_end(walk: Walk) -> str:
    walk.orthanc.send(walk.sent)
    watcher = walk.start("told", *ALL_FORMATS)
    watcher.wait_for(lambda: "fetched" in watcher.said, "the fetch")
    time.sleep(1)
    watcher.process.send_signal(signal.SIGTERM)
    watcher.expect(143)
    walk.nothing_is_left("told")
    return f"exit status 143, nothing is left; {_started_again(walk, 'told', walk.results())}"


def _started_again(walk: Walk, output: str, before: dict[str, int]) -> str:
    walk.once(output, *ALL_FORMATS).expect(0)
    assert walk.results() == dict.fromkeys(MODALITIES, 1), walk.results()
    same = walk.compared(output)
    walk.nothing_is_left(output)
    return f"in the PACS after the kill: {before or 'nothing'}; started again: {same} results, each once"


def _stopped_pacs(walk: Walk) -> str:
    walk.orthanc.stop()
    watcher = walk.start("stopped")
    try:
        watcher.wait_for(lambda: "looked at again" in watcher.said, "a PACS that is away")
        walk.orthanc.start()
        walk.orthanc.send(walk.sent)
        watcher.wait_for(lambda: "fetched" in watcher.said, "the fetch")
        walk.orthanc.stop(signal.SIGKILL)
        watcher.wait_for(lambda: watcher.said.count("looked at again") == 2, "the PACS to be away again")
        walk.orthanc.start()
        watcher.wait_for(lambda: "dicom_seg stored" in watcher.said, "the store")
        watcher.process.send_signal(signal.SIGTERM)
        watcher.expect(143)
    finally:
        watcher.process.kill()
        with suppress(AssertionError):
            walk.orthanc.stop()
        walk.orthanc.start()
    assert walk.results() == {"SEG": 1}, walk.results()
    assert watcher.said.count("windows") == 1, "it was segmented twice"
    walk.nothing_is_left("stopped")
    return "away at the start, killed after the fetch: waited for; segmented once, stored; SIGTERM ends with 143"


def _stopped_server(walk: Walk) -> str:
    port = free_port()
    walk.orthanc.send(walk.sent)
    server = _serve(port, walk.folder / "serve.log")
    watcher = walk.start("server", "--timeout_s", "5", server=f"127.0.0.1:{port}")
    try:
        watcher.wait_for(lambda: "fetched" in watcher.said, "the fetch")
        time.sleep(0.5)
        server.kill()
        server.wait()
        watcher.wait_for(lambda: "looked at again" in watcher.said, "a server that is away")
        server = _serve(port, walk.folder / "serve.log")
        watcher.wait_for(lambda: "dicom_seg stored" in watcher.said, "the store")
        watcher.process.send_signal(signal.SIGTERM)
        watcher.expect(143)
    finally:
        watcher.process.kill()
        server.terminate()
        server.wait()
    assert walk.results() == {"SEG": 1}, walk.results()
    walk.nothing_is_left("server")
    return "the watcher waits, connects anew, segments and stores"


def _serve(port: int, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "ctseg", "serve", "--repository", str(MODELS), "--grpc_port", str(port)]
    with log.open("ab") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    while True:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return process
        assert process.poll() is None, log.read_text()[-500:]
        time.sleep(0.1)


def _two_watchers(walk: Walk) -> str:
    _send_four(walk)
    watchers = [walk.start("two", "--once") for _ in range(2)]
    for watcher in watchers:
        watcher.expect(0)
    shares = [watcher.said.count("dicom_seg stored") for watcher in watchers]
    assert sum(shares) == 4, shares
    assert walk.results() == {"SEG": 4}, walk.results()
    walk.nothing_is_left("two")
    return f"4 series, {shares[0]} and {shares[1]} of them: each once"


def _two_of_which_one_is_killed(walk: Walk) -> str:
    _send_four(walk)
    first, second = (walk.start("one_killed", "--once") for _ in range(2))
    first.wait_for(lambda: "fetched" in first.said, "the fetch")
    first.kill()
    second.expect(0)
    assert walk.results() == {"SEG": 4}, walk.results()
    walk.nothing_is_left("one_killed")
    return f"the other does its own and the killed one's: {second.said.count('dicom_seg stored')} of 4, each once"


def _send_four(walk: Walk) -> None:
    for number in range(1, 5):
        folder = walk.folder / "several" / str(number)
        if not folder.is_dir():
            write_series(folder, ct_series((12, 40, 44), series=number, StudyDate="20260105").datasets)
        walk.orthanc.send(folder)


def _refused(walk: Walk) -> str:
    tilted = walk.folder / "tilted"
    write_series(tilted, ct_series((8, 20, 24), series=9, shear_degrees=14.0, StudyDate="20260105").datasets)
    walk.orthanc.send(tilted)
    walk.orthanc.send(walk.sent)
    first = walk.once("refused")
    first.expect(1)
    assert "1 stored, 0 left out, 1 refused" in first.said, first.said
    assert "Doe" not in first.said
    second = walk.once("refused")
    second.expect(0)
    assert "refused: as said" in first.said, first.said
    assert "refused:" not in second.said, second.said
    assert "2 ended before" in second.said, second.said
    return "a gantry tilt is named once, and stops no other: exit status 1, then 0"


def _deleted(walk: Walk) -> str:
    walk.orthanc.send(walk.sent)
    walk.once("deleted").expect(0)
    for name in walk.orthanc.ids("Instance", Modality="SEG"):
        walk.orthanc.delete("instances", name)
    walk.once("deleted").expect(0)
    assert walk.results() == {}, walk.results()
    walk.once("deleted", "--again").expect(0)
    assert walk.results() == {"SEG": 1}, walk.results()
    return "stays deleted; --again stores it again"


def _locked_pacs(walk: Walk) -> str:
    """TLS in front and a password, as a PACS in a hospital has them; Debian's Orthanc itself crashes with TLS."""
    authority = Authority(walk.folder / "certificates").found()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.sign("pacs"))
    users = {"AuthenticationEnabled": True, "RegisteredUsers": {"watcher": "a secret"}}
    locked = Orthanc(walk.orthanc.program, walk.folder / "locked", users)
    locked.start()
    try:
        url = Gate(locked.http_port, tls=tls).url
        trusted = ("--pacs_ca_certificates", str(authority.root))
        stranger = walk.once("locked", url=url)
        stranger.expect(2)
        assert "not trusted" in stranger.said, stranger.said
        unknown = walk.once("locked", *trusted, url=url)
        unknown.expect(2)
        assert "HTTP 401" in unknown.said, unknown.said
        login = ("--pacs_credentials_env", "PACS_LOGIN")
        known = walk.once("locked", *trusted, *login, url=url, PACS_LOGIN="watcher:a secret")
        known.expect(0)
        assert not any("a secret" in watcher.said for watcher in (stranger, unknown, known))
    finally:
        locked.stop(signal.SIGKILL)
        shutil.rmtree(walk.folder / "locked" / "stored", ignore_errors=True)
    return "a strange certificate and a missing password: exit status 2; with both: 0"


STEPS: dict[str, Callable[[Walk], str]] = {
    "sent by C-STORE, found, segmented, stored, fetched again": _whole_road,
    "the same with --segmentation_type labelmap": _labelmap,
    "killed (-9) during the fetch": _killed("killed_fetch", b"/series/", of_answer=True, after=100_000),
    "killed (-9) while it segments": _killed_at_work,
    "told to end (SIGTERM) while it segments": _told_to_end,
    "killed (-9) during the first store": _killed(
        "killed_store", b"POST /dicom-web/studies", of_answer=False, after=9_000
    ),
    "killed (-9) after the PACS has stored the first": _killed(
        "killed_answer", b"POST /dicom-web/studies", of_answer=True, after=0
    ),
    "the PACS is away, comes, is killed, comes": _stopped_pacs,
    "the server of the model is killed while it segments, and comes": _stopped_server,
    "two watchers, one folder": _two_watchers,
    "two watchers, one of which is killed (-9)": _two_of_which_one_is_killed,
    "a series that is refused": _refused,
    "a result that a person deletes": _deleted,
    "TLS and a password": _locked_pacs,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
