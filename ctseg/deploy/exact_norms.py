"""Instance normalisation whose sums are float32 sums: for runtimes that add a whole channel naively.

ONNX Runtime and OpenVINO take the mean of a channel by adding its voxels one after the other, in a few lanes. Of two
million voxels that leaves errors of up to 5e-3 in the logits, most of all in air, where all voxels are alike. Here each
mean is taken axis by axis, so that no sum has more terms than the volume has voxels along an axis. A reshape stands
between two means: OpenVINO joins means that follow each other into one, and sums naively again.
"""

from typing import Any

_OPERATOR = "InstanceNormalization"


def with_exact_norms(graph: Any) -> Any:
    """Return a graph without ``InstanceNormalization``: the same in explicit operations, in two passes.

    Args:
        graph: ``onnx.ModelProto``; not changed. Inputs of two or three spatial axes, of any size.

    Returns:
        ``graph`` itself where it has none.
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
        if node.op_type == _OPERATOR:
            writer.normalise(node)
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
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        self._constants: set[str] = set()

    def normalise(self, node: Any) -> None:
        """Write an instance normalisation: subtract the mean, divide by the deviation, scale, shift."""
        import numpy as np

        source, scale, shift = node.input
        (target,) = node.output
        axes = self._ranks[source] - 2
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        spread = self._constant(f"ctseg_as_channels_{axes}", np.array([1, -1, *[1] * axes], np.int64))
        centred = self._add("Sub", source, self._mean(source, f"{target}_mean", axes), name=f"{target}_centred")
        squares = self._add("Mul", centred, centred, name=f"{target}_squares")
        variance = self._mean(squares, f"{target}_variance", axes)
        kept = self._add("Add", variance, self._constant(f"ctseg_epsilon_{epsilon:g}", np.array(epsilon, np.float32)))
        deviation = self._add("Sqrt", kept)
        factor = self._add("Div", self._add("Reshape", scale, spread, name=f"{target}_scale"), deviation)
        scaled = self._add("Mul", centred, factor)
        self._add("Add", scaled, self._add("Reshape", shift, spread, name=f"{target}_shift"), name=target)

    def _mean(self, source: str, name: str, axes: int) -> str:
        """Write the mean over all spatial axes, one after the other; return its name, of (batch, channels, 1, …)."""
        import numpy as np

        for left in range(axes, 0, -1):
            reduced = self._reduced(source, f"{name}_{left}", axis=left + 1)
            sides = [0] * (left + 1) if left > 1 else [0, 0, *[1] * axes]
            shape = self._constant(f"ctseg_sides_{'_'.join(map(str, sides))}", np.array(sides, np.int64))
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

    def _constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name
