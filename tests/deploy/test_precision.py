"""Mixed graphs are FP16 or BF16 where they say so, and their simulation sees what that does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctseg.deploy.bundle import Bundle
from ctseg.deploy.onnx_file import read_graph, values_of, write_graph
from ctseg.deploy.onnx_graph import onnx_graph_of
from ctseg.deploy.parity import case_logits_of, compare
from ctseg.deploy.parity_cases import prepare_scans
from ctseg.deploy.precision import KEPT_OPERATORS, Attempt, bf16_attempts, fp16_attempts
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.deploy.trained_model import load_trained_model
from ctseg.errors import SpecError
from scripts.gpu_proof.demo_weights import write_demo_folder


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


# --- BF16 ---------------------------------------------------------------------------------------


def bf16(value: float) -> np.float32:
    """The nearest number with 8 bits, ties to the even one: FP32 cut in the middle."""
    bits = np.float32(value).view(np.uint32)
    return np.uint32((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & 0xFFFF0000).view(
        np.float32
    )


def test_bf16_graph_is_one_that_onnx_knows_and_bf16_where_it_says_so(bundle: Bundle) -> None:
    graph = next(bf16_attempts(onnx.load(bundle.folder / "model.onnx"))).mixed
    onnx.checker.check_model(graph, full_check=True)
    assert [item.version for item in graph.opset_import] == [22]  # the first in which convolutions take BF16
    types = types_of(graph)
    kinds = {node.op_type: types[node.output[0]] for node in graph.graph.node if node.op_type != "Cast"}
    assert kinds["Conv"] == kinds["LeakyRelu"] == TensorProto.BFLOAT16
    assert kinds["InstanceNormalization"] == kinds["ConvTranspose"] == TensorProto.FLOAT
    assert types["input"] == types["output"] == TensorProto.FLOAT


def test_bf16_simulation_rounds_as_bf16_does() -> None:
    weight, value = 1.2345678, 3.0031
    (attempt,) = list(bf16_attempts(two_convolutions(weight, 1.0)))[:1]
    answer = run(attempt.simulated, np.full((1, 1, 4, 4), value, np.float32))
    assert answer[0, 0, 0, 0] == bf16(bf16(weight) * bf16(value))
    assert abs(answer[0, 0, 0, 0] - weight * value) > 1e-3
    (weights,) = [item for item in attempt.mixed.graph.initializer if item.name == "a__bf16"]
    assert numpy_helper.to_array(weights).astype(np.float32).item() == bf16(weight)


def test_what_overflows_in_fp16_does_not_in_bf16() -> None:
    patch = np.full((1, 1, 4, 4), 100.0, np.float32)
    first = next(bf16_attempts(two_convolutions(1000.0, 0.001)))
    np.testing.assert_allclose(run(first.simulated, patch), 100.0, rtol=1e-2)


def test_second_bf16_attempt_keeps_the_first_and_the_last_convolutions_in_fp32(bundle: Bundle) -> None:
    first, second, third = bf16_attempts(onnx.load(bundle.folder / "model.onnx"))
    assert "2 first and last convolutions" in second.kept_fp32
    for attempt, ends in ((first, TensorProto.BFLOAT16), (second, TensorProto.FLOAT), (third, TensorProto.FLOAT)):
        types = types_of(attempt.mixed)
        kinds = [types[node.output[0]] for node in attempt.mixed.graph.node if node.op_type == "Conv"]
        assert (kinds[0], kinds[-1]) == (ends, ends)
        assert set(kinds[1:-1]) == {TensorProto.BFLOAT16}
    activations = {node.output[0] for node in third.mixed.graph.node if node.op_type == "LeakyRelu"}
    assert {types_of(third.mixed)[name] for name in activations} == {TensorProto.FLOAT}


def test_bf16_of_a_trained_network_passes_the_gate_on_real_ct(demo_data: Path, tmp_path: Path) -> None:
    model = load_trained_model(write_demo_folder(demo_data.parents[1] / "model_repository" / "sarcoma", tmp_path))
    spec = model.spec(name="sarcoma", mirroring="none", max_batch_size=1)
    graph = onnx_graph_of(model, spec)
    (case,) = prepare_scans([demo_data / "images" / "STS_008_0000.nii.gz"], spec)
    reference = case_logits_of(case.voxels, onnxruntime_network(graph.SerializeToString()), spec)
    found = []
    for attempt in list(bf16_attempts(graph))[:2]:
        logits = case_logits_of(case.voxels, onnxruntime_network(attempt.simulated.SerializeToString()), spec)
        found.append(compare("case", reference[None], logits[None], spec, "bf16"))
    assert [item.what for item in found if item.problems] == ["case"]  # the first: 0.1 % of the tumour's edge
    assert "tumor: Dice" in found[0].problems[0]
    assert not found[1].problems
    assert 1e-4 < found[1].relative_l2 < found[0].relative_l2 < 5e-3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_outside_are_converted_as_those_inside(bundle: Bundle, tmp_path: Path, precision: str) -> None:
    graph = onnx.load(bundle.folder / "model.onnx")
    patches = np.random.default_rng(0).standard_normal((2, 1, 16, 32, 32)).astype(np.float32)
    write_graph(graph, tmp_path / "large.onnx", one_file_bytes=0)
    large = read_graph(tmp_path / "large.onnx")
    if precision == "fp16":
        inside, outside = fp16_attempts(graph, patches), fp16_attempts(large, patches, outside=tmp_path)
    else:
        inside, outside = bf16_attempts(graph), bf16_attempts(large, outside=tmp_path)
    for i, (one, other) in enumerate(zip(inside, outside, strict=True)):
        assert one.kept_fp32 == other.kept_fp32
        for made, expected in ((other.mixed, one.mixed), (other.simulated, one.simulated)):
            assert made.graph.node == expected.graph.node
            values = {item.name: values_of(item) for item in made.graph.initializer}
            assert values.keys() == {item.name for item in expected.graph.initializer}
            for item in expected.graph.initializer:
                np.testing.assert_array_equal(values[item.name], numpy_helper.to_array(item))
        write_graph(other.simulated, tmp_path / f"{i}.onnx", one_file_bytes=0)
        answer = onnxruntime_network(tmp_path / f"{i}.onnx")(patches)
        np.testing.assert_array_equal(answer, run(one.simulated, patches))
    with pytest.raises(ValueError, match="new ones need a folder"):
        next(bf16_attempts(large))
