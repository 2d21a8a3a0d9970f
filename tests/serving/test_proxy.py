"""The proxy of the documentation before Triton's HTTP: a real nginx, a real server, TLS."""

import base64
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest

from ctseg.serving.process import ServerOptions, free_port
from ctseg.serving.server import embedded_server
from tests.support.certificates import Authority, needs_openssl
from tests.support.live_triton import wait_for
from tests.support.toy_models import toy_logits, toy_patches
from tests.support.whole_scans import write_scannable_entry

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docs" / "examples" / "nginx.conf"
CLIENT = ROOT / "examples" / "clients" / "segment.sh"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
USER = "lucy:correct-horse"

pytestmark = [
    pytest.mark.live,
    needs_openssl,
    pytest.mark.skipif(sys.platform != "linux", reason="the embedded server is for Linux"),
    pytest.mark.skipif(NGINX is None or shutil.which("curl") is None, reason="NEEDS nginx AND curl"),
]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Begin of a curl command that reaches the proxy, but for the password; the last word is to follow a path."""
    folder = tmp_path_factory.mktemp("proxy")
    authority = Authority(folder / "certificates").found()
    certificate, key = authority.sign("proxy")
    name, _, password = USER.partition(":")
    hashed = subprocess.run(["openssl", "passwd", "-6", password], check=True, capture_output=True, text=True).stdout
    (folder / "users").write_text(f"{name}:{hashed}")
    write_scannable_entry(folder / "models")
    port = free_port()
    with embedded_server(folder / "models", options=ServerOptions(is_private=False, http_port=0)) as server:
        text = CONFIGURATION.read_text()
        for documented, here in {
            "listen 8443": f"listen 127.0.0.1:{port}",
            "/run/ctseg/tls/tls.crt": str(certificate),
            "/run/ctseg/tls/tls.key": str(key),
            "/run/ctseg/users": str(folder / "users"),
            "http://127.0.0.1:8000": server.http_url or "",
        }.items():
            assert text.count(documented) == 1
            text = text.replace(documented, here)
        places = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; error_log {folder}/error.log; daemon off; user root; events {{}}\n"
            f"http {{ access_log off; {places}\n{text} }}"
        )
        nginx = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")])
        curl = ["curl", "-sS", "--cacert", str(authority.root), "-w", "\n%{http_code}"]
        address = f"https://127.0.0.1:{port}/v2"
        try:
            wait_for(lambda: answer_of([*curl, address], "")[0] or nginx.poll() is not None)
            yield [*curl, address]
        finally:
            nginx.terminate()
            nginx.wait()


def answer_of(curl: list[str], path: str, *words: str) -> tuple[int, str]:
    """Return the status, 0 where nobody answers, and the body."""
    *command, address = curl
    done = subprocess.run([*command, *words, f"{address}{path}"], capture_output=True, text=True, check=False)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_a_model_answers_through_the_proxy_who_has_the_password(proxy: list[str]) -> None:
    patches = toy_patches(1)
    whole = {"name": "input", "datatype": "FP32", "shape": patches.shape, "data": patches.ravel().tolist()}
    question = json.dumps({"inputs": [whole], "outputs": [{"name": "logits"}]})
    infer = ("/models/toy/infer", "-d", question)
    assert answer_of(proxy, *infer)[0] == 401
    assert answer_of(proxy, *infer, "-u", "lucy:wrong")[0] == 401
    status, body = answer_of(proxy, *infer, "-u", USER)
    assert status == 200
    logits = json.loads(body)["outputs"][0]
    np.testing.assert_allclose(np.reshape(logits["data"], logits["shape"]), toy_logits(patches), rtol=1e-6, atol=1e-6)
    for path in ("", "/health/ready", "/models/toy", "/models/toy/versions/1/stats", "/models/toy/config"):
        assert answer_of(proxy, path, "-u", USER)[0] == 200


def test_a_scan_is_segmented_through_the_proxy(proxy: list[str], tmp_path: Path) -> None:
    certificate, url = proxy[proxy.index("--cacert") + 1], proxy[-1].removesuffix("/v2")
    (tmp_path / ".curlrc").write_text(f'cacert = "{certificate}"\nuser = "{USER}"\n')
    scans = [tmp_path / "ct.nii.gz", tmp_path / "pet.nii.gz"]
    for scan in scans:
        nib.save(nib.Nifti1Image(np.zeros((9, 8, 7), np.int16), np.eye(4)), scan)
    words = ["bash", CLIENT, url, "toy_scan", tmp_path / "labels.nii.gz", *scans]
    done = subprocess.run(words, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "toy"
    assert nib.load(tmp_path / "labels.nii.gz").shape == (9, 8, 7)


def test_a_body_that_says_it_is_a_form_ends_no_server(proxy: list[str], tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(bytes(5 << 20))
    form = ("--data-binary", f"@{tmp_path / 'body'}", "-H", "Content-Type: application/x-www-form-urlencoded")
    status, body = answer_of(proxy, "/models/toy/infer", "-u", USER, *form)
    assert (status, json.loads(body)["error"][:35]) == (500, "failed to parse the request JSON bu")
    assert answer_of(proxy, "/health/ready", "-u", USER)[0] == 200


def test_so_many_scans_at_once_and_no_more(proxy: list[str]) -> None:
    host, port = urlsplit(proxy[-1]).hostname, urlsplit(proxy[-1]).port
    trust = ssl.create_default_context(cafile=proxy[proxy.index("--cacert") + 1])
    user = base64.b64encode(USER.encode()).decode()
    head = f"POST /v2/models/toy/infer HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {user}\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            raw = stack.enter_context(socket.create_connection((host, port)))
            stack.enter_context(trust.wrap_socket(raw, server_hostname=host)).sendall(
                f"{head}Content-Length: 1000\r\n\r\nhalf of a scan".encode()
            )
        wait_for(lambda: answer_of(proxy, "/models/toy", "-u", USER)[0] == 429)
    wait_for(lambda: answer_of(proxy, "/models/toy", "-u", USER)[0] == 200)


@pytest.mark.parametrize(
    ("path", "words", "status"),
    [
        ("/repository/index", ("-d", "{}"), 404),
        ("/models/toy/trace/setting", (), 404),
        ("/logging", (), 404),
        ("/systemsharedmemory/status", (), 404),
        ("/models/toy/../../repository/index", ("--path-as-is", "-d", "{}"), 404),
        ("/models/toy/infer", ("-X", "DELETE"), 403),
        ("/models/toy/infer", ("-d", "{}", "-H", "Transfer-Encoding: chunked", "--http1.1"), 411),
        ("/models/toy/infer", ("-d", "{}", "-H", "Content-Encoding: gzip"), 415),
        ("/models/toy/infer", ("-d", "{}", "-H", "Content-Length: 2147483649", "--http1.1"), 413),
    ],
)
def test_the_proxy_lets_in_nothing_else(proxy: list[str], path: str, words: tuple[str, ...], status: int) -> None:
    assert answer_of(proxy, path, "-u", USER, *words)[0] == status
