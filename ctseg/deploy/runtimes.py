"""What runs an ONNX file on this machine: ONNX Runtime and OpenVINO, as the python backend of an entry does."""

import hashlib
import os
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.deploy.parity import Array, Network
from ctseg.errors import ParityError, SetupError, SpecError
from ctseg.model_spec import ModelSpec

RUNTIMES = ("onnxruntime", "openvino")


def available_runtimes() -> tuple[str, ...]:
    """Return the runtimes that are installed here, in the order in which they are tried."""
    return tuple(name for name in RUNTIMES if find_spec(name) is not None)


def describe_runtime(name: str) -> str:
    """Return a runtime's name and version, for people."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def onnxruntime_network(
    model: Path | bytes, *, optimise: bool = True, threads: int = 0, provider: str = "CPUExecutionProvider"
) -> Network:
    """Load an ONNX file with ONNX Runtime.

    Args:
        model: The file, or its bytes.
        optimise: Let ONNX Runtime rewrite the graph.
        threads: CPU threads; 0 takes all that this process may use.
        provider: ONNX Runtime's execution provider.

    Raises:
        SpecError: The file cannot be loaded.
        SetupError: ONNX Runtime is not installed, or lacks the provider.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise SetupError("onnxruntime is not installed: `pip install ctseg[serve]`") from error
    if provider not in onnxruntime.get_available_providers():
        raise SetupError(f"this onnxruntime lacks {provider}, found {onnxruntime.get_available_providers()}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise SpecError(
            f"{'the graph' if isinstance(model, bytes) else model}: ONNX Runtime cannot load it: {error}"
        ) from error
    (feed,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[feed.type]

    def run(patches: Array) -> Array:
        try:
            (logits,) = session.run(None, {feed.name: patches.astype(dtype, copy=False)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ParityError(f"ONNX Runtime failed on patches of shape {patches.shape}: {error}") from error
        return np.asarray(logits, dtype=np.float32)

    return run


def openvino_network(model: Path, *, precision_hint: str = "f32", threads: int = 0) -> Network:
    """Load an ONNX file with OpenVINO on the CPU.

    Args:
        model: The file.
        precision_hint: ``f32`` or ``bf16``.
        threads: CPU threads; 0 takes all that this process may use.

    Raises:
        SpecError: The file cannot be loaded.
        SetupError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise SetupError("openvino is not installed: `pip install openvino`") from error
    settings = {
        "INFERENCE_NUM_THREADS": threads or available_cpus(),
        "INFERENCE_PRECISION_HINT": precision_hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        request = openvino.Core().compile_model(str(model), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise SpecError(f"{model}: OpenVINO cannot load it: {error}") from error

    def run(patches: Array) -> Array:
        try:
            request.infer([patches], share_inputs=True)
        except RuntimeError as error:
            raise ParityError(f"OpenVINO failed on patches of shape {patches.shape}: {error}") from error
        return np.array(request.get_output_tensor(0).data, dtype=np.float32)

    return run


def seconds_per_patch(network: Network, spec: ModelSpec, *, repeats: int = 3) -> float:
    """Measure the least seconds that a network takes for one patch of noise, after one call to warm up."""
    shape = (1, len(spec.channels), *spec.patch_size)
    patch = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    network(patch)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        network(patch)
        best = min(best, time.perf_counter() - start)
    return best


def available_cpus() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """Return what a build records about the machine's CPU."""
    import platform

    return {"machine": platform.machine(), "cpus": available_cpus(), "system": platform.system()}
