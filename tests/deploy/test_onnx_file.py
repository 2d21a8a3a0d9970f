"""Networks of any size are written, read and digested; what a file says about other files is not trusted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctseg.deploy.onnx_file import (
    data_files,
    is_outside,
    read_graph,
    sha256_of_network,
    values_of,
    weight_bytes,
    with_weights,
    without_weights,
    write_graph,
)
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.errors import SpecError
from ctseg.files.digests import sha256_of_file

WEIGHTS = np.random.default_rng(0).standard_normal((2, 40, 40, 1, 1)).astype(np.float32)
PATCHES = np.random.default_rng(1).standard_normal((2, 40, 3, 4)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Two convolutions of 6,400 bytes each, and a shape of 32 bytes."""
    nodes = [
        helper.make_node("Conv", ["input", "a"], ["first"]),
        helper.make_node("Conv", ["first", "b"], ["second"]),
        helper.make_node("Reshape", ["second", "shape"], ["output"]),
    ]
    constants = [
        numpy_helper.from_array(WEIGHTS[0], "a"),
        numpy_helper.from_array(np.array([0, 40, 3, 4]), "shape"),
        # the other form in which a file may hold its numbers
        helper.make_tensor("b", TensorProto.FLOAT, WEIGHTS[1].shape, WEIGHTS[1].ravel().tolist()),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 40, 3, 4]) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer() -> np.ndarray:
    return onnxruntime_network(network().SerializeToString())(PATCHES)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    write_graph(network(), tmp_path / "model.onnx", one_file_bytes=1000)
    return tmp_path / "model.onnx"


def test_weights_that_one_file_cannot_hold_lie_beside_it(large: Path) -> None:
    assert {path.name for path in large.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert data_files(large) == (large.with_name("model.onnx.data"),)
    assert large.stat().st_size < 1000
    onnx.checker.check_model(str(large), full_check=True)
    for known in (onnx.load(large), read_graph(large)):
        assert known.graph.node == network().graph.node
        assert known.opset_import == network().opset_import
        values = {item.name: values_of(item) for item in known.graph.initializer}
        np.testing.assert_array_equal(values["a"], WEIGHTS[0])
        np.testing.assert_array_equal(values["b"], WEIGHTS[1])
        np.testing.assert_array_equal(values["shape"], [0, 40, 3, 4])
    np.testing.assert_array_equal(onnxruntime_network(large)(PATCHES), answer())


def test_a_network_that_one_file_holds_is_written_as_ever(tmp_path: Path) -> None:
    graph = network()
    write_graph(graph, tmp_path / "model.onnx", one_file_bytes=weight_bytes(graph) + 1)
    onnx.save(graph, tmp_path / "expected.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "expected.onnx").read_bytes()
    assert data_files(tmp_path / "model.onnx") == ()
    assert sha256_of_network(tmp_path / "model.onnx") == sha256_of_file(tmp_path / "expected.onnx")
    write_graph(graph, tmp_path / "model.onnx", one_file_bytes=weight_bytes(graph))
    assert data_files(tmp_path / "model.onnx") != ()


def test_reading_leaves_large_weights_where_they_are(large: Path) -> None:
    graph = read_graph(large)
    places = {item.name: is_outside(item) for item in graph.graph.initializer}
    assert places == {"a": True, "b": True, "shape": False}
    assert weight_bytes(graph) == 2 * WEIGHTS[0].nbytes + 32
    assert graph.ByteSize() < 1500
    a = next(item for item in graph.graph.initializer if item.name == "a")
    assert isinstance(values_of(a), np.memmap)


def test_a_graph_with_weights_outside_is_written_as_one_file_or_as_two(large: Path, tmp_path: Path) -> None:
    for name, limit, files in (("one", 10**6, 0), ("two", 0, 1)):
        path = tmp_path / f"{name}.onnx"
        write_graph(read_graph(large), path, one_file_bytes=limit)
        assert len(data_files(path)) == files
        np.testing.assert_array_equal(onnxruntime_network(path)(PATCHES), answer())
    large.with_name("two.onnx.data").touch()
    write_graph(network(), tmp_path / "two.onnx")
    assert not large.with_name("two.onnx.data").exists()  # of the file that was replaced
    with pytest.raises(ValueError, match="holds weights of the graph that would replace it"):
        write_graph(read_graph(large), large, one_file_bytes=0)
    np.testing.assert_array_equal(onnxruntime_network(large)(PATCHES), answer())


def test_tools_that_know_one_file_only_work_without_the_weights(large: Path, tmp_path: Path) -> None:
    shell, weights = without_weights(read_graph(large))
    onnx.checker.check_model(shell, full_check=True)
    assert [value.name for value in shell.graph.input] == ["input", "a", "b"]
    assert set(weights) == {"a", "b"}
    shell.graph.node[1].input[1] = "a"  # what a tool leaves unused is left out
    graph = with_weights(shell, weights)
    assert [value.name for value in graph.graph.input] == ["input"]
    assert {item.name for item in graph.graph.initializer} == {"a", "shape"}
    untouched = with_weights(*without_weights(read_graph(large)))
    write_graph(untouched, tmp_path / "again.onnx", one_file_bytes=0)
    np.testing.assert_array_equal(onnxruntime_network(tmp_path / "again.onnx")(PATCHES), answer())


def test_digest_covers_the_weights_beside_the_graph_and_not_the_names(large: Path, tmp_path: Path) -> None:
    digest = sha256_of_network(large)
    other = tmp_path / "entry"
    other.mkdir()
    shutil.copy(large, other / "renamed.onnx")
    shutil.copy(large.with_name("model.onnx.data"), other)
    assert sha256_of_network(other / "renamed.onnx") == digest
    with (other / "model.onnx.data").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    assert sha256_of_network(other / "renamed.onnx") != digest


def place(graph: onnx.ModelProto, **said: object) -> None:
    """Change what the first weight says about where it lies."""
    tensor = graph.graph.initializer[0]
    known = {entry.key: entry.value for entry in tensor.external_data} | {key: str(said[key]) for key in said}
    del tensor.external_data[:]
    for key, value in known.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "..", "../model.onnx.data", "sub/model.onnx.data", "./model.onnx.data", "", "a\\b"]
)
def test_weights_are_taken_from_the_files_own_folder_only(large: Path, location: str) -> None:
    graph = onnx.load(large, load_external_data=False)
    place(graph, location=location)
    onnx.save(graph, large)
    for read in (read_graph, data_files, sha256_of_network):
        with pytest.raises(SpecError, match=r"model.onnx: a lies in .*, expected the name of a file beside it"):
            read(large)


def test_weights_are_not_taken_through_a_link(large: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    large.with_name("model.onnx.data").rename(secret)
    large.with_name("model.onnx.data").symlink_to(secret)
    with pytest.raises(SpecError, match=r"lie in model.onnx.data, which is no file beside it"):
        read_graph(large)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"offset": -1}, "a of 6400 bytes is bytes -1 to"),
        ({"offset": 4097 + 6400}, "which has"),
        ({"length": 6396}, "a of 6400 bytes is bytes 0 to 6396"),
        ({"length": 2**63}, "it is cut off, or of another network"),
        ({"offset": "many"}, "its place in model.onnx.data, is no number"),
    ],
)
def test_places_that_cannot_be_are_refused(large: Path, said: dict[str, object], words: str) -> None:
    graph = onnx.load(large, load_external_data=False)
    place(graph, **said)
    onnx.save(graph, large)
    with pytest.raises(SpecError, match=words):
        read_graph(large)


def with_negative_sizes(tensor: onnx.TensorProto) -> None:
    tensor.dims[:2] = [-tensor.dims[0], -tensor.dims[1]]  # their product is as it was


def of_text(tensor: onnx.TensorProto) -> None:
    tensor.data_type = TensorProto.STRING


@pytest.mark.parametrize(
    ("change", "words"), [(with_negative_sizes, r"a has the shape \(-40, -40, 1, 1\)"), (of_text, "a in .* is of text")]
)
def test_weights_that_are_no_array_of_numbers_are_refused(
    large: Path, change: Callable[[onnx.TensorProto], None], words: str
) -> None:
    graph = onnx.load(large, load_external_data=False)
    change(graph.graph.initializer[0])
    onnx.save(graph, large)
    for read in (read_graph, data_files, sha256_of_network):
        with pytest.raises(SpecError, match=words):
            read(large)


def test_missing_and_short_weights_are_told(large: Path) -> None:
    data = large.with_name("model.onnx.data")
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(SpecError, match=r"b of 6400 bytes is bytes 8192 to 14592 of model.onnx.data, which has 14591"):
        read_graph(large)
    data.unlink()
    with pytest.raises(SpecError, match=r"its weights lie in model.onnx.data, which is no file beside it: copy both"):
        read_graph(large)


def in_a_constant(graph: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHTS[0], "c"))
    node.attribute[0].t.data_location = TensorProto.EXTERNAL
    graph.graph.node.append(node)


def in_a_branch(graph: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [], [numpy_helper.from_array(WEIGHTS[0], "c")])
    branch.initializer[0].data_location = TensorProto.EXTERNAL
    graph.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def sparse(form: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(WEIGHTS[0, 0].ravel(), "c")
    values.data_location = TensorProto.EXTERNAL
    return onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(np.arange(40), form), dims=[40])


def in_a_sparse_constant(graph: onnx.ModelProto) -> None:
    graph.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse("of a node")))


def in_a_sparse_list(graph: onnx.ModelProto) -> None:
    graph.graph.node.append(helper.make_node("Own", [], ["c"], domain="own", many=[sparse("one"), sparse("two")]))


def in_a_branchs_sparse_weight(graph: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [], sparse_initializer=[sparse("of a branch")])
    graph.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize(
    "change", [in_a_constant, in_a_branch, in_a_sparse_constant, in_a_sparse_list, in_a_branchs_sparse_weight]
)
def test_only_weights_may_lie_outside(tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    graph = network()
    change(graph)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(SpecError, match=r"c is no weight, and lies in another file"):
        read_graph(tmp_path / "model.onnx")


def test_what_is_no_onnx_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 100)
    for path in (tmp_path / "model.onnx", tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(SpecError, match="not an ONNX file"):
            read_graph(path)
