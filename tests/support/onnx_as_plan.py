"""A stand-in for TensorRT and a GPU."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from ctseg.deploy.cuda_driver import Gpu
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.deploy.tensorrt_plan import Plan, PlanOptions, Signature


class OnnxAsPlan:
    """A compiler whose plans are the ONNX files themselves, run by ONNX Runtime: no GPU needed."""

    def __init__(
        self,
        capability: str = "8.9",
        version: str = "11.2.1.2",
        *,
        types: Mapping[str, int] | None = None,
        scale: float = 1.0,
    ) -> None:
        self.version = version
        self.gpu = Gpu(f"Test GPU {capability}", capability, 1 << 30, "13.4")
        self.builds: list[PlanOptions] = []
        self._types = types
        self._scale = np.float32(scale)

    def build(self, onnx_file: Path, options: PlanOptions) -> Plan:
        self.builds.append(options)
        plan = onnx_file.read_bytes()
        return Plan(plan, self.version, {"fp32": 3, **({"fp16": 6} if _is_half(plan) else {})}, 1.5)

    def load(self, plan: bytes, signature: Signature) -> tuple[object, Mapping[str, int]]:
        network = onnxruntime_network(plan)
        types = self._types if self._types is not None else {"fp32": 2, **({"fp16": 5} if _is_half(plan) else {})}
        return (lambda patches: network(patches) * self._scale), types


def _is_half(plan: bytes) -> bool:
    return any(item.data_type == onnx.TensorProto.FLOAT16 for item in onnx.load_from_string(plan).graph.initializer)
