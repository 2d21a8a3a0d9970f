"""Triton python-backend model that stands for a remote GPU: it sleeps for each window and answers fixed logits.

Copied into entries for the benchmark only. It runs in Triton's stub process and imports nothing of ctseg.
"""

import ctypes
import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_REQUEST_OUTPUT = "ctseg_request"
"""Where the id of the request stands in its answer, as in ctseg's own python backend."""


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the answer: the first label in a box amid the background."""
        config = json.loads(args["model_config"])
        self._sleep_s = float(config["parameters"]["ctseg_sleep_ms"]["string_value"]) / 1000
        (self._input,) = config["input"]
        (self._output,) = [output for output in config["output"] if output["name"] != _REQUEST_OUTPUT]
        dims = [int(size) for size in self._output["dims"]]
        self._logits = np.zeros((max(1, config["max_batch_size"]), *dims), np.float32)
        self._logits[:, 0] = 1
        box = (slice(None), *(slice(size // 4, -(size // 4) or None) for size in dims[1:]))
        self._logits[:, min(1, dims[0] - 1)][box] = 2
        self._answers: dict[int, Any] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Sleep for every window of the batch, then answer all."""
        counts = [int(np.from_dlpack(self._tensor_of(request)).shape[0]) for request in requests]
        time.sleep(self._sleep_s * sum(counts))
        return [self._response(request, count) for request, count in zip(requests, counts, strict=True)]

    def _tensor_of(self, request: Any) -> Any:
        return pb_utils.get_input_tensor_by_name(request, self._input["name"])

    def _response(self, request: Any, count: int) -> Any:
        text = request.request_id()
        number = int(text) if text.isdecimal() and len(text) < 19 else 0
        tensors = [
            self._answer(count),
            _to_triton(_REQUEST_OUTPUT, np.full((count, 1), number, np.int64)),
        ]
        return pb_utils.InferenceResponse(tensors)

    def _answer(self, count: int) -> Any:
        """Return the same tensor every time: Triton puts it into shared memory once, as a GPU would without a CPU."""
        if count not in self._answers:
            self._answers[count] = _to_triton(self._output["name"], self._logits[:count])
        return self._answers[count]


def _to_triton(name: str, array: Any) -> Any:
    # the stub of 2024 gives the capsule a name that numpy does not expect
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    ctypes.pythonapi.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
    ctypes.pythonapi.PyCapsule_SetName(capsule, b"used_dltensor")
    return tensor
