"""What runs an ONNX file on this machine: ONNX Runtime and OpenVINO, as the python backend of an entry does."""

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.arrays import Logits, Patches
from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import ParityError, SetupError, SpecError, missing_package
from ctseg.model_spec import ModelSpec

Network = Callable[[Patches], Logits]
"""Runs a batch of patches: float32 in, float32 out."""
Measure = Callable[[Network, ModelSpec], float]
"""Returns the seconds that a network takes for one patch."""

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
        raise missing_package("onnxruntime", needed_for="running an ONNX file", extra="serve") from error
    if provider not in onnxruntime.get_available_providers():
        raise SetupError(f"this onnxruntime lacks {provider}, found {onnxruntime.get_available_providers()}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
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

    def run(patches: Patches) -> Logits:
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
        raise SetupError(
            "openvino is not installed here: it is an optional second runtime, see docs/install.md"
        ) from error
    settings = {
        "INFERENCE_NUM_THREADS": threads or usable_cpus(),
        "INFERENCE_PRECISION_HINT": precision_hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        request = openvino.Core().compile_model(str(model), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise SpecError(f"{model}: OpenVINO cannot load it: {error}") from error

    def run(patches: Patches) -> Logits:
        try:
            request.infer([patches], share_inputs=True)
        except RuntimeError as error:
            raise ParityError(f"OpenVINO failed on patches of shape {patches.shape}: {error}") from error
        return np.array(request.get_output_tensor(0).data, dtype=np.float32)

    return run


def seconds_per_patch(
    network: Network, spec: ModelSpec, *, repeats: int = 3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the least seconds that a network takes for one patch of noise, after one call to warm up."""
    shape = (1, len(spec.channels), *spec.patch_size)
    patch = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    network(patch)
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        network(patch)
        best = min(best, clock() - start)
    return best


def machine() -> dict[str, Any]:
    """Return what a build records about the machine's CPU."""
    import platform

    return {"machine": platform.machine(), "cpus": usable_cpus(), "system": platform.system()}
