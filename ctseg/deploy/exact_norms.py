"""Instance normalisation whose sums are float32 sums: for runtimes that add a whole channel naively.

ONNX Runtime and OpenVINO take the mean of a channel by adding its voxels one after the other, in a few lanes. Of two
million voxels that leaves errors of up to 5e-3 in the logits, most of all in air, where all voxels are alike. Here each
mean is taken axis by axis, so that no sum has many terms. A reshape stands between two means: OpenVINO joins means that
follow each other into one, and sums naively again (decision 21).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctseg.deploy.onnx_file import is_outside, read_graph, without_weights, write_graph

_OPERATOR = "InstanceNormalization"
_MOST_TERMS = 512
"""Of one sum, where the sides of a patch allow it."""


def write_with_exact_norms(source: Path, folder: Path) -> Path:
    """Write an ONNX file with exact instance normalisation.

    Args:
        source: ONNX file; only read.
        folder: Where the new one is written, under the same name; weights that lie beside ``source`` lie there, too.

    Returns:
        The new file; ``source`` itself where nothing is to be changed.

    Raises:
        SpecError: See :func:`ctseg.deploy.onnx_file.read_graph`.
    """
    graph = read_graph(source)
    exact = with_exact_norms(graph)
    if exact is graph:
        return source
    one_file_bytes = {"one_file_bytes": 0} if any(map(is_outside, graph.graph.initializer)) else {}
    write_graph(exact, folder / source.name, **one_file_bytes)
    return folder / source.name


def with_exact_norms(graph: Any) -> Any:
    """Return a graph without ``InstanceNormalization``: the same in explicit operations, in two passes.

    Args:
        graph: ``onnx.ModelProto``; not changed.

    Returns:
        ``graph`` itself where it has none. A norm of tensors whose rank is not known stays, for the gate to judge.
    """
    import onnx

    if not any(node.op_type == _OPERATOR for node in graph.graph.node):
        return graph
    exact = onnx.ModelProto()
    exact.CopyFrom(graph)
    writer = _Writer(exact)
    nodes = list(exact.graph.node)
    del exact.graph.node[:]
    for node in nodes:
        sides = writer.sides_of(node) if node.op_type == _OPERATOR else ()
        if sides:
            writer.normalise(node, sides)
        else:
            exact.graph.node.append(node)
    return exact


class _Writer:
    """Writes nodes into a graph."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._graph = model.graph
        self._has_axes_as_input = any(
            opset.version >= 18 for opset in model.opset_import if opset.domain in ("", "ai.onnx")
        )
        inferred = onnx.shape_inference.infer_shapes(without_weights(model, of_any_place=True)[0]).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
        self._constants: set[str] = set()

    def sides_of(self, node: Any) -> Sequence[int]:
        """Return the sides of a node's input, which its output has, too; 0 is not known; empty: not even how many."""
        known = [self._shapes.get(name, []) for name in (*node.input[:1], *node.output)]
        return max(known, key=lambda shape: (len(shape), sum(size > 0 for size in shape)))[2:]

    def normalise(self, node: Any, sides: Sequence[int]) -> None:
        """Write an instance normalisation: subtract the mean, divide by the deviation, scale, shift."""
        import numpy as np

        source, scale, shift = node.input
        (target,) = node.output
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        spread = self._shape([1, -1, *[1] * len(sides)])
        mean = self._mean(source, f"{target}_mean", sides)
        centred = self._add("Sub", source, mean, name=f"{target}_centred")
        squares = self._add("Mul", centred, centred, name=f"{target}_squares")
        variance = self._mean(squares, f"{target}_variance", sides)
        kept = self._add("Add", variance, self._constant(f"ctseg_epsilon_{epsilon:g}", np.array(epsilon, np.float32)))
        deviation = self._add("Sqrt", kept)
        factor = self._add("Div", self._add("Reshape", scale, spread, name=f"{target}_scale"), deviation)
        scaled = self._add("Mul", centred, factor)
        self._add("Add", scaled, self._add("Reshape", shift, spread, name=f"{target}_shift"), name=target)

    def _mean(self, source: str, name: str, sides: Sequence[int]) -> str:
        """Write the mean over all spatial axes, one after the other; return its name, of (batch, channels, 1, …)."""
        parts = [part for side in sides for part in _parts(side)] if all(sides) else sides
        if len(parts) > len(sides):
            source = self._add("Reshape", source, self._shape([0, 0, *parts]), name=f"{name}_parts")
        for left in range(len(parts), 0, -1):
            reduced = self._reduced(source, f"{name}_{left}", axis=left + 1)
            shape = self._shape([0] * (left + 1) if left > 1 else [0, 0, *[1] * len(sides)])
            source = self._add("Reshape", reduced, shape, name=f"{name}_{left}_flat" if left > 1 else name)
        return source

    def _reduced(self, source: str, name: str, *, axis: int) -> str:
        import numpy as np

        if not self._has_axes_as_input:
            return self._add("ReduceMean", source, name=name, axes=[axis], keepdims=1)
        axes = self._constant(f"ctseg_axis_{axis}", np.array([axis], np.int64))
        return self._add("ReduceMean", source, axes, name=name, keepdims=1)

    def _add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = name or f"{inputs[0]}_{operator.lower()}"
        self._graph.node.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _shape(self, sides: Sequence[int]) -> str:
        import numpy as np

        return self._constant(f"ctseg_shape_{'_'.join(map(str, sides))}", np.array(sides, np.int64))

    def _constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def _parts(side: int) -> list[int]:
    """Return factors of a side, none above the most terms of a sum where there are such; an unknown side stays one."""
    for part in range(min(side - 1, _MOST_TERMS), 1, -1):
        if side > _MOST_TERMS and side % part == 0:
            return [*_parts(side // part), part]
    return [side]
