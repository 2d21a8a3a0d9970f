"""TensorRT: names that exist in the real bindings, plans that the real compiler builds, precision that is read back."""

import ast
import gc
import json
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctseg.deploy import tensorrt_plan
from ctseg.deploy.bundle import Bundle
from ctseg.deploy.cuda_driver import CudaDriver
from ctseg.deploy.onnx_file import write_graph
from ctseg.deploy.onnx_graph import onnx_graph_of
from ctseg.deploy.parity_data import PreparedCase
from ctseg.deploy.precision import BF16, KEPT_OPERATORS, HalfType, bf16_attempts, fp16_attempts
from ctseg.deploy.server_tensorrt import library_version, require_same_tensorrt
from ctseg.deploy.tensorrt_plan import COMPILED_TARGETS, PlanOptions, Signature, build_plan, load_tensorrt
from ctseg.deploy.trained_model import load_trained_model
from ctseg.errors import SetupError, SpecError
from ctseg.model_spec import Tensor
from tests.support.nnunet_reference import (
    make_dataset,
    make_plans,
    make_trained_folder,
    swin_architecture,
    unet_architecture,
)

CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "tensor": "ITensor", "layer": "ILayer", "cache": "ITimingCache",
    "error": "ParserError", "inspector": "EngineInspector", "context": "IExecutionContext",
    "_runtime": "Runtime", "_engine": "ICudaEngine", "_context": "IExecutionContext",
}  # fmt: skip
ONLY_IN_RTX = {"IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}


def names_used() -> set[str]:
    """Every TensorRT name that the module uses: ``trt.A.B``, and attributes of variables of a known class."""
    names = set()
    tree = ast.parse(Path(tensorrt_plan.__file__).read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        text = ast.unparse(node)
        if match := re.fullmatch(r"(?:self\._)?trt\.([A-Za-z0-9_.]+)", text):
            names.add(match.group(1))
        elif (match := re.fullmatch(r"(?:self\.)?(\w+)\.(\w+)", text)) and match.group(1) in CLASSES:
            names.add(f"{CLASSES[match.group(1)]}.{match.group(2)}")
    return names


def installed(name: str) -> Path:
    """The folder with a version of TensorRT's wheels, which the Makefile installs (requirements/tensorrt_*.txt)."""
    folder = Path(sys.prefix) / "tensorrt" / name
    assert folder.is_dir(), f"{folder} is missing: `make test` installs requirements/tensorrt_{name}.txt into it"
    return folder


@pytest.fixture(scope="session")
def rtx() -> object:
    """TensorRT-RTX's module: the real parser and compiler, which need no GPU."""
    sys.path.append(str(installed("rtx")))
    return load_tensorrt(("tensorrt_rtx_bindings",))


def missing_names(module_folder: Path, module: str, names: set[str], libraries: Path | None = None) -> set[str]:
    """Import bindings in a process of their own and return the names that they lack."""
    program = (
        "import sys, json, importlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "module = importlib.import_module(sys.argv[2])\n"
        "def has(name):\n"
        "    value = module\n"
        "    for part in name.split('.'):\n"
        "        if not hasattr(value, part): return False\n"
        "        value = getattr(value, part)\n"
        "    return True\n"
        "print(json.dumps([name for name in json.loads(sys.argv[3]) if not has(name)]))\n"
    )
    environment = {"LD_LIBRARY_PATH": str(libraries)} if libraries else {}
    command = [sys.executable, "-c", program, str(module_folder), module, json.dumps(sorted(names))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


def stub_libraries(folder: Path, major: str) -> Path:
    """Libraries with the symbols that the bindings need and nothing behind them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "the bindings of TensorRT need stub libraries, and those a C compiler"
    symbols = [
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion",
        "getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins",
    ]  # fmt: skip
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols))
    for library in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        name = f"{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)
    return folder


def test_the_list_of_names_is_not_empty() -> None:
    names = names_used()
    assert {"Builder", "OnnxParser", "MemoryPoolType.WORKSPACE", "BuilderFlag.TF32", "DataType.HALF"} <= names
    assert {"IBuilderConfig.set_memory_pool_limit", "IOptimizationProfile.set_shape"} <= names
    assert {"ICudaEngine.create_engine_inspector", "IExecutionContext.execute_async_v3"} <= names
    assert {"EngineInspector.execution_context", "ICudaEngine.get_tensor_profile_shape"} <= names
    assert len(names) > 45


@pytest.mark.parametrize("version", ["10", "11"])
def test_every_name_exists_in_the_real_bindings(version: str, tmp_path: Path) -> None:
    folder = installed(version)
    libraries = stub_libraries(tmp_path, version)
    assert missing_names(folder, "tensorrt_bindings", names_used(), libraries) <= ONLY_IN_RTX


def test_every_name_exists_in_tensorrt_rtx(rtx: object) -> None:
    folder = Path(str(rtx.__file__)).parents[1]  # type: ignore[attr-defined]
    assert missing_names(folder, "tensorrt_rtx_bindings", names_used()) == set()
    assert missing_names(folder, "tensorrt_rtx_bindings", {"Builder.no_such_name"}) == {"Builder.no_such_name"}


def test_rtx_compiles_the_unet_in_fp32_and_fp16(rtx: object, bundle: Bundle) -> None:
    options = PlanOptions(max_batch=2, compute_capability="SM89")
    whole, half = (build_plan(bundle.folder / name, options, trt=rtx) for name in ("model.onnx", "model.fp16.onnx"))
    assert whole.network_types.keys() == {"fp32"}
    assert half.network_types["fp16"] > 20
    assert half.network_types["fp32"] >= 5  # the norms
    assert len(half.data) < len(whole.data)


def test_rtx_compiles_the_unet_in_bf16_but_for_turing(rtx: object, bundle: Bundle, tmp_path: Path) -> None:
    onnx.save(next(bf16_attempts(onnx.load(bundle.folder / "model.onnx"))).mixed, tmp_path / "bf16.onnx")
    plan = build_plan(tmp_path / "bf16.onnx", PlanOptions(max_batch=2, compute_capability="SM89"), trt=rtx)
    assert plan.network_types["bf16"] > 10
    assert plan.network_types["fp32"] >= 5  # norms and transposed convolutions
    assert "fp16" not in plan.network_types
    with pytest.raises(SetupError, match=r"HW-specific datatypes: b16"):
        build_plan(tmp_path / "bf16.onnx", PlanOptions(compute_capability="SM75"), trt=rtx)


def test_rtx_has_no_transposed_convolution_in_bf16(rtx: object, bundle: Bundle, tmp_path: Path) -> None:
    """Why those stay in FP32: once this compiles, they need not."""
    graph = onnx.load(bundle.folder / "model.onnx")
    half = HalfType("bf16", KEPT_OPERATORS, BF16.largest)
    onnx.save(next(bf16_attempts(graph, half=half)).mixed, tmp_path / "bf16.onnx")
    with pytest.raises(SetupError, match=r"Could not infer output types for operation:\s+\d+: deconv"):
        build_plan(tmp_path / "bf16.onnx", PlanOptions(compute_capability="SM89"), trt=rtx)


def test_rtx_takes_weights_that_lie_beside_the_graph(rtx: object, bundle: Bundle, tmp_path: Path) -> None:
    options = PlanOptions(max_batch=2, compute_capability="SM89")
    write_graph(onnx.load(bundle.folder / "model.onnx"), tmp_path / "large.onnx", one_file_bytes=0)
    beside = build_plan(tmp_path / "large.onnx", options, trt=rtx)
    inside = build_plan(bundle.folder / "model.onnx", options, trt=rtx)
    assert beside.network_types == inside.network_types
    assert abs(len(beside.data) - len(inside.data)) < 0.01 * len(inside.data)
    (tmp_path / "large.onnx.data").unlink()
    with pytest.raises(SpecError, match=r"large.onnx: TensorRT .* cannot read it"):
        build_plan(tmp_path / "large.onnx", options, trt=rtx)


MATRIX = {
    "plain 3d": ((3, "PlainConvUNet"), (32, 64, 64)),
    "plain 2d": ((2, "PlainConvUNet"), (128, 128)),
    "residual 3d": ((3, "ResidualEncoderUNet"), (32, 64, 64)),
    "residual 2d": ((2, "ResidualEncoderUNet"), (128, 128)),
    "swin 2d": ((2, "swin"), (64, 64)),
    "swin 3d": ((3, "swin"), (32, 64, 64)),
}


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(MATRIX))
def test_rtx_compiles_every_network_for_every_target(rtx: object, name: str, tmp_path: Path) -> None:
    (dims, kind), patch = MATRIX[name]
    features = (16, 32, 64, 128)
    architecture = swin_architecture(dims) if kind == "swin" else unet_architecture(dims, kind=kind, features=features)
    plans = make_plans(patch_size=patch, spacing=(2.0,) * dims, configuration="any", architecture=architecture)
    folder = make_trained_folder(tmp_path / "model", plans, make_dataset(), mirror_axes=tuple(range(dims)))
    model = load_trained_model(folder)
    spec = model.spec(name="matrix", mirroring="none", max_batch_size=2)
    graph = onnx_graph_of(model, spec)
    patches = PreparedCase("noise", np.zeros((0, 1, *patch), np.float32)).voxels
    onnx.save(graph, tmp_path / "fp32.onnx")
    onnx.save(next(fp16_attempts(graph, patches)).mixed, tmp_path / "fp16.onnx")
    onnx.save(next(bf16_attempts(graph)).mixed, tmp_path / "bf16.onnx")
    for precision in ("fp32", "fp16", "bf16"):
        for target in COMPILED_TARGETS:
            options = PlanOptions(max_batch=2, compute_capability=target)
            if (target, precision) == ("SM75", "fp32") and name not in ("plain 2d", "residual 2d"):
                # TensorRT-RTX has neither 3-D convolutions nor Swin's matrix products in FP32 for Turing
                with pytest.raises(SetupError, match=r"Cannot compile operation .* for Turing"):
                    build_plan(tmp_path / f"{precision}.onnx", options, trt=rtx)
                continue
            if (target, precision) == ("SM75", "bf16"):
                with pytest.raises(SetupError, match=r"HW-specific datatypes: b16"):
                    build_plan(tmp_path / f"{precision}.onnx", options, trt=rtx)
                continue
            plan = build_plan(tmp_path / f"{precision}.onnx", options, trt=rtx)
            types = dict(plan.network_types)
            print(
                f"{name} {precision} {target}: {plan.seconds:.1f} s, {len(plan.data) / 1e6:.1f} MB, layers {types}",
                flush=True,
            )
            assert {kind for kind in ("fp16", "bf16") if kind in types} == {precision} - {"fp32"}


def test_unsupported_operator_is_named_with_its_node(rtx: object, bundle: Bundle, tmp_path: Path) -> None:
    graph = onnx.load(bundle.folder / "model.onnx")
    node = next(node for node in graph.graph.node if node.op_type == "LeakyRelu")
    node.op_type, node.domain = "Mystery", "my.domain"
    onnx.save(graph, tmp_path / "bad.onnx")
    with pytest.raises(SpecError, match=rf"operator Mystery, node {node.name}"):
        build_plan(tmp_path / "bad.onnx", PlanOptions(compute_capability="SM89"), trt=rtx)


def test_graph_that_is_not_dynamic_in_the_batch_is_refused(rtx: object, tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 8, 8]) for name in ("input", "output")]
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "w"], ["output"])], "g", values[:1], values[1:], [weight]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "s.onnx")
    with pytest.raises(SpecError, match=r"dynamic in the batch only"):
        build_plan(tmp_path / "s.onnx", PlanOptions(compute_capability="SM89"), trt=rtx)


def test_target_that_rtx_lacks_is_refused(rtx: object, bundle: Bundle) -> None:
    with pytest.raises(SetupError, match=r"cannot compile for SM90"):
        build_plan(bundle.folder / "model.onnx", PlanOptions(compute_capability="SM90"), trt=rtx)


class ConfigWithCache:
    """What of TensorRT's builder configuration keeps timing caches; it takes those that it made itself."""

    def __init__(self) -> None:
        self.cache = None

    def create_timing_cache(self, data: bytes) -> object:
        return SimpleNamespace(data=data, serialize=lambda: b"measured" + data)

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        taken = cache.data in (b"", b"measured")
        self.cache = cache if taken else self.cache
        return taken

    def get_timing_cache(self) -> object:
        return self.cache


def test_broken_timing_cache_is_started_anew_and_a_good_one_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "x.cache"
    file.parent.mkdir()
    file.write_bytes(b"of another version")
    for expected in (b"measured", b"measuredmeasured"):
        config = ConfigWithCache()
        tensorrt_plan._use_timing_cache(config, file)
        tensorrt_plan._keep_timing_cache(config, file)
        assert file.read_bytes() == expected


OPEN = {
    "Name": "x",
    "Location": "Device",
    "Dimensions": [-1, 2, 96, 96, 96],
    "Format/Datatype": "N/A due to dynamic shapes",
}
"""What the inspector writes about a tensor of an engine that is dynamic in the batch."""


class Inspected:
    """An engine and its context, and a module of TensorRT that loads them: types are named for a known shape only."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.execution_context: Inspected | None = None
        self.__name__ = "inspected_tensorrt"
        self.DataType = SimpleNamespace(FLOAT=1, HALF=2, BF16=3)
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        self.ILogger = object

    def Runtime(self, logger: object) -> "Inspected":
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> "Inspected":
        return self

    create_execution_context = create_engine_inspector = lambda self: self

    def get_tensor_dtype(self, name: str) -> int:
        return 1

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, 1, 8, 8) for size in (1, 2, 3)]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return True

    def get_engine_information(self, kind: str) -> str:
        is_known = self.execution_context is self and self.shape == (2, 1, 8, 8)
        tensor = {**OPEN, "Format/Datatype": "Row major linear FP32" if is_known else OPEN["Format/Datatype"]}
        return json.dumps({"Layers": [{"Inputs": [tensor], "Outputs": [tensor]}]})


class Memory:
    """A driver whose GPU memory is a dictionary."""

    def __init__(self) -> None:
        self.arrays: dict[int, bytes] = {}
        self.freed: list[int] = []

    def allocate(self, size: int) -> int:
        self.arrays[len(self.arrays) + 1] = b"\0" * size
        return len(self.arrays)

    def free(self, pointer: int) -> None:
        self.freed.append(pointer)

    def to_gpu(self, pointer: int, array: np.ndarray) -> None:
        assert array.nbytes == len(self.arrays[pointer])
        self.arrays[pointer] = array.tobytes()

    def from_gpu(self, array: np.ndarray, pointer: int) -> None:
        array[...] = np.frombuffer(self.arrays[pointer], array.dtype).reshape(array.shape)

    def synchronise(self) -> None: ...


class Doubling(Inspected):
    """An engine that answers each patch with itself and its double, in FP16."""

    def __init__(self, memory: Memory, *, works: bool = True) -> None:
        super().__init__()
        self.__name__ = "doubling_tensorrt"
        self.memory, self.works = memory, works
        self.addresses: dict[str, int] = {}

    def get_tensor_dtype(self, name: str) -> int:
        return 1 if name == "x" else 2

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self.addresses[name] = pointer

    def execute_async_v3(self, stream: int) -> bool:
        assert self.shape is not None
        x = np.frombuffer(self.memory.arrays[self.addresses["x"]], np.float32).reshape(self.shape)
        answer = np.concatenate([x, 2 * x], axis=1).astype(np.float16)
        self.memory.arrays[self.addresses["y"]] = answer.tobytes()
        return self.works


def test_patches_go_to_the_gpu_and_logits_come_back_as_float32() -> None:
    signature = Signature("m", Tensor(name="x", dtype="FP32"), Tensor(name="y", dtype="FP16"), 1, 2, (8, 8))
    memory = Memory()
    run = tensorrt_plan.PlanNetwork(b"", signature, trt=Doubling(memory), driver=memory)  # type: ignore[arg-type]
    patches = np.arange(3 * 64, dtype=np.float32).reshape(3, 1, 8, 8)
    for batch in (patches, patches[:1]):
        logits = run(batch)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, np.concatenate([batch, 2 * batch], axis=1))
    assert memory.freed == [1, 2, 3, 4]
    fails = tensorrt_plan.PlanNetwork(b"", signature, trt=Doubling(memory, works=False), driver=memory)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match=r"m: the plan does not run"):
        fails(patches)
    assert memory.freed == [1, 2, 3, 4, 5, 6]


def test_plan_whose_tensors_are_not_the_models_is_refused() -> None:
    tensor = Tensor(name="x", dtype="FP16")
    with pytest.raises(SpecError, match=r"m: expected tensor x of FP16, the plan has FP32"):
        tensorrt_plan.PlanNetwork(b"", Signature("m", tensor, tensor, 1, 1, (8, 8)), trt=Inspected(), driver=None)  # type: ignore[arg-type]


def test_inspector_is_given_the_shape_that_the_plan_is_tuned_for() -> None:
    tensor = Tensor(name="x", dtype="FP32")
    signature = Signature("m", tensor, tensor, 1, 1, (8, 8))
    _, types = tensorrt_plan.plan_network(b"", signature, trt=Inspected(), driver=None)  # type: ignore[arg-type]
    assert types == {"layers": 1, "fp32": 1}


def test_logger_outlives_the_build_for_the_plugin_library_keeps_it() -> None:
    class Logger:
        ERROR = INTERNAL_ERROR = "error"

        def __init__(self) -> None: ...

    given: list[weakref.ref[object]] = []
    trt = SimpleNamespace(
        __name__="a_tensorrt",
        ILogger=Logger,
        init_libnvinfer_plugins=lambda logger, namespace: given.append(weakref.ref(logger)),
        Builder=lambda logger: logger.log("error", f"error {len(given)}"),
    )
    for i in (1, 2):  # each build tells its own errors only
        with pytest.raises(SetupError, match=f"cannot start here: error {i}$"):
            build_plan(Path("x.onnx"), PlanOptions(), trt=trt)
    gc.collect()
    assert given[0]() is not None
    assert given[0]() is given[1]()


def test_plan_of_another_tensorrt_than_the_servers_is_refused() -> None:
    require_same_tensorrt(SimpleNamespace(__version__="11.2.1.2"), "11.2.1")
    with pytest.raises(SetupError, match=r"the server loads TensorRT 11.2.1, Python has 11.4.0.106"):
        require_same_tensorrt(SimpleNamespace(__version__="11.4.0.106"), "11.2.1")


def test_version_is_asked_from_the_library(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a library to ask needs a C compiler"
    (tmp_path / "v.c").write_text("int getInferLibVersion(void) { return 110201; }\n")
    library = tmp_path / "libnvinfer.so.11"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "v.c")], check=True)
    assert library_version(library) == "11.2.1"
    with pytest.raises(SetupError, match=r"cannot be loaded"):
        library_version(tmp_path / "missing.so")


def test_old_or_missing_tensorrt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(SetupError, match=r"TensorRT 8.6.1 is too old"):
        load_tensorrt(("tensorrt",))
    with pytest.raises(SetupError, match=r"is not installed"):
        load_tensorrt(("no_such_tensorrt",))


def test_machine_without_a_gpu_is_told_so() -> None:
    def no_driver(name: str) -> object:
        raise OSError(name)

    with pytest.raises(SetupError, match=r"no NVIDIA driver on this machine"):
        CudaDriver(load=no_driver)


class DriverThatFails:
    """A CUDA driver whose every call gives one status."""

    def __init__(self, status: int) -> None:
        self._status = status

    def __getattr__(self, name: str) -> object:
        return (lambda *arguments: 0) if name == "cuGetErrorString" else (lambda *arguments: self._status)


def test_errors_of_the_driver_are_told_apart_by_status() -> None:
    with pytest.raises(SetupError, match=r"out of GPU memory"):
        CudaDriver(load=lambda name: DriverThatFails(2))
    with pytest.raises(SetupError, match=r"CUDA error 100"):
        CudaDriver(load=lambda name: DriverThatFails(100))


@pytest.mark.parametrize("change", [{"min_batch": 0}, {"opt_batch": 8}, {"optimization_level": 6}, {"workspace_mb": 0}])
def test_impossible_options_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        PlanOptions(**change)  # type: ignore[arg-type]
