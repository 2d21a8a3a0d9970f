"""The embedded server: it starts, it shows why it does not, and nothing of it stays behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient

from ctseg.errors import InferenceFailedError, RequestRejectedError, SetupError
from ctseg.serving.installation import Installation, find_server
from ctseg.serving.life import SHM_PREFIX
from ctseg.serving.process import RunningServer, ServerOptions, free_port
from ctseg.serving.server import embedded_server, run_server
from ctseg.triton import shared_memory
from ctseg.triton.client import is_ready
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from ctseg.triton.transport import SEGMENT_PREFIX
from tests.support.planted import plant_modules, plant_programs, what_ran
from tests.support.toy_models import toy_logits, toy_patches, toy_spec, write_foreign_entry, write_toy_entry

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.live, pytest.mark.skipif(sys.platform != "linux", reason="the embedded server is for Linux")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    write_toy_entry(root)
    return root


@pytest.fixture(scope="module")
def private_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Of a repository with two versions of the toy and a model that cannot be loaded; nobody may stop it."""
    root = tmp_path_factory.mktemp("private") / "models"
    for version in (1, 2):
        write_toy_entry(root, version=version)
    write_foreign_entry(root, "unloadable", "this is no Python")
    with embedded_server(root, ["toy"]) as server:
        yield server


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the server makes its private folder."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def processes_of(folder: Path) -> list[psutil.Process]:
    """All processes that have the server's private folder in their arguments (server, stubs)."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []):
            found.append(process)
    return found


def segments_of(pid: int) -> list[str]:
    """Shared memory of a process and of the server's supervisor that it started."""
    owners = {str(pid), *(str(child.pid) for child in psutil.Process(pid).children(recursive=True))}
    return [
        path.name
        for prefix in (SHM_PREFIX, SEGMENT_PREFIX)
        for path in shared_memory.FOLDER.glob(f"{prefix}*")
        if owners & set(path.name.split("-"))
    ]


def wait_until(condition, what: str, timeout_s: float = 240.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.1)


SCRIPT = """
import sys, numpy as np
from pathlib import Path
from ctseg.serving.server import embedded_server
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
with embedded_server(Path(sys.argv[1])) as server:
    with connect([server.url], "toy", options=ClientOptions(headers=server.headers)) as predictor:
        predictor.predict(np.zeros((1, 2, *predictor.spec.patch_size), np.float32))
        print("up", flush=True)
        sys.stdin.read()
"""


def start_script(root: Path, temporary: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root)],
        stdin=subprocess.PIPE,  # it ends with this process at the latest
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        # a shell's background jobs ignore Ctrl-C and hand that on to their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "up\n"
    assert len(processes_of(temporary)) >= 2  # the server and a stub
    assert segments_of(process.pid)
    return process


def test_everything_is_gone_after_the_block(root: Path, temporary: Path) -> None:
    with embedded_server(root) as server:
        assert psutil.Process(server.pid).name() == "tritonserver"
        segments = segments_of(os.getpid())
        assert segments
    assert not processes_of(temporary)
    assert not list(temporary.iterdir())
    assert not any((shared_memory.FOLDER / name).exists() for name in segments)


def test_everything_is_gone_after_an_exception(root: Path, temporary: Path) -> None:
    def fail_inside() -> None:
        with embedded_server(root):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not processes_of(temporary)
    assert not list(temporary.iterdir())


FORKING_SCRIPT = """
import os, sys
from pathlib import Path
from ctseg.serving.server import embedded_server
with embedded_server(Path(sys.argv[1])) as server:
    child = os.fork()
    if not child:
        raise SystemExit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, server.life.wait_for_end(1.0), server.log.exists())
"""


def test_a_forked_child_that_leaves_the_block_takes_nothing_from_its_parent(root: Path, temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING_SCRIPT, str(root)],
        stdout=subprocess.PIPE, text=True, check=True, timeout=120, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert done.stdout == "7 False True\n"
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, None), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_everything_is_gone_after_a_signal(root: Path, temporary: Path, number: int, status: int | None) -> None:
    process = start_script(root, temporary)
    segments = segments_of(process.pid)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert status is None or process.returncode == status
    wait_until(lambda: not processes_of(temporary), f"server or stub survived signal {number}")
    wait_until(lambda: not list(temporary.iterdir()), f"private folder survived signal {number}")
    if number == signal.SIGKILL:  # nobody was left to remove the client's own memory
        segments = [name for name in segments if name.startswith(SHM_PREFIX)]
        shared_memory.sweep(SEGMENT_PREFIX)
    wait_until(
        lambda: not any((shared_memory.FOLDER / name).exists() for name in segments), f"{segments} survived {number}"
    )


def test_a_killed_supervisor_is_told_and_takes_the_server_its_stubs_and_their_memory_with_it(
    root: Path, temporary: Path
) -> None:
    with embedded_server(root) as server:
        segments = [name for name in segments_of(os.getpid()) if name.startswith(SHM_PREFIX)]
        assert segments
        psutil.Process(server.pid).parent().kill()
        assert server.life.wait_for_end(120)
        assert server.life.reason == "its supervisor was killed"
        wait_until(lambda: not processes_of(temporary), "a server or a stub outlived its supervisor")
        assert not any((shared_memory.FOLDER / name).exists() for name in segments)


def test_what_is_left_when_supervisor_and_client_are_killed_at_once_goes_with_the_next_start(
    root: Path, temporary: Path
) -> None:
    process = start_script(root, temporary)
    segments = [name for name in segments_of(process.pid) if name.startswith(SHM_PREFIX)]
    supervisor = psutil.Process(process.pid).children()[0]
    process.send_signal(signal.SIGSTOP)  # it must not see its supervisor die
    supervisor.kill()
    process.kill()
    process.communicate(timeout=120)
    wait_until(lambda: not processes_of(temporary), "a stub outlived its server")
    assert list(temporary.iterdir())
    with embedded_server(root):
        assert not any((shared_memory.FOLDER / name).exists() for name in segments)
        assert len(list(temporary.iterdir())) == 1  # its own folder
    assert not list(temporary.iterdir())


def stubs_of(server: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(server).children() if child.name().startswith("triton_python")]


def successor_of(server: int, supervisor: psutil.Process) -> int:
    """Wait for the server that takes the place of one that died."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [c.pid for c in supervisor.children() if c.pid != server and c.name() == "tritonserver"]
        return bool(found)

    wait_until(is_there, "no server was started again")
    return found[0]


@pytest.mark.parametrize("victim", ["stub", "server"])
def test_a_killed_server_or_stub_is_replaced_on_the_same_port_and_told(
    root: Path, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    patches = toy_patches(2)
    with embedded_server(root, options=ServerOptions(restarts=1)) as server:
        supervisor = psutil.Process(server.pid).parent()
        (stubs_of(server.pid)[0] if victim == "stub" else psutil.Process(server.pid)).kill()
        again = successor_of(server.pid, supervisor)
        options = server.client_options(ClientOptions(connect_timeout_s=240))
        with connect([server.url], "toy", options=options) as predictor:
            np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        wait_until(lambda: "started again" in caplog.text, "nobody was told")
        assert ("a process of a model" if victim == "stub" else "tritonserver was ended by SIGKILL") in caplog.text
        assert not server.life.wait_for_end(0)
        psutil.Process(again).kill()  # once too often
        assert server.life.wait_for_end(240)
        assert server.life.reason == "tritonserver was ended by SIGKILL (9)"


def test_a_stub_that_the_server_ends_itself_is_no_reason_to_start_again(root: Path) -> None:
    options = ServerOptions(is_private=False, watch=True, restarts=1)
    with embedded_server(root, options=options) as server:
        first = stubs_of(server.pid)
        write_toy_entry(root, version=2)
        with contextlib.closing(InferenceServerClient(server.url)) as client:
            # a stub that has gone says nothing of what is served by then
            wait_until(lambda: client.is_model_ready("toy", "2"), "version 2 is not served")
        wait_until(lambda: not any(stub.is_running() for stub in first), "version 1 stays")
        with connect([server.url], "toy", version=2, options=ClientOptions(connect_timeout_s=240)) as predictor:
            predictor.predict(toy_patches(1))
        assert psutil.pid_exists(server.pid)
        assert not server.life.wait_for_end(0)


@pytest.mark.parametrize("command", ["predict", "serve"])
def test_nothing_that_lies_in_the_current_folder_is_run(command: str, tmp_path: Path, ct_piece: Path) -> None:
    record = plant_modules(tmp_path)
    plant_programs(tmp_path)
    repository = ROOT / "model_repository"
    words = ["predict", "-i", ct_piece, "-o", "out", "-m", "sarcoma", "--disable_tta", "--repository", repository]
    if command == "serve":
        words = ["serve", "--repository", repository, "--grpc_port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for name in ("PATH", "LD_LIBRARY_PATH"):
        environment[name] = f":{environment.get(name, '/usr/bin:/bin')}:."
    program = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom ctseg.cli.main import main\nsys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", program, *words],  # as the command `ctseg` does: it adds no current folder
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if command == "serve":
        assert process.stdout.readline().startswith("serving")
        process.terminate()
    process.communicate(timeout=240)
    assert process.returncode == 0
    assert not what_ran(record)


def listening(server: RunningServer) -> set[str]:
    """Where a server listens."""
    found = [c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    return {f"{address.ip.removeprefix('::ffff:')}:{address.port}" for address in found}


def test_only_loopback_listens_and_only_the_named_ports(private_server: RunningServer) -> None:
    assert listening(private_server) == {private_server.url}


def test_metrics_are_served_on_loopback_when_asked_for(root: Path) -> None:
    port = free_port()
    with embedded_server(root, options=ServerOptions(metrics_port=port)) as server:
        assert listening(server) == {server.url, f"127.0.0.1:{port}"}
        assert server.metrics_url == f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
            assert answer.status == 200


def test_http_is_spoken_on_loopback_with_what_can_change_the_server_closed(root: Path) -> None:
    closed = [
        "repository/index", "repository/models/toy/load", "repository/models/toy/unload", "trace/setting",
        "models/toy/trace/setting", "logging", "systemsharedmemory/region/x/register", "cudasharedmemory/unregister",
    ]  # fmt: skip
    patches = toy_patches(2)
    with embedded_server(root, options=ServerOptions(is_private=False, http_port=0)) as server:
        assert server.http_url is not None
        assert listening(server) == {server.url, server.http_url.removeprefix("http://")}
        for path in closed:
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"{server.http_url}/v2/{path}", data=b"{}", timeout=60)
        whole = {"name": "input", "datatype": "FP32", "shape": patches.shape, "data": patches.ravel().tolist()}
        question = json.dumps({"inputs": [whole], "outputs": [{"name": "logits"}]}).encode()
        with urllib.request.urlopen(f"{server.http_url}/v2/models/toy/infer", data=question, timeout=60) as answer:
            logits = json.loads(answer.read())["outputs"][0]
        expected = toy_logits(patches)
        np.testing.assert_allclose(np.reshape(logits["data"], logits["shape"]), expected, rtol=1e-6, atol=1e-6)


def test_a_private_server_answers_only_who_has_the_key(private_server: RunningServer) -> None:
    assert is_ready(private_server.url, private_server.client_options(ClientOptions()))
    with pytest.raises(RequestRejectedError, match="restricted"):
        is_ready(private_server.url)


def test_two_servers_at_once_do_not_disturb_each_other(root: Path, private_server: RunningServer) -> None:
    patches = toy_patches(2)
    with embedded_server(root) as other:
        assert private_server.url != other.url
        for server in (private_server, other):
            with connect([server.url], "toy", options=server.client_options(ClientOptions())) as predictor:
                np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)


def test_only_the_chosen_model_is_loaded_and_of_it_the_newest_version(private_server: RunningServer) -> None:
    with connect([private_server.url], "toy", options=private_server.client_options(ClientOptions())) as predictor:
        assert predictor.identity.version == 2
    text = private_server.log.read_text()
    assert "loading: toy:2" in text
    assert "toy:1" not in text
    assert "unloadable" not in text


def test_a_server_that_cannot_load_its_model_shows_the_end_of_its_log(root: Path, temporary: Path) -> None:
    (root / "toy" / "1" / "model.onnx").write_bytes(b"no network")
    with (
        pytest.raises(SetupError, match=r"does not start[\s\S]*toy[\s\S]*(Protobuf|INVALID_PROTOBUF)"),
        embedded_server(root),
    ):
        pytest.fail("it started")
    assert not processes_of(temporary)
    assert not list(temporary.iterdir())


def test_a_model_that_answers_nan_is_not_served(root: Path) -> None:
    write_foreign_entry(
        root,
        "nan",
        "return self.respond(self.logits(patches * np.nan))",
        parameters={"ctseg_spec.1": toy_spec("nan").to_json()},
    )
    with pytest.raises(InferenceFailedError, match=r"nan version 1 .*NaN or infinity"), embedded_server(root, ["nan"]):
        pytest.fail("it started")


def test_a_model_that_fails_at_its_first_run_is_not_served(root: Path) -> None:
    write_foreign_entry(
        root, "broken", "raise RuntimeError('out of luck')", parameters={"ctseg_spec.1": toy_spec("broken").to_json()}
    )
    with (
        pytest.raises(InferenceFailedError, match=r"out of luck[\s\S]*end of tritonserver's log"),
        embedded_server(root, ["broken"]),
    ):
        pytest.fail("it started")


def test_an_unknown_model_is_named_with_those_that_are_there(root: Path) -> None:
    with pytest.raises(SetupError, match="no model 'liver', only toy"), embedded_server(root, ["liver"]):
        pytest.fail("it started")


def test_an_entry_can_ask_for_openvino(tmp_path: Path) -> None:
    root, patches = tmp_path / "models", toy_patches(3)
    write_toy_entry(root, runtime="openvino", threads=1)
    with embedded_server(root) as server:
        assert "toy version 1: openvino, 1 threads" in server.log.read_text()
        with connect([server.url], "toy", options=server.client_options(ClientOptions())) as predictor:
            np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["grpc_port", "http_port", "metrics_port"])
def test_a_port_in_use_is_told(root: Path, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ServerOptions(**{name: taken.getsockname()[1]})
        with (
            pytest.raises(SetupError, match=r"does not start.*already in use") as refusal,
            embedded_server(root, options=options),
        ):
            pytest.fail("it started")
    assert refusal.value.settings == (name,)


def test_a_free_port_that_somebody_takes_first_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], free_port()]
        monkeypatch.setattr("ctseg.serving.process.free_port", lambda: ports.pop(0))
        wanted = f"127.0.0.1:{ports[1]}"
        with embedded_server(root) as server:
            assert server.url == wanted


def test_a_read_only_installation_without_run_bits_works(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = find_server()
    if installed.stub is None:
        pytest.skip("the tritonserver on the PATH is not the wheel's")
    copy = tmp_path / "wheel"
    shutil.copytree(installed.backends.parent, copy)
    for path in copy.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    bare = Installation(
        binary=copy / installed.binary.relative_to(installed.backends.parent),
        library_path=installed.library_path,
        backends=copy / "backends",
        stub=copy / installed.stub.relative_to(installed.backends.parent),
        source="a copy",
    )
    monkeypatch.setattr("ctseg.serving.server.find_server", lambda: bare)
    with embedded_server(root) as server:
        assert is_ready(server.url, ClientOptions(headers=server.headers))


def test_serve_prints_its_address_and_stops_by_signal(root: Path, temporary: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ctseg", "serve", "--repository", str(root), "--grpc-port", "0", "--http-port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    line = process.stdout.readline()
    url, _, http_url = line.split(" on ")[1].split()[:3]
    with urllib.request.urlopen(f"{http_url}/v2/health/ready", timeout=60) as answer:
        assert answer.status == 200
    patches = toy_patches(1)
    with connect([url], "toy") as predictor:
        assert predictor.identity.transport == "grpc"  # an open server lets nobody share memory with it
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "stopped\n")
    assert not processes_of(temporary)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")
def test_tls_and_mutual_tls(root: Path, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for who in ("server", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}"
        )
        openssl(
            "x509",
            "-req",
            "-in",
            f"{who}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-out",
            f"{who}.pem",
            "-extfile",
            "names",
        )
    arguments = (
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={tmp_path / 'server.pem'}",
        f"--grpc-server-key={tmp_path / 'server.key'}",
        f"--grpc-root-cert={tmp_path / 'ca.pem'}",
    )
    mutual = {"client_certificate": tmp_path / "client.pem", "client_key": tmp_path / "client.key"}
    options = ClientOptions(root_certificates=tmp_path / "ca.pem", **mutual, connect_timeout_s=240)
    patches = toy_patches(2)
    with embedded_server(
        root, options=ServerOptions(is_private=False, prove=False, extra_arguments=arguments, client=options)
    ) as server:
        with connect([server.url], "toy", options=options) as predictor:
            np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-6, atol=1e-6)
        for wrong, told in (
            ({}, f"it wants TLS, and this connection is not encrypted: write grpcs://{server.url}"),
            ({"tls": True}, "is not trusted: it is signed by ca, who is not in the authorities that gRPC knows"),
            ({"root_certificates": tmp_path / "ca.pem"}, "it asks for a certificate of this client"),
        ):
            with pytest.raises(SetupError, match=re.escape(told)):
                connect([server.url], "toy", options=ClientOptions(connect_timeout_s=240, **wrong))


def test_settings_of_whole_scans_that_cannot_be_used_are_told_before_a_server_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTSEG_SCAN_LANES", "x")
    with pytest.raises(SetupError, match="CTSEG_SCAN_LANES=x: expected a valid integer"):
        run_server(tmp_path, ServerOptions(), print)
