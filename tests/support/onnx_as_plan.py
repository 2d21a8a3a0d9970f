"""A stand-in for TensorRT and a GPU."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from ctseg.deploy.cuda_driver import Gpu
from ctseg.deploy.onnx_file import data_files
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.deploy.tensorrt_plan import Plan, PlanOptions, Signature


class OnnxAsPlan:
    """A compiler whose plans are the ONNX files themselves, run by ONNX Runtime: no GPU needed.

    Args:
        capability: Of the GPU.
        version: Of TensorRT.
        types: What the engine is said to be made of; None takes it from the file.
        scale: A fault: all logits are multiplied by it.
        runs: What runs in place of the plan; ONNX Runtime has no BF16 convolutions on a CPU.
    """

    def __init__(
        self,
        capability: str = "8.9",
        version: str = "11.2.1.2",
        *,
        types: Mapping[str, int] | None = None,
        scale: float = 1.0,
        runs: Path | None = None,
    ) -> None:
        self.version = version
        self.gpu = Gpu(f"Test GPU {capability}", capability, 1 << 30, "13.4")
        self.builds: list[PlanOptions] = []
        self.files: list[Path] = []
        self._types = types
        self._runs = runs
        self._scale = np.float32(scale)

    def build(self, onnx_file: Path, options: PlanOptions) -> Plan:
        self.builds.append(options)
        self.files.append(onnx_file)
        plan = onnx.load(onnx_file).SerializeToString() if data_files(onnx_file) else onnx_file.read_bytes()
        return Plan(plan, self.version, {"fp32": 3, **({half: 6} if (half := _half_of(plan)) else {})}, 1.5)

    def load(self, plan: bytes, signature: Signature) -> tuple[object, Mapping[str, int]]:
        network = onnxruntime_network(self._runs or plan, voting=signature.voting)
        half = _half_of(plan)
        types = self._types if self._types is not None else {"fp32": 2, **({half: 5} if half else {})}
        return (lambda patches: network(patches) * self._scale), types


def _half_of(plan: bytes) -> str:
    kinds = {item.data_type for item in onnx.load_from_string(plan).graph.initializer}
    halves = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    return next((name for kind, name in halves.items() if kind in kinds), "")
