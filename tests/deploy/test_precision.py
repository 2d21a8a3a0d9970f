"""Mixed FP16 graphs are FP16 where they say so, and their simulation sees what FP16 does."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctseg.deploy.bundle import Bundle
from ctseg.deploy.precision import KEPT_OPERATORS, Attempt, fp16_attempts
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.errors import SpecError


def types_of(graph: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def run(graph: onnx.ModelProto, patches: np.ndarray) -> np.ndarray:
    return onnxruntime_network(graph.SerializeToString())(patches)


def two_convolutions(first: float, second: float) -> onnx.ModelProto:
    """Two 1 x 1 convolutions in a row, with the given weights."""
    nodes = [
        helper.make_node("Conv", ["input", "a"], ["middle"]),
        helper.make_node("Conv", ["middle", "b"], ["output"]),
    ]
    weights = [
        numpy_helper.from_array(np.full((1, 1, 1, 1), w, np.float32), n) for w, n in ((first, "a"), (second, "b"))
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 1, 4, 4]) for n in ("input", "output")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_mixed_graph_has_fp16_convolutions_and_fp32_norms(bundle: Bundle) -> None:
    graph = onnx.load(bundle.folder / "model.fp16.onnx")
    onnx.checker.check_model(graph, full_check=True)
    types = types_of(graph)
    kinds = {node.op_type: types[node.output[0]] for node in graph.graph.node if node.op_type != "Cast"}
    assert kinds["Conv"] == TensorProto.FLOAT16
    assert kinds["ConvTranspose"] == TensorProto.FLOAT16
    assert kinds["InstanceNormalization"] == TensorProto.FLOAT
    assert types["input"] == types["output"] == TensorProto.FLOAT
    weights = [item for item in graph.graph.initializer if len(item.dims) == 5]
    assert weights
    assert all(item.data_type == TensorProto.FLOAT16 for item in weights)


def test_half_of_the_bytes_are_gone(bundle: Bundle) -> None:
    whole, half = ((bundle.folder / name).stat().st_size for name in ("model.onnx", "model.fp16.onnx"))
    assert half < 0.75 * whole  # a tiny network has much beside its weights


def test_what_was_kept_is_recorded(bundle: Bundle) -> None:
    variant = bundle.variant("fp16")
    assert variant.proven
    assert variant.kept_fp32 == "InstanceNormalization"
    assert bundle.spec_of("fp16").precision == "fp16"
    assert bundle.spec_of("fp16").parity.state == "proven"
    assert bundle.spec_of("fp16").digest != bundle.spec.digest


@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
def test_answer_can_be_fp16(bundle: Bundle, dtype: str) -> None:
    graph = onnx.load(bundle.folder / "model.onnx")
    patches = np.random.default_rng(0).standard_normal((2, 1, 16, 32, 32)).astype(np.float32)
    attempt = next(fp16_attempts(graph, patches, output_dtype=dtype))  # type: ignore[arg-type]
    for made in (attempt.mixed, attempt.simulated):
        onnx.checker.check_model(made, full_check=True)
    assert types_of(attempt.mixed)["output"] == {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16}[dtype]
    reference = run(graph, patches)
    for made in (attempt.mixed, attempt.simulated):
        error = np.linalg.norm(run(made, patches) - reference) / np.linalg.norm(reference)
        assert 1e-6 < error < 5e-3


def test_simulation_rounds_as_fp16_does() -> None:
    graph = two_convolutions(1.0, 1.0)
    (attempt,) = list(fp16_attempts(graph, np.ones((1, 1, 4, 4), np.float32)))[:1]
    patch = np.full((1, 1, 4, 4), 2049.0, np.float32)  # FP16 has 2048 and 2050 there
    assert run(attempt.simulated, patch)[0, 0, 0, 0] == 2048.0


def test_overflow_is_seen_by_the_simulation_alone() -> None:
    graph = two_convolutions(1000.0, 0.001)
    patch = np.full((1, 1, 4, 4), 100.0, np.float32)
    first = next(fp16_attempts(graph, patch))
    assert np.isinf(run(first.simulated, patch)).all()
    assert np.isfinite(run(first.mixed, patch)).all()  # a CPU joins the two, and would have let it pass


def test_next_attempt_keeps_what_overflows_in_fp32() -> None:
    graph = two_convolutions(1000.0, 0.001)
    patch = np.full((1, 1, 4, 4), 100.0, np.float32)
    attempts: list[Attempt] = list(fp16_attempts(graph, patch))
    assert "nodes with large values" in attempts[1].kept_fp32
    np.testing.assert_allclose(run(attempts[1].simulated, patch), 100.0, rtol=1e-3)


def test_weight_that_fp16_cannot_hold_keeps_its_node_in_fp32() -> None:
    graph = two_convolutions(1e5, 1e-5)
    attempt = next(fp16_attempts(graph, np.ones((1, 1, 4, 4), np.float32)))
    types = types_of(attempt.mixed)
    assert types["middle"] == TensorProto.FLOAT
    assert all(np.isfinite(numpy_helper.to_array(item)).all() for item in attempt.mixed.graph.initializer)


def test_half_typed_graph_is_refused() -> None:
    mixed = next(fp16_attempts(two_convolutions(1.0, 1.0), np.ones((1, 1, 4, 4), np.float32))).mixed
    with pytest.raises(SpecError, match=r"float types other than FP32"):
        next(fp16_attempts(mixed, np.ones((1, 1, 4, 4), np.float32)))


def test_norms_softmax_and_reductions_are_always_kept() -> None:
    for name in ("InstanceNormalization", "LayerNormalization", "Softmax", "ReduceMean", "Erf"):
        assert name in KEPT_OPERATORS
    assert not KEPT_OPERATORS & {"Conv", "ConvTranspose", "MatMul", "Gemm", "LeakyRelu", "Add", "Concat"}
