"""Servers with mounted and with baked bundles, and starts that must be refused."""

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from scripts.check_images.claims import claim, step
from scripts.check_images.data import give_to
from scripts.check_images.images import build_image
from scripts.check_images.layers import files_in_image, patient_data_in
from scripts.check_images.machine import KEY, MODEL, SERVER_USER, TRAINER_USER, Machine
from scripts.check_images.serving import (
    Serving,
    check_control,
    check_lock_down,
    check_stop,
    compare_labels,
    serving,
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
    check_no_patients(machine, data)
    shutil.rmtree(data / "models")
    (data / "models").mkdir()
    give_to(data / "models", SERVER_USER)
    baked = {"SERVE_IMAGE": "localhost/ci/baked", "BUNDLES": ""}
    with serving(machine, data, "baked", TLS="mutual", TLS_FOLDER=str(data / "tls"), **baked) as server:
        with_key = (
            "--tls_client_certificate",
            str(data / "tls/tls.crt"),
            "--tls_client_key",
            str(data / "tls/tls.key"),
        )
        trusted = ("--tls_root_certificates", str(data / "tls" / "ca.crt"))
        parity = json.loads((data / "models" / MODEL / "ctseg.json").read_text())["parity"]
        proven = (parity["state"], parity["proven_with"], parity["graph_proven_with"])
        claim("its entry is proven with the phantom", proven == ("proven", ["phantom"], ["scans", "phantom"]), parity)
        compare_labels(machine, server, data, expected, *trusted, *with_key)
        for what, words in (("plain text", ()), ("a client without certificate", trusted)):
            done = machine.run(
                sys.executable, "-m", "ctseg", "predict", "-m", MODEL, "-i", data / "scans", "-o", data / "refused",
                "--url", f"localhost:{server.grpc}", *words, fails=True,
            )  # fmt: skip
            claim(f"{what} is refused under mutual TLS", done.returncode == 2, done.stdout)
        check_break(server, data)


def check_no_patients(machine: Machine, data: Path) -> None:
    """No layer of an image carries voxels of patients, and one that was made to does not start."""
    scans = data / "bundles" / MODEL / "parity"
    claim("the bundle has voxels of real scans", (scans / "case.npy").is_file())
    for tag in ("serve", "baked"):
        paths = files_in_image(machine, f"localhost/ci/{tag}")
        held = patient_data_in(paths)
        claim(f"no layer of the {tag} image has a parity/ ({len(paths)} files looked at)", not held, held[:5])
        phantoms = [path for path in paths if path.endswith("/parity_phantom/case.npy")]
        claim(f"phantoms in it: {len(phantoms)}", len(phantoms) == (tag == "baked"), phantoms)
    for lost, told in (("", "/bundles/sarcoma/parity: voxels of patients"), ("parity*", "no parity_phantom/ there")):
        context = machine.scratch / "careless"
        shutil.rmtree(context, ignore_errors=True)
        shutil.copytree(data / "bundles", context / "bundles", ignore=shutil.ignore_patterns(*lost.split()))
        check = 'RUN ["/opt/ctseg/venv/bin/python", "-I", "-m", "ctseg.container.baked"]'
        (context / "Dockerfile").write_text(
            f"FROM localhost/ci/serve AS made\nCOPY bundles /bundles\nFROM made\n{check}\n"
        )
        words = ("build", "--format", "docker", "--network", "host", "--pull=never", "-f", context / "Dockerfile")
        said = machine.podman(*words, context, fails=True)
        claim(f"a bundle that the image may not carry ends its build: {told}", told in said, said[-2000:])
        machine.podman(*words, "--target", "made", "-t", "localhost/ci/careless", context)
        if not lost:
            flags = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--user", SERVER_USER]
            is_told(machine, "voxels of patients in an image made by hand", [told], flags, "careless")


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
        (
            "all settings that cannot be used",
            ["CTSEG_BACKEND=torch", "CTSEG_BUILD_OPTIONS=--thread 1", "CTSEG_TLS=on"],
            ["-e", "CTSEG_BACKEND=torch", "-e", "CTSEG_BUILD_OPTIONS=--thread 1", "-e", "CTSEG_TLS=on", "-v", models],
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
