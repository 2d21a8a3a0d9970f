"""One ONNX file to one TensorRT plan, without a bundle: there is no spec, and no scan to prove it with."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.deploy.build_job import now
from ctseg.deploy.engine_types import require_precision
from ctseg.deploy.onnx_file import read_graph, sha256_of_network, without_weights, write_graph
from ctseg.deploy.parity import FAST_FP32, compare
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.deploy.tensorrt_plan import Compiler, PlanOptions, Signature, TensorRt, built_with
from ctseg.errors import OutputError, ParityError, SpecError
from ctseg.files import atomic
from ctseg.files.owned_folder import owned_folder
from ctseg.model_spec import Precision, Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanFileOptions:
    """How an ONNX file becomes a plan.

    Attributes:
        precision: ``fp16`` and ``bf16`` convert an FP32 graph.
        plan: How it is compiled.
        accept_unproven: Write the plan whatever the comparison says.
        server_tensorrt: TensorRT version of the server; None asks the library on this machine.
    """

    precision: Precision = "fp32"
    plan: PlanOptions = field(default_factory=PlanOptions)
    accept_unproven: bool = False
    server_tensorrt: str | None = None


def build_plan_file(
    onnx_file: Path,
    output: Path,
    options: PlanFileOptions = PlanFileOptions(),
    *,
    report: Callable[[str], None] = _log.info,
    compiler: Compiler | None = None,
) -> Path:
    """Compile an ONNX file to a TensorRT plan, without a bundle.

    There is no scan to prove it with: the plan's logits of random patches are compared with ONNX Runtime's
    of the FP32 graph. ``<output>.json`` records what the plan was built with.

    Args:
        onnx_file: An FP32 graph with one input and one output, and perhaps votes (UINT8) behind it, dynamic in the
            batch only; or an FP16 one. Weights may lie in files beside it.
        output: The plan.
        options: How.
        report: Takes lines that say how it goes.
        compiler: TensorRT and GPU; None takes this machine's.

    Returns:
        ``output``.

    Raises:
        SpecError: The file is no such graph, or TensorRT does not support it.
        SetupError: There is no GPU, no TensorRT, or not the server's.
        ParityError: The plan's logits differ too much.
        OutputError: The plan cannot be written.
    """
    precision, plan = options.precision, options.plan
    compiler = compiler or TensorRt(options.server_tensorrt)
    with owned_folder("ctseg-plan-") as temporary:
        source, signature = _typed_graph(onnx_file, precision, temporary)
        built = compiler.build(source, plan)
        network, types = compiler.load(built.data, signature)
        proofs = require_precision(types, precision, network_types=built.network_types, source=str(onnx_file))
        shape = (1, signature.channels, *signature.patch_size)
        patches = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        reference = onnxruntime_network(onnx_file)(patches)
        limits = FAST_FP32 if precision == "fp32" else None
        comparison = compare("random patches", reference, network(patches), None, precision, limits=limits)
    report(f"  random patches against {onnx_file.name}: relative L2 {comparison.relative_l2:.1e}")
    if comparison.problems and not options.accept_unproven:
        raise ParityError(
            f"{onnx_file}: {'; '.join(comparison.problems)}; the plan can be accepted all the same",
            settings=("accept_unproven",),
        )
    info = {
        **built_with(compiler, plan),
        "onnx_sha256": sha256_of_network(onnx_file),
        "precision": precision,
        "network_layers": dict(built.network_types),
        "engine_layers": dict(types),
        "precision_proven_by": proofs,
        "relative_l2_random_patches": comparison.relative_l2,
        "seconds": round(built.seconds, 1),
        "created": now(),
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for path, data in ((output, built.data), (Path(f"{output}.json"), json.dumps(info, indent=2).encode())):
            atomic.write_bytes(path, data)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error}") from error
    return output


def _typed_graph(onnx_file: Path, precision: Precision, folder: Path) -> tuple[Path, Signature]:
    """Return the graph in its precision, and what it takes and gives."""
    import onnx

    from ctseg.deploy.precision import bf16_attempts, fp16_attempts

    graph = read_graph(onnx_file)
    try:
        onnx.checker.check_model(without_weights(graph)[0])
        (feed,), (answer, *others) = graph.graph.input, graph.graph.output
        if [item.type.tensor_type.elem_type for item in others] not in ([], [onnx.TensorProto.UINT8]):
            raise ValueError(f"its further outputs are {', '.join(item.name for item in others)}, and no votes")
    except (ValueError, onnx.checker.ValidationError) as error:
        raise SpecError(f"{onnx_file}: not an ONNX file with one input and one output: {error}") from error
    source = onnx_file
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    is_fp32 = feed.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and not any(
        item.data_type in half for item in graph.graph.initializer
    )
    if precision != "fp32" and is_fp32:
        source = folder / f"{precision}.onnx"
        attempts = (
            bf16_attempts(graph, outside=folder)
            if precision == "bf16"
            else fp16_attempts(graph, np.empty((0,), np.float32), outside=folder)
        )
        write_graph(next(attempts).mixed, source)
    return source, replace(_signature(feed, answer, onnx_file), votes="".join(item.name for item in others))


def _signature(feed: Any, answer: Any, onnx_file: Path) -> Signature:
    """Return what a graph takes and gives, by its input and its output."""
    import onnx

    shapes = [[side.dim_value for side in value.type.tensor_type.shape.dim] for value in (feed, answer)]
    fed, answered = (shape[1:] for shape in shapes)
    if len(fed) not in (3, 4) or min(*fed, *answered) < 1 or fed[1:] != answered[1:]:
        raise SpecError(
            f"{onnx_file}: expected patches and logits of one size in 2-D or 3-D, dynamic in the batch only, found "
            f"shapes {shapes} (0: dynamic)"
        )
    dtypes = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}
    tensors = []
    for value in (feed, answer):
        dtype = dtypes.get(value.type.tensor_type.elem_type)
        if dtype is None:
            kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            raise SpecError(f"{onnx_file}: expected tensor {value.name} of FP32 or FP16, found {kind}")
        tensors.append(Tensor.model_validate({"name": value.name, "dtype": dtype}))
    return Signature(str(onnx_file), tensors[0], tensors[1], fed[0], answered[0], tuple(fed[1:]))
