"""TensorRT plans from ONNX, by TensorRT's Python builder: 10.x, 11.x, and TensorRT-RTX as a check without a GPU.

Networks are strongly typed: precision stands in the ONNX graph, and nothing else changes it.
"""

import importlib
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ctseg.arrays import Logits, Patches
from ctseg.deploy.build_progress import progress_monitor
from ctseg.deploy.cuda_driver import CudaDriver, Gpu
from ctseg.deploy.engine_types import types_of_engine
from ctseg.deploy.runtimes import Network
from ctseg.deploy.server_tensorrt import library_version, require_same_tensorrt, server_library
from ctseg.errors import SetupError, SpecError
from ctseg.files import atomic
from ctseg.model_spec import ModelSpec, Tensor
from ctseg.numerics.votes import logits_and_votes
from ctseg.stages import stage

MODULES = ("tensorrt", "tensorrt_bindings")
OLDEST_VERSION = (10, 0)
COMPILED_TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
"""What TensorRT-RTX 1.7 compiles for without a GPU; it has no SM90."""

_INSTALL = "work in the serving image, or install the server's version of it (docs/install.md)"


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is built.

    Attributes:
        min_batch: Least patches that the plan takes.
        opt_batch: Patches that it is tuned for.
        max_batch: Most patches that it takes.
        workspace_mb: Most scratch memory of one layer, in MiB.
        optimization_level: TensorRT's builder level, 0 to 5.
        tf32: Let FP32 products round their factors to TF32.
        timing_cache: Folder of timing caches; None keeps none.
        compute_capability: What to compile for where there is no GPU (``SM89``); TensorRT-RTX only.
    """

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 4
    workspace_mb: int = 4096
    optimization_level: int = 3
    tf32: bool = False
    timing_cache: Path | None = None
    compute_capability: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(f"expected 1 <= min <= opt <= max batch, found {self}")
        if not 0 <= self.optimization_level <= 5:
            raise ValueError(f"expected a builder level from 0 to 5, found {self.optimization_level}")
        if self.workspace_mb < 1:
            raise ValueError(f"expected a positive workspace, found {self.workspace_mb} MiB")


@dataclass(frozen=True)
class Plan:
    """A built plan.

    Attributes:
        data: What TensorRT loads.
        tensorrt: Version of TensorRT that built it.
        network_types: How many layers of the parsed network give each float type.
        seconds: What the build took.
    """

    data: bytes
    tensorrt: str
    network_types: Mapping[str, int]
    seconds: float


def load_tensorrt(modules: Sequence[str] = MODULES) -> Any:
    """Import TensorRT's Python package.

    Raises:
        SetupError: It is missing, broken or too old.
    """
    problems = []
    for name in modules:
        try:
            trt = importlib.import_module(name)
        except ImportError as error:
            problems.append(str(error))
            continue
        found = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
        if "rtx" not in name and found < OLDEST_VERSION:
            raise SetupError(f"TensorRT {trt.__version__} is too old, 10.0 is the oldest that works: {_INSTALL}")
        return trt
    raise SetupError(f"TensorRT's Python package is not installed ({'; '.join(problems)}): {_INSTALL}")


def build_plan(onnx_file: Path, options: PlanOptions, *, trt: Any, gpu_name: str = "") -> Plan:
    """Compile an ONNX file.

    Args:
        onnx_file: Strongly typed, dynamic in the batch only; weights beside it are found.
        options: How.
        trt: TensorRT's module, from :func:`load_tensorrt`.
        gpu_name: For the timing cache, which belongs to one GPU type.

    Raises:
        SpecError: TensorRT does not support an operator (named with its node), or the graph.
        SetupError: The build failed for want of a GPU or memory, or for another reason; with TensorRT's words.
    """
    start = time.monotonic()
    logger = _logger(trt)
    errors = logger.errors
    errors.clear()
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    if builder is None or not hasattr(builder, "create_network"):
        raise SetupError(f"{onnx_file}: TensorRT cannot start here: {_last(errors)}")
    # the flag's number means something else in each major version; 11 ignores it
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        raise SpecError(f"{onnx_file}: TensorRT {trt.__version__} cannot read it: {'; '.join(_parser_errors(parser))}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector knows names only
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.compute_capability is not None:
        _set_target(trt, config, options.compute_capability)
    _add_profile(builder, config, network, options, onnx_file)
    cache_file = _timing_cache_file(options, trt, gpu_name)
    if cache_file is not None:
        _use_timing_cache(config, cache_file)
    monitor = progress_monitor(trt)
    config.progress_monitor = monitor
    with stage(f"TensorRT {trt.__version__} builds the plan"):
        plan = builder.build_serialized_network(network, config)
    monitor.require_went_on()
    if plan is None:
        raise SetupError(
            f"{onnx_file}: TensorRT {trt.__version__} could not build the plan: {_last(errors)}; if memory is short: "
            "less workspace, smaller batches, or a GPU with nothing else on it",
            settings=("workspace_mb", "max_batch_size"),
        )
    if cache_file is not None:
        _keep_timing_cache(config, cache_file)
    return Plan(bytes(plan), str(trt.__version__), _types_of(trt, network), time.monotonic() - start)


_loggers: dict[str, Any] = {}
"""By module. TensorRT's plugin library keeps a pointer to the first one that it is given: they live as long as we."""


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps TensorRT's errors for the exception."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = Logger()
    return _loggers[trt.__name__]


def _last(errors: Iterable[str]) -> str:
    return " | ".join(list(errors)[-3:]) or "it does not say why"


def _parser_errors(parser: Any) -> Iterator[str]:
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        yield f"operator {error.node_operator() or 'unknown'}, node {error.node_name() or error.node()}: {error.desc()}"


def _set_target(trt: Any, config: Any, target: str) -> None:
    capability = getattr(getattr(trt, "ComputeCapability", None), target, None)
    if capability is None:
        raise SetupError(
            f"{trt.__name__} {trt.__version__} cannot compile for {target} without a GPU: TensorRT-RTX can"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)


def _add_profile(builder: Any, config: Any, network: Any, options: PlanOptions, onnx_file: Path) -> None:
    if network.num_inputs != 1 or network.num_outputs not in (1, 2):
        raise SpecError(
            f"{onnx_file}: expected one input, and logits or logits and votes, found {network.num_inputs} inputs and "
            f"{network.num_outputs} outputs"
        )
    tensor = network.get_input(0)
    batch, *rest = tuple(tensor.shape)
    if batch != -1 or any(side < 1 for side in rest):
        raise SpecError(f"{onnx_file}: expected a shape that is dynamic in the batch only, found {tuple(tensor.shape)}")
    profile = builder.create_optimization_profile()  # one: Triton's choice among several is off by one
    shapes = [(size, *rest) for size in (options.min_batch, options.opt_batch, options.max_batch)]
    profile.set_shape(tensor.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise SpecError(f"{onnx_file}: TensorRT refuses the optimisation profile {shapes}")


def _timing_cache_file(options: PlanOptions, trt: Any, gpu_name: str) -> Path | None:
    if options.timing_cache is None or "rtx" in trt.__name__:  # TensorRT-RTX measures nothing while it builds
        return None
    key = re.sub(r"[^A-Za-z0-9.]+", "_", f"tensorrt_{trt.__version__}_{gpu_name}")
    return options.timing_cache / f"{key}.cache"


def _use_timing_cache(config: Any, file: Path) -> None:
    content = file.read_bytes() if file.is_file() else b""
    for data in (content, b""):  # a foreign or broken cache is started anew
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _keep_timing_cache(config: Any, file: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(file, bytes(cache.serialize()))


def _types_of(trt: Any, network: Any) -> dict[str, int]:
    names = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}
    counts: Counter[str] = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.num_outputs and (name := names.get(layer.get_output(0).dtype)):
            counts[name] += 1
    return dict(counts)


@dataclass(frozen=True)
class Signature:
    """What a network takes and gives.

    Attributes:
        model: Its name, for messages.
        input: Name and type of the patches.
        output: Name and type of the logits.
        channels: Of a patch.
        heads: Of the logits.
        patch_size: Voxels along each axis.
        votes: Name of the second output, which counts votes (UINT8); empty where there is none.
        voting: Contract of a network whose votes are to follow its logits; None: they are left out.
    """

    model: str
    input: Tensor
    output: Tensor
    channels: int
    heads: int
    patch_size: tuple[int, ...]
    votes: str = ""
    voting: ModelSpec | None = None

    @classmethod
    def of_spec(cls, spec: ModelSpec) -> "Signature":
        """Return the signature of the network that a spec describes."""
        own = (spec.name, spec.input, spec.output, spec.num_input_channels, spec.num_heads, spec.patch_size)
        return cls(*own) if spec.votes is None else cls(*own, spec.votes.name, spec)


class PlanNetwork:
    """A plan, loaded on the GPU of this machine.

    Args:
        plan: The plan.
        signature: What it takes and gives; its tensors must be the plan's.
        trt: TensorRT's module.
        driver: The GPU.

    Raises:
        SetupError: TensorRT cannot load the plan here.
        SpecError: The plan's tensors are not the signature's.
    """

    def __init__(self, plan: bytes, signature: Signature, *, trt: Any, driver: CudaDriver) -> None:
        logger = _logger(trt)
        self._errors = logger.errors
        self._errors.clear()
        self._trt, self._driver, self._signature = trt, driver, signature
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise SetupError(
                f"{signature.model}: TensorRT {trt.__version__} cannot load the plan here: {_last(self._errors)}"
            )
        numpy_types = {trt.DataType.FLOAT: "FP32", trt.DataType.HALF: "FP16", trt.DataType.BF16: "BF16"}
        for tensor in (signature.input, signature.output):
            found = numpy_types.get(self._engine.get_tensor_dtype(tensor.name))
            if found != tensor.dtype:
                raise SpecError(
                    f"{signature.model}: expected tensor {tensor.name} of {tensor.dtype}, the plan has {found}"
                )
        if signature.votes and self._engine.get_tensor_dtype(signature.votes) != trt.DataType.UINT8:
            raise SpecError(f"{signature.model}: expected votes {signature.votes} of UINT8, the plan has another type")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise SetupError(f"{signature.model}: no GPU memory to run the plan: {_last(self._errors)}")

    def information(self) -> str:
        """Return the engine inspector's JSON, for the shape that the plan is tuned for."""
        inspector = self._engine.create_engine_inspector()
        _, tuned, _ = self._engine.get_tensor_profile_shape(self._signature.input.name, 0)
        if self._context.set_input_shape(self._signature.input.name, tuned):  # without a shape it names no type
            inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def __call__(self, patches: Patches) -> Logits:
        """Run patches, see :data:`ctseg.deploy.runtimes.Network`."""
        signature, driver, context = self._signature, self._driver, self._context
        sent = np.ascontiguousarray(patches, dtype=_numpy_dtype(signature.input.dtype))
        answer = np.empty(
            (len(patches), signature.heads, *signature.patch_size), dtype=_numpy_dtype(signature.output.dtype)
        )
        counts = np.empty(answer.shape if signature.votes else 0, np.uint8)
        source, target = driver.allocate(sent.nbytes), driver.allocate(answer.nbytes)
        voted = driver.allocate(counts.nbytes) if signature.votes else None
        try:
            driver.to_gpu(source, sent)
            context.set_input_shape(signature.input.name, sent.shape)
            context.set_tensor_address(signature.input.name, source)
            context.set_tensor_address(signature.output.name, target)
            if voted is not None:
                context.set_tensor_address(signature.votes, voted)
            if not context.execute_async_v3(0):
                raise SetupError(f"{signature.model}: the plan does not run: {_last(self._errors)}")
            driver.synchronise()
            driver.from_gpu(answer, target)
            if voted is not None:
                driver.from_gpu(counts, voted)
        finally:
            driver.free(source)
            driver.free(target)
            if voted is not None:
                driver.free(voted)
        if signature.voting is not None:
            return logits_and_votes(answer, counts, signature.voting)
        return answer.astype(np.float32, copy=False)


def _numpy_dtype(dtype: str) -> type[np.generic]:
    return {"FP32": np.float32, "FP16": np.float16}[dtype]


def plan_network(
    plan: bytes, signature: Signature, *, trt: Any, driver: CudaDriver
) -> tuple[Network, Mapping[str, int]]:
    """Load a plan and read back what it is made of.

    Returns:
        The network, and its layers by float type.

    Raises:
        SetupError: The plan cannot be loaded.
        SpecError: The plan's tensors are not the signature's.
    """
    loaded = PlanNetwork(plan, signature, trt=trt, driver=driver)
    return loaded, types_of_engine(loaded.information())


class Compiler(Protocol):
    """What a build needs of TensorRT and the GPU."""

    @property
    def version(self) -> str:
        """Of TensorRT."""
        ...

    @property
    def gpu(self) -> Gpu:
        """The GPU that builds and serves."""
        ...

    def build(self, onnx_file: Path, options: PlanOptions) -> Plan:
        """See :func:`build_plan`."""
        ...

    def load(self, plan: bytes, signature: Signature) -> tuple[Network, Mapping[str, int]]:
        """See :func:`plan_network`."""
        ...


def built_with(compiler: Compiler, options: PlanOptions) -> dict[str, Any]:
    """Return what a build records about TensorRT, the GPU and the batches, as it stands in JSON."""
    return {
        "tensorrt": compiler.version,
        "gpu": compiler.gpu.name,
        "compute_capability": compiler.gpu.compute_capability,
        "profile": [options.min_batch, options.opt_batch, options.max_batch],
    }


class TensorRt:
    """TensorRT and the GPU of this machine.

    Args:
        server_version: Version that the server loads; None asks the library that a server here would load.

    Raises:
        SetupError: There is no GPU, no TensorRT, or another TensorRT than the server's.
    """

    def __init__(self, server_version: str | None = None) -> None:
        self._driver = CudaDriver()
        self.gpu = self._driver.gpu()
        self._trt = load_tensorrt()
        self.version = str(self._trt.__version__)
        if server_version is None:
            library = server_library()
            if library is None:
                raise SetupError(
                    "no libnvinfer of a tritonserver was found to compare versions with: build in the serving image, "
                    "or say what the server loads",
                    settings=("server_tensorrt",),
                )
            server_version = library_version(library)
        require_same_tensorrt(self._trt, server_version)

    def build(self, onnx_file: Path, options: PlanOptions) -> Plan:
        """See :func:`build_plan`."""
        return build_plan(onnx_file, options, trt=self._trt, gpu_name=self.gpu.name)

    def load(self, plan: bytes, signature: Signature) -> tuple[Network, Mapping[str, int]]:
        """See :func:`plan_network`."""
        return plan_network(plan, signature, trt=self._trt, driver=self._driver)
