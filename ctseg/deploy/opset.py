"""ONNX operator set 18, which torch's exporter writes, said in the words of 17.

onnx's own version converter has no way down for ``Pad`` and the reductions, though here they mean the same.
"""

from collections.abc import Callable
from typing import Any

_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
}  # fmt: skip


def lower_to_opset_17(graph: Any) -> Any:
    """Return an opset 18 model as an opset 17 model with the same meaning.

    Args:
        graph: ``onnx.ModelProto``; not changed.

    Raises:
        ValueError: An operator has no equal in opset 17.
    """
    import onnx
    from onnx import defs, helper, numpy_helper

    lowered = onnx.ModelProto()
    lowered.CopyFrom(graph)
    constants = {item.name: item for item in lowered.graph.initializer}
    lowering: dict[str, Callable[[Any], None]] = {}

    def reduction(node: Any) -> None:
        if len(node.input) < 2 or not node.input[1]:
            return
        if node.input[1] not in constants:
            raise ValueError(f"{node.op_type} {node.name} has axes that are computed: take opset 18")
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", axes))
        for attribute in [item for item in node.attribute if item.name == "noop_with_empty_axes"]:
            node.attribute.remove(attribute)

    def pad(node: Any) -> None:
        if len(node.input) > 3 and node.input[3]:
            raise ValueError(f"Pad {node.name} names its axes: take opset 18")

    def split(node: Any) -> None:
        sized = len(node.input) > 1 and node.input[1]
        for attribute in [item for item in node.attribute if item.name == "num_outputs" and not sized]:
            # equal parts are what opset 17 gives too; unequal ones fail its checker and are refused below
            node.attribute.remove(attribute)

    lowering.update(dict.fromkeys(_REDUCTIONS, reduction))
    lowering.update({"Pad": pad, "Split": split})
    for node in lowered.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"{node.op_type} {node.name} is of domain {node.domain}: take opset 18")
        if node.op_type in lowering:
            lowering[node.op_type](node)
        elif defs.get_schema(node.op_type, 18).since_version == 18 and node.op_type not in (
            "ScatterND",
            "ScatterElements",
        ):
            # the two scatters have only gained reductions, which torch does not write
            raise ValueError(f"{node.op_type} {node.name} has no equal in opset 17: take opset 18")
    used = {name for node in lowered.graph.node for name in node.input} | {item.name for item in lowered.graph.output}
    for item in [item for item in lowered.graph.initializer if item.name not in used]:
        lowered.graph.initializer.remove(item)
    for opset in lowered.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = 17
    lowered.ir_version = min(lowered.ir_version, 8)
    return lowered
