"""What runs an ONNX file on this machine: ONNX Runtime and OpenVINO, as the python backend of an entry does."""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.arrays import Logits, Patches
from ctseg.compiled.cpus import usable_cpus
from ctseg.errors import ParityError, SetupError, SpecError, missing_package
from ctseg.model_spec import ModelSpec
from ctseg.numerics.votes import logits_and_votes
from ctseg.serving.cuda_libraries import load_cuda_libraries
from ctseg.serving.publish import Device

Network = Callable[[Patches], Logits]
"""Runs a batch of patches: float32 in, float32 out."""
Measure = Callable[[Network, ModelSpec], float]
"""Returns the seconds that a network takes for one patch."""

_CUDA = "CUDAExecutionProvider"
RUNTIMES = ("openvino", "onnxruntime")
"""In the order in which they are tried: OpenVINO is the faster one on nearly every network that was measured."""


def available_runtimes() -> tuple[str, ...]:
    """Return the runtimes that are installed here, in the order in which they are tried."""
    return tuple(name for name in RUNTIMES if find_spec(name) is not None)


def describe_runtime(name: str) -> str:
    """Return the package that brings a runtime and its version, for people: ``onnxruntime-gpu 1.31.1``.

    Several packages bring the module ``onnxruntime``; the one whose files are imported is meant.
    """
    found = find_spec(name)
    if found is None or found.origin is None:
        return name
    owners = (item for item in distributions(path=[str(Path(found.origin).parents[1])]) if _is_package_of(item, name))
    owner = max(owners, key=lambda item: str(item.metadata["Name"]), default=None)
    return name if owner is None else f"{owner.metadata['Name']} {owner.version}"


def _is_package_of(distribution: Distribution, runtime: str) -> bool:
    return str(distribution.metadata["Name"]).lower() in (runtime, f"{runtime}-gpu")


def onnxruntime_network(
    model: Path | bytes,
    *,
    optimise: bool = True,
    threads: int = 0,
    device: Device = "cpu",
    voting: ModelSpec | None = None,
) -> Network:
    """Load an ONNX file with ONNX Runtime.

    Args:
        model: The file, or its bytes.
        optimise: Let ONNX Runtime rewrite the graph.
        threads: CPU threads; 0 takes all that this process may use.
        device: ``gpu`` takes the first GPU by CUDA, without TF32.
        voting: Contract of a network whose votes are to follow its logits, if it has any.

    Raises:
        SpecError: The file cannot be loaded.
        SetupError: ONNX Runtime is not installed, or cannot use the GPU.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", needed_for="running an ONNX file", extra="serve") from error
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "gpu":
        require_cuda_build()
        load_cuda_libraries()
        providers.insert(0, (_CUDA, {"use_tf32": "0"}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise SpecError(
            f"{'the graph' if isinstance(model, bytes) else model}: ONNX Runtime cannot load it: {error}"
        ) from error
    session.disable_fallback()  # a run that failed would go on by the CPU, from then on
    if device == "gpu":
        _require_cuda(session.get_providers())
    (feed,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[feed.type]
    votes = voting.votes if voting is not None else None
    wanted = [session.get_outputs()[0].name, *([votes.name] if votes else [])]

    def run(patches: Patches) -> Logits:
        try:
            logits, *counts = session.run(wanted, {feed.name: patches.astype(dtype, copy=False)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ParityError(f"ONNX Runtime failed on patches of shape {patches.shape}: {error}") from error
        if voting is not None and counts:
            return logits_and_votes(logits, counts[0], voting)
        return np.asarray(logits, dtype=np.float32)

    return run


def require_cuda_build() -> None:
    """Refuse an ONNX Runtime that was built without CUDA.

    Raises:
        SetupError: It was, or is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", needed_for="running an ONNX file", extra="serve") from error
    _require_cuda(onnxruntime.get_available_providers())


def _require_cuda(providers: Sequence[str]) -> None:
    """Refuse an ONNX Runtime that would run on the CPU what was asked for on a GPU.

    Raises:
        SetupError: CUDA is not among the providers.
    """
    if _CUDA not in providers:
        raise SetupError(
            f"{describe_runtime('onnxruntime')} cannot use a GPU here, it has {', '.join(providers)}: install "
            "onnxruntime-gpu for this machine's CUDA, with cuDNN 9, in place of onnxruntime; or build for the CPU",
            settings=("device",),
        )


def openvino_network(
    model: Path, *, precision_hint: str = "f32", threads: int = 0, voting: ModelSpec | None = None
) -> Network:
    """Load an ONNX file with OpenVINO on the CPU.

    Args:
        model: The file.
        precision_hint: ``f32`` or ``bf16``.
        threads: CPU threads; 0 takes all that this process may use.
        voting: See :func:`onnxruntime_network`.

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
        logits = request.get_output_tensor(0).data
        if voting is not None and voting.votes is not None:
            return logits_and_votes(logits, request.get_tensor(voting.votes.name).data, voting)
        return np.array(logits, dtype=np.float32)

    return run


def seconds_per_patch(
    network: Network, spec: ModelSpec, *, repeats: int = 3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the least seconds that a network takes for one patch of noise, after one call to warm up."""
    shape = (1, spec.num_input_channels, *spec.patch_size)
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
