"""A serving container while it runs: its readiness, its labels, its lock-down, its end."""

import contextlib
import json
import queue
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from scripts.check_images.claims import ClaimError, claim
from scripts.check_images.machine import KEY, MODEL, SERVER_USER, Machine


def free_ports(count: int) -> list[str]:
    """Return ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [str(item.getsockname()[1]) for item in sockets]


@dataclass(frozen=True)
class Serving:
    """A serving container that is up."""

    machine: Machine
    name: str
    grpc: str
    metrics: str
    ready_port: str

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Ask the probe."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ready_port}/ready", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def wait_for_readiness(self, status: int, timeout_s: float = 90) -> dict[str, Any]:
        """Wait until the probe says so; return its words."""
        until = time.monotonic() + timeout_s
        while (found := self.readiness())[0] != status:
            if time.monotonic() > until:
                raise ClaimError(
                    f"readiness should become {status} within {timeout_s} s; found: {found}\n{self.logs()}"
                )
            time.sleep(0.5)
        return found[1]

    def logs(self) -> str:
        """Return the container's log so far."""
        return self.machine.podman("logs", self.name)

    def inside(self, *words: str, fails: bool | None = False) -> str:
        """Run a program in the container."""
        return self.machine.podman("exec", self.name, *words, fails=fails)


@contextlib.contextmanager
def serving(machine: Machine, data: Path, name: str, **settings: str) -> Iterator[Serving]:
    """Start a server by scripts/serve.sh for as long as the block runs."""
    grpc, metrics, ready = free_ports(3)
    road = {
        "NAME": name,
        "BUNDLES": str(data / "bundles"),
        "MODELS": str(data / "models"),
        "RUN_AS": SERVER_USER,
        "BACKEND": "python",
        "BUILD": "--runtime onnxruntime",
        "SHM_SIZE": "256m",
        "START_TIMEOUT_S": "300",
        "GRPC_PORT": grpc,
        "METRICS_PORT": metrics,
        "READY_PORT": ready,
    }
    try:
        machine.run("scripts/serve.sh", **{**road, **settings})
        yield Serving(machine, name, grpc, metrics, ready)
    finally:
        log = machine.run("podman", "logs", name, fails=None).stdout
        (machine.scratch / f"{name}.log").write_text(log)
        machine.run("podman", "rm", "-f", "-t", "5", name, fails=None)


def compare_labels(machine: Machine, server: Serving, data: Path, expected: np.ndarray, *words: str) -> None:
    """Segment the scan through the server, from the host: as a whole, and in windows."""
    for where, sent in (("server", "a whole scan"), ("client", "windows")):
        output = data / f"{server.name}_{where}"
        machine.run(
            "scripts/predict.sh", MODEL, data / "scans", output, "--disable_tta", "--where", where, *words,
            URL=f"localhost:{server.grpc}", CTSEG=str(Path(sys.executable).with_name("ctseg")),
        )  # fmt: skip
        labels = np.asarray(nibabel.load(output / "chest.nii.gz").dataobj)
        differing = int(np.count_nonzero(labels != expected))
        told = f"labels of {sent} through {server.name} equal the embedded run's ({labels.size} voxels)"
        claim(told, differing == 0, differing)


def is_refused(call: Callable[[], object]) -> bool:
    """Whether the server refuses a call for want of the key."""
    try:
        call()
    except InferenceServerException as error:
        return error.status() == "StatusCode.UNAVAILABLE" and "restricted" in (error.message() or "")
    return False


def check_lock_down(server: Serving, machine: Machine) -> None:
    """User, file system, capabilities, ports, protocols, secrets."""
    claim("the server runs as user 1000", server.inside("id", "-u") == "1000")
    claim("its first process is tritonserver", server.inside("cat", "/proc/1/comm") == "tritonserver")
    status = server.inside("cat", "/proc/1/status")
    claim("it has no capability", "CapEff:\t0000000000000000" in status, status)
    claim("it cannot gain rights", "NoNewPrivs:\t1" in status, status)
    for path in ("/opt/tritonserver/x", "/opt/ctseg/x", "/bundles/x", "/etc/x"):
        text = server.inside("touch", path, fails=True)
        claim(f"{path} cannot be written", "Read-only file system" in text, text)
    client = InferenceServerClient(f"127.0.0.1:{server.grpc}")
    segment = ("s", "/none", 8)
    closed: dict[str, Callable[[], object]] = {
        "load a model": lambda: client.load_model(MODEL),
        "unload a model": lambda: client.unload_model(MODEL),
        "list the repository": client.get_model_repository_index,
        "switch tracing": client.get_trace_settings,
        "switch logging": lambda: client.update_log_settings({"log_verbose_level": 1}),
        "register shared memory": lambda: client.register_system_shared_memory(*segment),
    }
    for what, call in closed.items():
        claim(f"without the key nobody can {what}", is_refused(call))
    wrong = {"triton-grpc-protocol-ctseg-admin": "wrong-horse-battery-staple"}
    claim("a wrong key is refused", is_refused(lambda: client.unload_model(MODEL, headers=wrong)))
    claim("the configuration is readable", client.get_model_config(MODEL).config.name == MODEL)
    claim("statistics are readable", bool(client.get_inference_statistics(MODEL).model_stats))
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    claim("metrics have a port of their own", "nv_inference_request_success" in metrics)
    gauge = f'ctseg_scans_waiting{{model="{MODEL}",version="1"}} 0'
    claim("waiting scans are among them, since readiness has sent the first one", gauge in metrics, metrics)
    ready = server.readiness()[1]
    claim("readiness speaks of whole scans, too", ready["models"].get(f"{MODEL}_scan") == "ready", ready)
    address = machine.podman("inspect", "-f", "{{.NetworkSettings.IPAddress}}", server.name)
    with socket.socket() as probe:
        probe.settimeout(3)
        refused = probe.connect_ex((address, 8000)) != 0
    claim("Triton's HTTP endpoint does not leave the container", refused)
    claim("the key is not in the log", KEY not in server.logs())
    claim("the key is not in the container's settings", KEY not in machine.podman("inspect", server.name))
    claim("podman calls it healthy", not machine.run("podman", "healthcheck", "run", server.name).returncode)
    client.close()


def check_control(server: Serving) -> None:
    """The key opens what is closed; readiness follows the models."""
    client = InferenceServerClient(f"127.0.0.1:{server.grpc}")
    key = {"triton-grpc-protocol-ctseg-admin": KEY}
    client.unload_model(MODEL, headers=key)
    words = server.wait_for_readiness(503)
    claim("readiness turns bad when a model is unloaded", words["models"][MODEL] != "ready", words)
    client.load_model(MODEL, headers=key)
    words = server.wait_for_readiness(200)
    claim("and good when it is loaded and has answered again", words["models"][MODEL] == "ready", words)
    client.close()


def check_stop(server: Serving, machine: Machine) -> None:
    """SIGTERM: what is on its way is answered, and the end is near."""
    client = InferenceServerClient(f"127.0.0.1:{server.grpc}")
    shape = [1, *[int(side) for side in client.get_model_metadata(MODEL).inputs[0].shape[1:]]]
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    count = 6
    for _ in range(count):
        tensor = InferInput("input", shape, "FP32")
        tensor.set_data_from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        client.async_infer(MODEL, [tensor], lambda result, error: answers.put((result, error)))
    until = time.monotonic() + 30
    while client.get_inference_statistics(MODEL).model_stats[0].inference_count < 1 and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)  # the requests are in the server's queue
    waiting = count - answers.qsize()
    start = time.monotonic()
    machine.podman("stop", "-t", "40", server.name)
    seconds = time.monotonic() - start
    errors = [error for _, error in (answers.get(timeout=10) for _ in range(count)) if error is not None]
    claim(f"requests in flight when the stop came ({waiting} of {count}) were all answered", not errors, errors)
    claim(f"the stop took {seconds:.1f} s", seconds < 30)
    status = machine.podman("inspect", "-f", "{{.State.ExitCode}}", server.name)
    claim("tritonserver ended with status 0", status == "0", status)
    client.close()
