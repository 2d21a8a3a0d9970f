"""Builds both images on stand-in bases and walks the user's road through them; what ``make images`` runs.

No registry is needed: the stand-ins are made of the machine's own Debian mirror, and pip's own settings are
mounted into the build. Needs root, and from apt: podman runc netavark aardvark-dns iptables mmdebstrap.
Prints one line for each claim that was checked; ends with status 1 at the first that does not hold, with the
logs. Whatever happens, no container, mount, firewall rule or file stays behind (but with ``--scratch``).
"""

import argparse
import contextlib
import json
import os
import queue
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import nibabel
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).parents[2]
DEMO_DATA = ROOT / "examples" / "demo_data"
NEEDED = ("podman", "runc", "mmdebstrap", "iptables", "openssl")
LONGEST_S = 1800
TRAINER_USER = "12345:12345"  # no account has this id
SERVER_USER = "1000:1000"
MODEL = "sarcoma"
KEY = "correct-horse-battery-staple"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv,libpython3.11"


class ClaimError(Exception):
    """Something is not as it should be."""


def claim(text: str, holds: bool, found: object = "") -> None:
    """Print a claim that holds; stop at one that does not."""
    if not holds:
        raise ClaimError(f"{text}; found: {found}")
    print(f"  ok  {text}", flush=True)


def step(text: str) -> None:
    """Print what begins now."""
    print(f"[{time.monotonic() - START_S:5.0f} s] {text}", flush=True)


START_S = time.monotonic()


@dataclass(frozen=True)
class Machine:
    """Podman with a storage of its own.

    Attributes:
        scratch: Where everything lies.
        environment: What podman needs in its environment.
    """

    scratch: Path
    environment: dict[str, str]

    @classmethod
    def prepare(cls, scratch: Path) -> "Machine":
        """Write podman's configuration."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        (scratch / "storage.conf").write_text(
            f'[storage]\ndriver="overlay"\ngraphroot="{scratch}/store"\nrunroot="{scratch}/run"\n'
        )
        (scratch / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits=["nofile={limit}:{limit}","nproc=4096:4096"]\n'
            '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
            '[network]\nnetwork_backend="netavark"\n'
        )
        environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(scratch / "storage.conf"),
            "CONTAINERS_CONF": str(scratch / "containers.conf"),
            "ENGINE": "podman",
            "GPU": "",
            "TRAIN_IMAGE": "localhost/ci/train",
            "SERVE_IMAGE": "localhost/ci/serve",
        }
        return cls(scratch, environment)

    def run(
        self, *command: object, fails: bool | None = False, timeout_s: float = 900, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program; stop unless it does (or does not) fail. ``fails=None`` takes both."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**self.environment, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
        with (self.scratch / "commands.log").open("a") as log:
            log.write(f"\n$ {' '.join(words)}\n{done.stdout}[status {done.returncode}]\n")
        if fails is not None and bool(done.returncode) != fails:
            raise ClaimError(f"`{' '.join(words)}` ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done

    def podman(self, *words: object, **options: Any) -> str:
        """Run podman; return what it prints."""
        return self.run("podman", *words, **options).stdout.strip()


# --- bases and images


def pip_settings(scratch: Path) -> list[str]:
    """Return the mounts that let pip in a build find packages as it does here."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    wanted = ("index-url", "extra-index-url", "find-links", "cert", "trusted-host", "default-timeout")
    lines = ["[global]", *(f"{name} = {settings[name]}" for name in wanted if name in settings)]
    (scratch / "pip.conf").write_text("\n".join(lines) + "\n")
    mounts = [f"{scratch}/pip.conf:/etc/pip.conf:ro"]
    folders = f"{settings.get('find-links', '')} {settings.get('extra-index-url', '')} {settings.get('index-url', '')}"
    for word in folders.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            kept = path.parent if path.name == "simple" else path  # an index refers to the files beside it
            mounts.append(f"{kept}:{kept}:ro")
    if "cert" in settings:
        mounts.append(f"{settings['cert']}:{settings['cert']}:ro")
    return [word for mount in mounts for word in ("-v", mount)]


def make_base(machine: Machine) -> None:
    """Make a Debian of the machine's own mirror."""
    if not machine.run("podman", "image", "exists", "localhost/ci/debian", fails=None).returncode:
        return
    sources = next(
        path
        for path in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
        if path.is_file() and path.stat().st_size
    )
    archive = machine.scratch / "base.tar"
    machine.run(
        "mmdebstrap", "--quiet", "--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"',
        f"--include={PACKAGES}", "bookworm", archive, sources,
    )  # fmt: skip
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    machine.podman("import", "-q", "--change", path, archive, "localhost/ci/debian")
    archive.unlink()


def build_image(machine: Machine, mounts: Sequence[str], tag: str, file: str, base: str, *words: str) -> None:
    """Build an image from a copy of what git knows and does not ignore."""
    machine.podman(
        "build", "--format", "docker", "--network", "host", "--pull=never", *mounts,
        "--build-arg", f"BASE_IMAGE=localhost/ci/{base}", *words, "-t", f"localhost/ci/{tag}",
        "-f", file, machine.scratch / "context",
    )  # fmt: skip


def make_context(scratch: Path) -> None:
    """Copy the files of the images, so that a bundle can be put beside them."""
    context = scratch / "context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        top = name.partition("/")[0]
        wanted = top in ("ctseg", "docker", "requirements", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
        if name and (ROOT / name).is_file() and (wanted or top.startswith("Dockerfile") or top == ".dockerignore"):
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    shutil.copy(ROOT / "tests" / "images" / "Dockerfile.triton", context / "Dockerfile.triton")


# --- data


def crop(case: str, start: Sequence[int], shape: Sequence[int]) -> tuple[Any, Any]:
    """Cut a piece out of a real CT and its label map."""
    pieces = []
    for path in (DEMO_DATA / "images" / f"STS_{case}_0000.nii.gz", DEMO_DATA / "labels" / f"STS_{case}.nii.gz"):
        image = nibabel.load(path)
        window = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
        pieces.append(image.slicer[window])
    return pieces[0], pieces[1]


def make_data(folder: Path) -> None:
    """Write six small pieces of real CT to train on, and one to segment."""
    for part in ("images", "labels", "scans", "nnunet_scans", "nnunet", "bundles", "models"):
        (folder / part).mkdir(parents=True)
    for i, case in enumerate(("008", "025", "042") * 2):
        image, labels = crop(case, (40 + 4 * (i // 3), 42, 10 + 2 * (i // 3)), (56, 56, 24))
        nibabel.save(image, folder / "images" / f"piece{i}.nii.gz")
        nibabel.save(labels, folder / "labels" / f"piece{i}.nii.gz")
    scan = crop("042", (30, 40, 8), (72, 80, 30))[0]
    for name in ("scans/chest.nii.gz", "nnunet_scans/chest_0000.nii.gz"):
        nibabel.save(scan, folder / name)


def give_to(folder: Path, user: str) -> None:
    """Make a user the owner of a folder and what is in it."""
    uid, gid = (int(word) for word in user.split(":"))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid)


# --- the road


def train_and_export(machine: Machine, data: Path) -> None:
    """Create, verify, plan, train, export: the training image, without a network."""
    common = ["--network", "none", "--user", TRAINER_USER, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for name in folders:
        (data / name).mkdir()
    give_to(data, TRAINER_USER)
    step("data set from six pieces of real CT")
    mounts = [word for name in (*folders, "images", "labels") for word in ("-v", f"{data / name}:/data/{name}")]
    machine.podman(
        "run", "--rm", *common, *mounts, "localhost/ci/train", "dataset", "create", "-d", "101", "--name", "Pieces",
        "--images", "/data/images", "--labels", "/data/labels", "--label", "tumor=1",
    )  # fmt: skip
    step("scripts/train.sh: plan, train")
    road = {"DATA": str(data), "RUN_AS": TRAINER_USER, "SHM_SIZE": "1g"}
    log = machine.run(
        "scripts/train.sh", "101", "3d_fullres", "0", "-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "2",
        PLAN="-c 3d_fullres -pl ExperimentPlanner -np 2", **road,
    ).stdout  # fmt: skip
    results = data / "nnUNet_results" / "Dataset101_Pieces"
    final = next(iter(results.rglob("checkpoint_final.pth")), None)
    claim("a training without network, on a read-only root, leaves its checkpoint", final is not None, log[-2000:])
    owners = {path.stat().st_uid for path in results.rglob("*")}
    claim("files belong to the caller, whose id has no account", owners == {12345}, owners)
    compile_in_training(machine, road)
    in_training = [*common, "--shm-size", "1g", *mounts]
    step("torchrun: a fold on two processes")
    log = machine.podman(
        "run", "--rm", *in_training, "localhost/ci/train", "torchrun", "--nproc_per_node=2", "-m", "ctseg", "train",
        "101", "3d_fullres", "1", "-device", "cpu", "--distributed=ddp", "--epochs", "1", "--iterations_per_epoch", "1",
    )  # fmt: skip
    finals = sorted(path.parent.name for path in results.rglob("checkpoint_final.pth"))
    claim(
        "two processes under torchrun leave one checkpoint", finals == ["fold_0", "fold_1"], f"{finals} {log[-2000:]}"
    )
    step("nnUNetv2_predict, nnU-Net's own command")
    machine.podman(
        "run", "--rm", *in_training, "-v", f"{data / 'nnunet_scans'}:/scans:ro", "-v", f"{data / 'nnunet'}:/labels",
        "localhost/ci/train", "nnUNetv2_predict", "-i", "/scans", "-o", "/labels", "-d", "101", "-c", "3d_fullres",
        "-f", "0", "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1",
    )  # fmt: skip
    step("scripts/export_and_build.sh: export, build")
    (data / "bundles").chmod(0o755)
    give_to(data / "models", TRAINER_USER)
    machine.run(
        "scripts/export_and_build.sh", "101", "3d_fullres", MODEL, "-f", "0", MODELS=str(data / "models"),
        BACKEND="python", BUILD="--runtime onnxruntime", **road,
    )  # fmt: skip
    state = json.loads((data / "models" / MODEL / "ctseg.json").read_text())["parity"]["state"]
    claim("the built entry is proven", state == "proven", state)
    program = ("python", "-c", "import nnunetv2, torch; print(torch.__version__)")
    versions = machine.podman("run", "--rm", *common, "localhost/ci/train", *program)
    claim("a first word that is a program is run", "2.13.0" in versions, versions)
    trainer = machine.podman(
        "run", "--rm", *common, "localhost/ci/train", "python", "-c",
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as f; "
        "print(f('nnUNetTrainerSwinUNETR').__name__)",
    )  # fmt: skip
    claim("nnU-Net itself finds the Swin UNETR trainer", trainer.endswith("nnUNetTrainerSwinUNETR"), trainer)


def compile_in_training(machine: Machine, road: dict[str, str]) -> None:
    """Compile in a container as train.sh starts it, at a second call, which plans nothing."""
    step("scripts/train.sh: torch.compile in its container")
    engine = machine.scratch / "engine"  # train.sh's own flags, another program
    program = "import torch; print(float(torch.compile(lambda x: (2 * x + 1).relu().sum())(torch.ones(1000))))"
    engine.write_text(
        '#!/bin/bash\nwhile [[ $1 != "$TRAIN_IMAGE" ]]; do words+=("$1"); shift; done\n'
        f'echo "asked: $2"\nexec podman "${{words[@]}}" "$TRAIN_IMAGE" python -c {shlex.quote(program)}\n'
    )
    engine.chmod(0o755)
    said = machine.run("scripts/train.sh", "101", "3d_fullres", "0", ENGINE=str(engine), **road).stdout
    claim("a second call of train.sh plans nothing anew", "asked: train" in said and "asked: plan" not in said, said)
    claim("torch.compile works where a training runs", "3000.0" in said, said[-2000:])


def embedded_labels(machine: Machine, data: Path) -> np.ndarray:
    """Segment the scan with a server of ctseg's own, outside any container."""
    step("the embedded run on the host")
    ctseg = [sys.executable, "-m", "ctseg"]
    machine.run(*ctseg, "build", data / "bundles" / MODEL, "--repository", data / "own", "--runtime", "onnxruntime")
    machine.run(
        *ctseg, "predict", "-i", data / "scans", "-o", data / "embedded", "-m", MODEL, "--repository", data / "own",
        "--disable_tta",
    )  # fmt: skip
    labels = np.asarray(nibabel.load(data / "embedded" / "chest.nii.gz").dataobj)
    nnunet = np.asarray(nibabel.load(data / "nnunet" / "chest.nii.gz").dataobj)
    # stock nnU-Net rounds its logits to float16, which decides ties; a network of two iterations is full of them
    equal = float(np.mean(labels == nnunet))
    claim(f"{100 * equal:.3f} % of the voxels are those of nnU-Net in the training image", equal >= 0.995, equal)
    claim("which finds something", 0 < np.mean(nnunet) < 1, np.mean(nnunet))
    return labels


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
    """Segment the scan through the server, from the host."""
    output = data / server.name
    machine.run(
        "scripts/predict.sh", MODEL, data / "scans", output, "--disable_tta", *words,
        URL=f"localhost:{server.grpc}", CTSEG=str(Path(sys.executable).with_name("ctseg")),
    )  # fmt: skip
    labels = np.asarray(nibabel.load(output / "chest.nii.gz").dataobj)
    differing = int(np.count_nonzero(labels != expected))
    claim(f"labels through {server.name} equal the embedded run's ({labels.size} voxels)", differing == 0, differing)


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
        claim("metrics have a port of their own", b"nv_inference_request_success" in answer.read())
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


def check_break(server: Serving, data: Path) -> None:
    """A model whose process dies, and whose file is broken so that it cannot come back."""
    for model_file in (data / "models" / MODEL).glob("*/model.onnx"):
        model_file.write_bytes(b"broken")
    find_stub = "for p in /proc/[0-9]*; do grep -q triton_python $p/comm && echo ${p#/proc/}; done; true"
    stub = server.inside("sh", "-c", find_stub).split()
    claim("the model has a process of its own", bool(stub), stub)
    server.inside("sh", "-c", f"kill -9 {' '.join(stub)}")
    client = InferenceServerClient(f"127.0.0.1:{server.grpc}", **tls_of(data))
    shape = [1, *[int(side) for side in client.get_model_metadata(MODEL).inputs[0].shape[1:]]]
    tensor = InferInput("input", shape, "FP32")
    tensor.set_data_from_numpy(np.zeros(shape, np.float32))
    with contextlib.suppress(InferenceServerException):
        client.infer(MODEL, [tensor], client_timeout=30)
    words = server.wait_for_readiness(503)
    claim("readiness turns bad when a model breaks", words["models"][MODEL] != "ready", words)
    client.close()


def tls_of(data: Path) -> dict[str, Any]:
    """Return a client's settings for the certificates of :func:`make_certificates`."""
    return {
        "ssl": True,
        "root_certificates": str(data / "tls" / "ca.crt"),
        "private_key": str(data / "tls" / "tls.key"),
        "certificate_chain": str(data / "tls" / "tls.crt"),
    }


def make_certificates(machine: Machine, folder: Path) -> None:
    """Make one certificate that vouches for itself, for server and client."""
    folder.mkdir()
    machine.run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", folder / "tls.key", "-out", folder / "tls.crt",
    )  # fmt: skip
    shutil.copy(folder / "tls.crt", folder / "ca.crt")
    give_to(folder, SERVER_USER)


def is_told(
    machine: Machine, what: str, words: Sequence[str], flags: Sequence[object], image: str, *arguments: str
) -> None:
    """Check that a container does not start, and says why."""
    command = ["podman", "run", "--rm", *flags, f"localhost/ci/{image}", *arguments]
    done = machine.run(*command, fails=None, timeout_s=120)
    missing = [word for word in words if word not in done.stdout]
    claim(f"{what}: told, with status 2", not missing and done.returncode == 2, f"{done.returncode} {done.stdout}")


def check_refusals(machine: Machine, data: Path) -> None:
    """What cannot work is told before anything starts."""
    step("what cannot work is told")
    locked = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    serve = [*locked, "--user", SERVER_USER]
    empty, fresh, foreign = data / "empty", data / "fresh", data / "foreign"
    for folder in (empty, fresh, foreign):
        folder.mkdir(mode=0o755)
    give_to(fresh, SERVER_USER)
    bundles, models = f"{data / 'bundles'}:/bundles:ro", f"{data / 'models'}:/models"
    for what, words, flags in (
        (
            "no GPU where a plan must be built",
            ["no NVIDIA driver", "--gpus"],
            ["-v", bundles, "-v", f"{fresh}:/models"],
        ),
        (
            "a missing model",
            ["nothing to serve", "ctseg export"],
            ["-v", f"{empty}:/bundles:ro", "-v", f"{empty}:/models:ro"],
        ),
        (
            "a model repository of somebody else",
            ["cannot write", "chown 1000:1000"],
            ["-v", bundles, "-v", f"{foreign}:/models"],
        ),
        (
            "a key that is not there",
            ["CTSEG_ADMIN_KEY_FILE", "cannot be read"],
            ["-e", "CTSEG_ADMIN_KEY_FILE=/run/key", "-v", models],
        ),
        ("TLS without certificates", ["CTSEG_TLS=server", "tls.crt"], ["-e", "CTSEG_TLS=server", "-v", models]),
        (
            "too little shared memory to serve",
            ["/dev/shm has", "--shm-size"],
            ["--shm-size", "8m", "-v", models],
        ),
    ):
        is_told(machine, what, words, [*serve, *flags], "serve")
    train = [*locked, "--user", TRAINER_USER]
    training = ("train", "101", "3d_fullres", "0", "-device", "cpu")
    is_told(machine, "too little shared memory to train", ["/dev/shm has", "--shm-size 8g"], train, "train", *training)
    is_told(
        machine,
        "a results folder of somebody else",
        ["nnUNet_results", "cannot be written to"],
        [*train, "--shm-size", "1g", "-v", f"{foreign}:/data/nnUNet_results"],
        "train",
        *training,
    )


def serve_mounted(machine: Machine, data: Path, expected: np.ndarray) -> None:
    """A server with the bundles mounted, whose models can be controlled with a key."""
    left = data / "models" / ".ctseg-staging-models-killed" / "2"  # of a build that was killed
    left.mkdir(parents=True)
    give_to(data / "models", SERVER_USER)
    (data / "models" / "lost+found").mkdir(mode=0o700)  # as on a disk of its own: root's
    key_file = data / "admin_key"
    key_file.write_text(KEY)
    give_to(key_file, SERVER_USER)
    key_file.chmod(0o400)
    step("scripts/serve.sh: bundles mounted, model control with a key")
    with serving(machine, data, "mounted", CONTROL="explicit", ADMIN_KEY=str(key_file)) as server:
        claim("what was built before is not built again", "is up to date" in server.logs(), server.logs())
        claim("what a killed build has left is removed, and lost+found is no model", not left.exists())
        check_lock_down(server, machine)
        compare_labels(machine, server, data, expected)
        check_control(server)
        check_stop(server, machine)


def serve_baked(machine: Machine, data: Path, expected: np.ndarray, mounts: Sequence[str]) -> None:
    """A server with the bundle in its image, built at the start, for clients with a certificate only."""
    step("a bundle baked in, built at the start, mutual TLS")
    make_certificates(machine, data / "tls")
    shutil.copytree(data / "bundles", machine.scratch / "context" / "bundles", dirs_exist_ok=True)
    serve_file = str(machine.scratch / "context" / "Dockerfile.serve")
    build_image(machine, mounts, "baked", serve_file, "triton", "--target", "baked")
    shutil.rmtree(data / "models")
    (data / "models").mkdir()
    give_to(data / "models", SERVER_USER)
    baked = {"SERVE_IMAGE": "localhost/ci/baked", "BUNDLES": str(machine.scratch / "context" / "bundles")}
    with serving(machine, data, "baked", TLS="mutual", TLS_FOLDER=str(data / "tls"), **baked) as server:
        with_key = (
            "--tls_client_certificate",
            str(data / "tls/tls.crt"),
            "--tls_client_key",
            str(data / "tls/tls.key"),
        )
        trusted = ("--tls_root_certificates", str(data / "tls" / "ca.crt"))
        compare_labels(machine, server, data, expected, *trusted, *with_key)
        for what, words in (("plain text", ()), ("a client without certificate", trusted)):
            done = machine.run(
                sys.executable, "-m", "ctseg", "predict", "-m", MODEL, "-i", data / "scans", "-o", data / "refused",
                "--url", f"localhost:{server.grpc}", *words, fails=True,
            )  # fmt: skip
            claim(f"{what} is refused under mutual TLS", done.returncode == 2, done.stdout)
        check_break(server, data)


def walk(machine: Machine, *, keep: bool) -> None:
    """The whole road."""
    layers = () if keep else ("--layers=false",)  # large layers take longer to store than to make again
    scratch = machine.scratch
    step("stand-in bases")
    mounts = pip_settings(scratch)
    make_base(machine)
    make_context(scratch)
    build_image(machine, mounts, "triton", str(scratch / "context" / "Dockerfile.triton"), "debian")
    step("Dockerfile.train")
    build_image(
        machine, mounts, "train", str(scratch / "context" / "Dockerfile.train"), "debian", *layers,
        "--build-arg", "DEVICE=cpu", "--build-arg", "NNUNET_SOURCE=nnunetv2==2.8.1",
    )  # fmt: skip
    step("Dockerfile.serve")
    serve_file = str(scratch / "context" / "Dockerfile.serve")
    build_image(machine, mounts, "serve", serve_file, "triton", "--target", "mounted")
    for tag in ("train", "serve"):
        user = machine.podman("image", "inspect", "-f", "{{.Config.User}}", f"localhost/ci/{tag}")
        claim(f"the {tag} image is not root's", user == SERVER_USER, user)
    program = ("python3", "-c", "import os; print(os.environ.get('CTSEG_TEST_BASE'))")
    said = machine.podman("run", "--rm", "localhost/ci/serve", *program)
    claim("the entry point of the base goes first", said.endswith("wrapped"), said)
    data = scratch / "data"
    shutil.rmtree(data, ignore_errors=True)
    make_data(data)
    train_and_export(machine, data)
    expected = embedded_labels(machine, data)
    serve_mounted(machine, data, expected)
    serve_baked(machine, data, expected, mounts)
    check_refusals(machine, data)


# --- nothing stays behind


def clean(machine: Machine, *, had_chains: bool, keep: bool) -> None:
    """Remove containers, volumes, mounts, firewall chains and, unless kept, all files."""
    for words in (("rm", "-f", "-a", "-t", "2"), ("volume", "prune", "-f")):
        subprocess.run(["podman", *words], env=machine.environment, capture_output=True, check=False)
    if not keep:
        subprocess.run(["podman", "rmi", "-f", "-a"], env=machine.environment, capture_output=True, check=False)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((path for path in mounts if path.startswith(f"{machine.scratch}/")), reverse=True):
        subprocess.run(["umount", mount], capture_output=True, check=False)
    if not had_chains:
        remove_chains()
    if not keep:
        shutil.rmtree(machine.scratch, ignore_errors=True)


def chains(table: str) -> list[str]:
    """Return the rules that netavark made in a table of the firewall."""
    listed = subprocess.run(["iptables", "-t", table, "-S"], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "NETAVARK" in line]


def remove_chains() -> None:
    """Remove what netavark leaves in the firewall."""
    for table in ("nat", "filter"):
        rules = chains(table)
        for rule in reversed([rule for rule in rules if rule.startswith("-A")]):
            subprocess.run(["iptables", "-t", table, "-D", *shlex.split(rule)[1:]], capture_output=True, check=False)
        for rule in rules:
            if rule.startswith("-N"):
                subprocess.run(["iptables", "-t", table, "-X", rule.split()[1]], capture_output=True, check=False)


def main() -> int:
    """Walk the road; clean up whatever happens; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, help="keep images and logs there, so that the next run begins warm")
    args = parser.parse_args()
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing or os.geteuid():
        print(
            f"`make images` needs root and {', '.join(missing) or 'nothing else'}; Debian and Ubuntu: "
            "apt-get install podman runc netavark aardvark-dns iptables mmdebstrap openssl",
            file=sys.stderr,
        )
        return 2

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, stop)
    signal.alarm(LONGEST_S)
    scratch = args.scratch or Path(tempfile.mkdtemp(prefix="ctseg-images-"))
    scratch.mkdir(parents=True, exist_ok=True)
    machine = Machine.prepare(scratch.resolve())
    had_chains = any(chains(table) for table in ("nat", "filter"))
    try:
        walk(machine, keep=args.scratch is not None)
    except (ClaimError, subprocess.TimeoutExpired) as error:
        print(f"FAILED  {error}", file=sys.stderr)
        for log in sorted(scratch.glob("*.log")):
            if log.name != "commands.log":
                print(f"--- {log.name}\n{log.read_text()[-4000:]}", file=sys.stderr)
        return 1
    finally:
        signal.alarm(0)
        clean(machine, had_chains=had_chains, keep=args.scratch is not None)
    step("done; nothing is left running or mounted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
