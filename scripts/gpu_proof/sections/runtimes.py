"""What is installed here, and whether it really runs: each runtime computes something, on the GPU where it says so."""

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import nnunet_program
from ctseg.deploy.runtimes import describe_runtime
from ctseg.errors import CtsegError, SetupError
from ctseg.serving.cuda_libraries import load_cuda_libraries
from ctseg.serving.installation import Installation, find_server
from scripts.gpu_proof.bench import ROOT, Bench, Found
from scripts.gpu_proof.embedded_python import MODULES, ask_embedded_python, library_of_this_python
from scripts.gpu_proof.proof import gpus
from scripts.gpu_proof.rows import Teller

IMPORTS = {
    "client": (
        "numpy", "scipy", "numba", "nibabel", "cc3d", "pydantic", "rich", "tenacity", "platformdirs",
        "tritonclient.grpc",
    ),
    "files": ("SimpleITK", "isal"),
    "deployment": (
        "torch", "onnx", "onnxruntime", "onnxscript", "onnxslim", "nnunetv2", "dynamic_network_architectures",
    ),
    "training": (
        "monai.networks", "einops", "batchgenerators", "batchgeneratorsv2", "blosc2", "acvl_utils",
        "ctseg.train.launch",
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunetv2.inference.predict_from_raw_data",
    ),
}  # fmt: skip
KERNELS = tuple(f"ctseg.numerics.{name}_kernels" for name in ("resample", "blend", "restore"))
LEAST_SHM_MIB = 2048
"""Two answers of 25 classes on four patches of 128 x 128 x 128 in FP32 are 1.7 GB."""
_LARGEST_ERROR = {"float32": 1e-4, "float16": 5e-3}
"""Relative L2 of a convolution on the GPU against the CPU in float32; TF32 would be off by 3e-4."""
ONNXRUNTIME_S = 60
_TAIL_CHARACTERS = 1000
_HEAVY = {"Conv", "ConvTranspose", "MatMul", "Gemm", "InstanceNormalization"}


def run(bench: Bench, tell: Teller) -> None:
    """Tell what was found, and keep each finding for the other parts at once: a later one may crash."""
    found = Found()

    def keep(**more: Any) -> None:
        nonlocal found
        found = found.model_copy(update=more)
        bench.keep(found)

    keep()
    with tell.attempt("GPU"):
        keep(gpus=_gpu(tell))
    with tell.attempt("ONNX Runtime"):
        keep(onnxruntime_cuda=_onnxruntime_apart(tell, rehearse=bench.rehearse))
    with tell.attempt("nnU-Net"):
        keep(nnunet=_nnunet(bench, tell))
    with tell.attempt("TensorRT"):
        keep(tensorrt=_tensorrt(tell))
    with tell.attempt("Triton"):
        installation, backends = _triton(tell)
        if installation is not None:
            keep(triton=installation.source, triton_backends=backends)
            _embedded_python(tell, installation)
    _imports(tell)
    with tell.attempt("the client's kernels"):
        _numba(tell)


def _imports(tell: Teller) -> None:
    for layer, modules in IMPORTS.items():
        problems = []
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception as error:  # a library built for another numpy can raise anything
                problems.append(f"{name}: {type(error).__name__}: {error}")
        tell.judge(f"imports, {layer}", not problems, "; ".join(problems) or ", ".join(modules), "all")


def _numba(tell: Teller) -> None:
    from ctseg.compiled.loading import load_kernels

    began = time.perf_counter()
    for name in KERNELS:
        load_kernels(name)
    tell.ok("the client's kernels", f"compiled, or read from the cache, in {time.perf_counter() - began:.1f} s")


def _gpu(tell: Teller) -> int:
    import torch

    names = gpus()
    if names:
        tell.ok("GPU, by its driver", "; ".join(names))
    else:
        tell.not_found("GPU, by its driver", "no NVIDIA driver, or no GPU")
    if not torch.cuda.is_available():
        tell.row("failed" if names else "not found", "torch on a GPU", f"torch {torch.__version__}: no CUDA device")
        return 0
    with tell.attempt("torch on a GPU"):
        x = torch.ones((256, 256), device="cuda")
        tell.judge(
            "torch on a GPU",
            float((x @ x).sum()) == 256.0**3,
            f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
            "computes",
        )
    return torch.cuda.device_count()


def _onnxruntime_apart(tell: Teller, *, rehearse: bool) -> bool:
    """Look at ONNX Runtime in a process of its own: it may crash, and torch would load CUDA's libraries for it."""
    code = (
        "from pathlib import Path; from scripts.gpu_proof.rows import Teller; "
        "from scripts.gpu_proof.sections.runtimes import look_at_onnxruntime as look; "
        f"print('usable', look(Teller({tell.section!r}, Path({str(tell.file)!r})), rehearse={rehearse}))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=ONNXRUNTIME_S, check=False)
    said = done.stdout + done.stderr
    print(said, flush=True)
    if done.returncode:
        raise SetupError(f"its process ended with status {done.returncode}: {said.strip()[-_TAIL_CHARACTERS:]}")
    return done.stdout.splitlines()[-1] == "usable True"


def look_at_onnxruntime(tell: Teller, *, rehearse: bool) -> bool:
    """Run a small network on CUDA (in a rehearsal on the CPU), and look who ran its nodes."""
    import onnxruntime

    what = describe_runtime("onnxruntime")
    providers = onnxruntime.get_available_providers()
    tell.ok("ONNX Runtime", f"{what}: {', '.join(providers)}")
    if "CUDAExecutionProvider" not in providers and not rehearse:
        tell.not_found("ONNX Runtime on CUDA", f"{what} was built without it: install onnxruntime-gpu")
        return False
    if not rehearse:
        loaded = load_cuda_libraries()
        tell.ok(
            "CUDA's libraries from Python packages", ", ".join(path.name for path in loaded) or "none, the system's"
        )
    right = dict.fromkeys(("float32", "float16"), False)  # until it has computed
    for dtype in right:
        with tell.attempt(f"ONNX Runtime computes, {dtype}"):
            right[dtype] = _computes(tell, dtype, "CPUExecutionProvider" if rehearse else "CUDAExecutionProvider")
    if not rehearse:
        maps = Path("/proc/self/maps").read_text()
        used = sorted(
            {line.split()[-1] for line in maps.splitlines() if any(n in line for n in ("libcudnn", "libcublas"))}
        )
        tell.ok("libraries that ONNX Runtime runs on", ", ".join(used) or "none")
    return all(right.values()) and not rehearse


def _computes(tell: Teller, dtype: str, provider: str) -> bool:
    import json

    import onnxruntime

    patch = np.random.default_rng(0).standard_normal((1, 1, 32, 32, 32)).astype(np.float32)
    reference = onnxruntime.InferenceSession(_network("float32"), providers=["CPUExecutionProvider"]).run(
        None, {"x": patch}
    )[0]
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = f"/tmp/ctseg-profile-{os.getpid()}-{dtype}"  # noqa: S108 (removed below)
    settings = {"use_tf32": "0"} if provider.startswith("CUDA") else {}
    session = onnxruntime.InferenceSession(
        _network(dtype), options, providers=[(provider, settings), "CPUExecutionProvider"]
    )
    answer = session.run(None, {"x": patch.astype(dtype)})[0].astype(np.float64)
    profile = Path(session.end_profiling())
    events = [item for item in json.loads(profile.read_text()) if item.get("args", {}).get("provider")]
    profile.unlink()
    ran = Counter((item["args"]["op_name"], item["args"]["provider"]) for item in events)
    elsewhere = sorted(f"{op} on {where}" for op, where in ran if op in _HEAVY and where != provider)
    error = float(np.linalg.norm(answer - reference) / np.linalg.norm(reference))
    holds = provider in session.get_providers() and not elsewhere and error < _LARGEST_ERROR[dtype]
    nodes = ", ".join(f"{count} x {op} on {where}" for (op, where), count in sorted(ran.items()))
    tell.judge(
        f"ONNX Runtime computes on {provider}, {dtype}",
        holds,
        f"relative L2 {error:.1e}; nodes: {nodes}",
        f"no heavy node elsewhere, error under {_LARGEST_ERROR[dtype]:g}",
        relative_l2=error,
    )
    return holds


def _network(dtype: str) -> bytes:
    """Return a graph of a strided convolution, an instance normalisation and a transposed convolution."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    weights = {
        "w": rng.standard_normal((8, 1, 3, 3, 3)) * 0.2,
        "v": rng.standard_normal((8, 2, 2, 2, 2)) * 0.2,
        "scale": np.ones(8),
        "shift": np.zeros(8),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 6, strides=[2] * 3),
        helper.make_node("InstanceNormalization", ["a", "scale", "shift"], ["b"]),
        helper.make_node("LeakyRelu", ["b"], ["c"], alpha=0.01),
        helper.make_node("ConvTranspose", ["c", "v"], ["y"], strides=[2] * 3),
    ]
    graph = helper.make_graph(
        nodes,
        "proof",
        [helper.make_tensor_value_info("x", kind, ["batch", 1, 32, 32, 32])],
        [helper.make_tensor_value_info("y", kind, ["batch", 2, 32, 32, 32])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _tensorrt(tell: Teller) -> str:
    """Return the version that can compile in this environment; look at those in folders of their own, too."""
    code = (
        "from ctseg.deploy.tensorrt_plan import load_tensorrt; trt = load_tensorrt(); "
        "assert trt.Builder(trt.Logger()) is not None; print('version', trt.__version__)"
    )
    rtx = "import tensorrt_rtx_bindings as trt; print('compiles, for no server; version', trt.__version__)"
    folders = [("this environment", "")]
    apart = sorted(Path(sys.prefix).glob("tensorrt/*"))
    folders += [(f"{path.name}, in a folder of its own", str(path)) for path in apart]
    usable = ""
    for where, folder in folders:
        modules = os.pathsep.join(item for item in (folder, str(ROOT)) if item)
        done = subprocess.run(
            [sys.executable, "-c", rtx if folder.endswith("rtx") else code],
            capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": modules},
        )  # fmt: skip
        said = (done.stdout + done.stderr).strip()
        if done.returncode == 0:
            tell.ok(f"TensorRT, {where}", said)
            usable = usable or ("" if folder else said.split()[-1])
        else:
            tell.not_found(f"TensorRT, {where}", said.splitlines()[-1] if said else f"status {done.returncode}")
    return usable


def _triton(tell: Teller) -> tuple[Installation | None, tuple[str, ...]]:
    try:
        installation = find_server()
    except SetupError as error:
        tell.not_found("Triton", str(error))
        return None, ()
    shared = Path("/dev/shm")  # noqa: S108 (the folder itself is looked at)
    if shared.is_dir():
        free_mib = shutil.disk_usage(shared).free / 2**20
        what = "shared memory, for Triton's python backend and its clients"
        tell.judge(what, free_mib >= LEAST_SHM_MIB, f"{free_mib:.0f} MiB free", f"at least {LEAST_SHM_MIB} MiB")
    flags = installation.supported_flags()
    folder = installation.backends or installation.binary.parents[1] / "backends"
    backends = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()
    libraries = ", ".join(str(path) for path in installation.library_path)
    tell.ok(
        "Triton", f"{installation.source}, backends {', '.join(backends)}, {len(flags)} flags; libraries: {libraries}"
    )
    return installation, backends


def _embedded_python(tell: Teller, installation: Installation) -> None:
    """Run the Python inside the python backend's stub once: its libpython and this standard library must fit."""
    builtin = len(sys.builtin_module_names)
    tell.ok("this Python", f"{builtin} modules built in; {library_of_this_python()}", builtin_modules=builtin)
    with tell.attempt("the Python in Triton's python backend"):
        inside = ask_embedded_python(installation)
        tell.judge(
            "the Python in Triton's python backend",
            not inside.problems,
            f"{inside.version}, {inside.builtin_modules} modules built in, {inside.library}; "
            f"{'; '.join(inside.problems) or 'imports them'}",
            f"imports {', '.join(MODULES)}",
            builtin_modules=inside.builtin_modules,
        )


def _nnunet(bench: Bench, tell: Teller) -> bool:
    program = nnunet_program("nnUNetv2_predict")
    try:
        bench.run([program, "--help"], timeout_s=60)
    except CtsegError as error:
        tell.not_found("nnU-Net's commands", str(error))
        return False
    tell.ok("nnU-Net's commands", str(program))
    return True
