"""Triton python-backend model: runs the ``model.onnx`` beside it with ONNX Runtime or OpenVINO.

ONNX Runtime computes all that a graph has, whatever is asked for: where a ``model.without_votes.onnx`` is there, it
runs until somebody asks for votes.

This file is copied into a model repository entry and runs in Triton's stub process, so it imports
nothing of ctseg. The entry's ``parameters`` say how to run:

* ``ctseg_runtime.<version>``: ``onnxruntime`` or ``openvino``;
* ``ctseg_precision_hint.<version>``: OpenVINO's inference precision (``f32``, ``bf16``); absent means f32;
* ``ctseg_device.<version>``: ``gpu`` for ONNX Runtime on CUDA; absent means the CPU, on which it was proven;
* ``ctseg_threads``: threads of one instance; 0 or absent shares the CPUs among the instances.

Tensors cross the process border by DLPack only: ``as_numpy()`` of the stub in Triton 24.10 gives empty
tensors with numpy 2, and says nothing.
"""

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]
Network = Callable[[Array, "dict[str, Array]"], None]
"""Takes patches, and fills arrays by the names of the outputs that are wanted."""

_REQUEST_OUTPUT = "ctseg_request"
"""Where the id of the request stands in its answer, if the configuration has such an output."""

_WITHOUT_VOTES = "model.without_votes.onnx"

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "TYPE_FP32": np.dtype(np.float32),
    "TYPE_FP16": np.dtype(np.float16),
    "TYPE_UINT8": np.dtype(np.uint8),
}


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _onnxruntime_network(path: Path, threads: int, gpu: int | None) -> Network:
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # nothing leaves this machine unasked
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # planned ahead, a Swin UNETR's buffers take more memory and no less time
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu is not None:  # TF32 rounds factors to 10 bits: not what was proven
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": str(gpu), "use_tf32": "0"}))
    whole, alone = path, path.with_name(_WITHOUT_VOTES)
    loaded: dict[Path, Any] = {}

    def session_of(path: Path) -> Any:
        """Load a graph in place of the other one: the weights are never there twice."""
        if path not in loaded:
            loaded.clear()
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            session.disable_fallback()  # what fails is told, never run by another provider than was proven
            loaded[path] = session
        return loaded[path]

    session = session_of(alone if alone.is_file() else whole)
    if gpu is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise pb_utils.TritonModelException(
            f"this entry was built for a GPU, and ONNX Runtime {onnxruntime.__version__} cannot use GPU {gpu} (it has "
            f"{onnxruntime.get_available_providers()}): install onnxruntime-gpu for this CUDA, with cuDNN 9, in the "
            "Python of the server, or build the entry for the CPU"
        )
    (name,) = [tensor.name for tensor in session.get_inputs()]
    del session

    def run(patches: Array, wanted: "dict[str, Array]") -> None:
        session = session_of(whole if len(wanted) > 1 else next(iter(loaded), whole))
        binding = session.io_binding()  # spares a copy of the logits
        binding.bind_cpu_input(name, patches)
        for output, array in wanted.items():
            binding.bind_output(output, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)

    return run


def _gpu_of(args: dict[str, str]) -> int:
    """Return the GPU of this instance: Triton's choice, else the first."""
    return int(args["model_instance_device_id"]) if args.get("model_instance_kind") == "GPU" else 0


def _openvino_network(path: Path, output: str, threads: int, precision_hint: str) -> Network:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision_hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: dict[tuple[str, ...], Any] = {}

    def request_for(outputs: tuple[str, ...]) -> Any:
        """Return what answers with these outputs alone; votes are counted by a network that is compiled when asked."""
        if outputs not in compiled:
            model = core.read_model(str(path))
            for result in [item for item in model.get_results() if not item.output(0).get_names() & {*outputs}]:
                model.remove_result(result)
            compiled[outputs] = core.compile_model(model, "CPU", settings).create_infer_request()
        return compiled[outputs]

    request_for((output,))

    def run(patches: Array, wanted: "dict[str, Array]") -> None:
        request = request_for(tuple(wanted))
        request.infer([patches], share_inputs=True)
        for output, array in wanted.items():
            answer = request.get_tensor(output).data
            if answer.shape != array.shape or answer.dtype != array.dtype:
                raise ValueError(
                    f"the network gave {answer.dtype} {answer.shape}, the configuration says {array.dtype} "
                    f"{array.shape}"
                )
            array[:] = answer

    return run


def _one_by_one(run: Network) -> Network:
    """Run patch by patch: on a CPU a batch of four takes four times as long as one, and up to four times its memory."""

    def run_all(patches: Array, wanted: "dict[str, Array]") -> None:
        for index in range(len(patches)):
            part = slice(index, index + 1)
            run(patches[part], {name: array[part] for name, array in wanted.items()})

    return run_all


def _to_triton(name: str, array: Array) -> Any:
    """Hand an array to Triton; the stub of 24.10 gives the capsule a name that numpy does not expect."""
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    ctypes.pythonapi.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
    ctypes.pythonapi.PyCapsule_SetName(capsule, b"used_dltensor")
    return tensor


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network; called once, with Triton's own description of the entry."""
        config = json.loads(args["model_config"])
        version = args["model_version"]
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        (self._input,) = config["input"]
        self._outputs = [output for output in config["output"] if output["name"] != _REQUEST_OUTPUT]
        self._names_requests = len(config["output"]) > len(self._outputs)
        instances = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
        threads = int(parameters.get("ctseg_threads", "0")) or max(1, _available_cpus() // instances)
        path = Path(args["model_repository"]) / version / "model.onnx"
        runtime = parameters.get(f"ctseg_runtime.{version}", "onnxruntime")
        self._joins = parameters.get(f"ctseg_device.{version}", "cpu") == "gpu"
        if runtime == "onnxruntime":
            gpu = _gpu_of(args) if self._joins else None
            run = _onnxruntime_network(path, threads, gpu)
        elif runtime == "openvino":
            hint = parameters.get(f"ctseg_precision_hint.{version}", "f32")
            run = _openvino_network(path, self._outputs[0]["name"], threads, hint)
        else:
            raise pb_utils.TritonModelException(f"runtime {runtime!r} is neither onnxruntime nor openvino")
        self._run = run if self._joins else _one_by_one(run)
        pb_utils.Logger.log_info(
            f"{args['model_name']} version {version}: {runtime}, {threads} threads, on the "
            f"{'GPU' if self._joins else 'CPU'}, numpy {np.__version__}"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of one dynamic batch: joined on a GPU, but alone where the joined run fails."""
        try:
            if self._joins and len(requests) > 1:
                return self._answers(requests)
        except Exception as error:
            pb_utils.Logger.log_warn(f"a batch of {len(requests)} requests failed, they run one by one: {error}")
        return [self._answer_alone(request) for request in requests]

    def _array_of(self, request: Any) -> Array:
        tensor = pb_utils.get_input_tensor_by_name(request, self._input["name"])
        array: Array = np.from_dlpack(tensor)
        expected = (_NUMPY_TYPES[self._input["data_type"]], tuple(int(size) for size in self._input["dims"]))
        if (array.dtype, array.shape[1:]) != expected:
            raise ValueError(
                f"expected {expected[0]} patches of shape {expected[1]}, found {array.dtype} {array.shape}"
            )
        return array

    def _answers(self, requests: list[Any]) -> list[Any]:
        arrays = [self._array_of(request) for request in requests]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        asked = [set(request.requested_output_names()) for request in requests]
        # logits always; votes, behind them, where somebody asks for them
        outputs = [self._outputs[0], *(output for output in self._outputs[1:] if output["name"] in set().union(*asked))]
        answers = {
            output["name"]: np.empty(
                (len(joined), *(int(size) for size in output["dims"])), dtype=_NUMPY_TYPES[output["data_type"]]
            )
            for output in outputs
        }
        self._run(joined, answers)
        ends = np.cumsum([len(array) for array in arrays])
        return [
            pb_utils.InferenceResponse(
                [
                    *(
                        _to_triton(name, answer[end - len(array) : end])
                        for name, answer in answers.items()
                        if name in names
                    ),
                    *self._name_of(request, len(array)),
                ]
            )
            for request, array, names, end in zip(requests, arrays, asked, ends, strict=True)
        ]

    def _name_of(self, request: Any, batch: int) -> list[Any]:
        """Return the output that says which request is answered: 0 where its id is no number."""
        if not self._names_requests:
            return []
        text = request.request_id()
        number = int(text) if text.isdecimal() and len(text) < 19 else 0
        return [_to_triton(_REQUEST_OUTPUT, np.full((batch, 1), number, np.int64))]

    def _answer_alone(self, request: Any) -> Any:
        try:
            (response,) = self._answers([request])
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))
        return response
