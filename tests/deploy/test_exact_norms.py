"""Exact instance normalisation equals float64 in both CPU runtimes, where their own does not."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctseg.deploy.exact_norms import with_exact_norms, write_with_exact_norms
from ctseg.deploy.onnx_file import data_files, write_graph
from ctseg.deploy.runtimes import onnxruntime_network, openvino_network

SHAPES = {"3d": (2, 64, 96, 96), "2d": (2, 512, 640), "groups": (2, 500_000)}
"""The last is how exporters write a group normalisation: all voxels of a group along one axis."""


def norm_graph(shape: tuple[int, ...], *, opset: int = 17, epsilon: float = 1e-5) -> onnx.ModelProto:
    channels = shape[0]
    weights = [
        numpy_helper.from_array(np.linspace(0.5, 2, channels, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.linspace(-1, 1, channels, dtype=np.float32), "shift"),
    ]
    node = helper.make_node("InstanceNormalization", ["x", "scale", "shift"], ["y"], name="norm", epsilon=epsilon)
    before = helper.make_node("Identity", ["input"], ["x"], name="before")
    after = helper.make_node("Relu", ["y"], ["output"], name="after")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name in ("input", "output")]
    graph = helper.make_graph([before, node, after], "norm", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def air(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Nearly all voxels alike, as in a window outside the body: that is where naive sums are worst."""
    rng = np.random.default_rng(0)
    voxels = np.full((2, *shape), -1.0) + 1e-3 * rng.standard_normal((2, *shape))
    voxels[..., : shape[-1] // 8] += rng.standard_normal(voxels[..., : shape[-1] // 8].shape)
    return voxels.astype(np.float32)


def in_float64(voxels: npt.NDArray[np.float32], *, epsilon: float = 1e-5) -> npt.NDArray[np.float64]:
    x = voxels.astype(np.float64)
    axes = tuple(range(2, x.ndim))
    spread = (1, -1, *(1 for _ in axes))
    normed = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    channels = x.shape[1]
    scaled = normed * np.linspace(0.5, 2, channels).reshape(spread) + np.linspace(-1, 1, channels).reshape(spread)
    return np.maximum(scaled, 0)


def relative_l2(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("runtime", [onnxruntime_network, openvino_network])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("opset", [17, 20])
def test_a_norm_of_air_is_exact_in_both_runtimes(tmp_path: Path, kind: str, opset: int, runtime) -> None:
    voxels = air(SHAPES[kind])
    graph = norm_graph(SHAPES[kind], opset=opset)
    for name, written in (("stock", graph), ("exact", with_exact_norms(graph))):
        onnx.checker.check_model(written, full_check=True)
        write_graph(written, tmp_path / f"{name}.onnx")
    errors = {
        name: relative_l2(runtime(tmp_path / f"{name}.onnx")(voxels), in_float64(voxels)) for name in ("stock", "exact")
    }
    assert errors["exact"] < 1e-6  # float32 holds seven digits
    assert errors["stock"] > 2 * errors["exact"], errors


def test_epsilon_scale_and_shift_are_those_of_the_graph() -> None:
    voxels = np.random.default_rng(1).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    graph = with_exact_norms(norm_graph((3, 4, 5, 6), epsilon=0.25))
    assert {node.op_type for node in graph.graph.node}.isdisjoint({"InstanceNormalization"})
    found = onnxruntime_network(graph.SerializeToString())(voxels)
    np.testing.assert_allclose(found, in_float64(voxels, epsilon=0.25), rtol=1e-5, atol=1e-6)


def test_a_norm_whose_sides_are_not_known_is_right(tmp_path: Path) -> None:
    voxels = air((2, 6, 40, 600))
    norm = norm_graph((2, 6, 40, 600))
    for value in (*norm.graph.input, *norm.graph.output):
        value.type.tensor_type.shape.dim[3].dim_param = "rows"
    unranked = norm_graph((2, 6, 40, 600))
    unranked.graph.node[0].op_type, unranked.graph.node[0].domain = "Gelu", "com.microsoft"
    unranked.opset_import.append(helper.make_opsetid("com.microsoft", 1))  # of whose shapes ONNX knows nothing
    unranked.graph.node[-1].op_type, unranked.graph.node[-1].domain = "Gelu", "com.microsoft"
    for graph in (norm, unranked):
        write_graph(graph, tmp_path / "stock.onnx")
        write_graph(with_exact_norms(graph), tmp_path / "exact.onnx")
        stock, exact = (onnxruntime_network(tmp_path / f"{name}.onnx")(voxels) for name in ("stock", "exact"))
        np.testing.assert_allclose(exact, stock, atol=1e-3)


def test_no_sum_has_more_terms_than_a_side_or_512() -> None:
    graph = with_exact_norms(norm_graph((2, 500_000)))
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in inferred.graph.value_info
    }
    means = [node for node in graph.graph.node if node.op_type == "ReduceMean"]
    assert len(means) == 2 * 3  # 500,000 = 2 · 500 · 500, for the mean and for the variance
    for node in means:
        (axis,) = next(item.ints for item in node.attribute if item.name == "axes")
        assert 1 < shapes[node.input[0]][axis] <= 512


def test_a_graph_without_norms_is_taken_as_it_is(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], "relu", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert with_exact_norms(model) is model
    write_graph(model, tmp_path / "model.onnx")
    assert write_with_exact_norms(tmp_path / "model.onnx", tmp_path / "elsewhere") == tmp_path / "model.onnx"


def test_weights_that_lie_outside_stay_outside(tmp_path: Path) -> None:
    shape = (512, 4, 4, 4)
    source, folder = tmp_path / "model.onnx", tmp_path / "exact"
    folder.mkdir()
    write_graph(norm_graph(shape), source, one_file_bytes=1)
    assert [file.name for file in data_files(source)] == ["model.onnx.data"]
    written = write_with_exact_norms(source, folder)
    assert [file.parent for file in data_files(written)] == [folder]
    voxels = np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)
    np.testing.assert_allclose(onnxruntime_network(written)(voxels), in_float64(voxels), rtol=1e-5, atol=1e-6)
