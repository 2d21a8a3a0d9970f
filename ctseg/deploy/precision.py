"""Mixed FP16 written into the ONNX graph, as strongly typed compilers need it, and its faithful simulation.

ONNX Runtime on a CPU computes FP16 operators in FP32 and joins them, so an overflow goes unnoticed
there. Beside each mixed graph stands its simulation: float32 operators whose results are rounded
to FP16 wherever the mixed graph has an FP16 tensor, infinities included.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ctseg.deploy.parity_data import Array
from ctseg.errors import SpecError

KEPT_OPERATORS = frozenset(
    {
        "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization",
        "Softmax", "LogSoftmax", "Erf", "Gelu", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "CumSum",
        "GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Resize", "Range", "Einsum",
    }
)  # fmt: skip
"""Normalisation, softmax, reductions and what grows or divides: always FP32."""
HEAVY_OPERATORS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Where the time goes, and where compilers add up in FP32."""
FP16_MAX = float(np.finfo(np.float16).max)
_SAFE_SHARE = 0.25
"""Of the FP16 range; activations that come nearer to its end on real patches stay in FP32."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """A mixed network, and what stayed in FP32.

    Attributes:
        mixed: ``onnx.ModelProto`` with FP16 tensors.
        simulated: The same in float32 operators, for a CPU.
        kept_fp32: For people.
    """

    mixed: Any
    simulated: Any
    kept_fp32: str


def fp16_attempts(graph: Any, patches: Array, *, output_dtype: Literal["FP32", "FP16"] = "FP32") -> Iterator[Attempt]:
    """Yield mixed networks, the most aggressive first.

    1. All but normalisation, softmax and reductions in FP16.
    2. In addition, nodes whose values come near the end of the FP16 range on ``patches`` in FP32.
    3. Only convolutions and matrix products in FP16, without those of 2.

    Args:
        graph: FP32 ``onnx.ModelProto``.
        patches: (n, channels, *patch_size), real ones.
        output_dtype: Of the answer; the input stays FP32.

    Raises:
        SpecError: The graph has a control-flow node or a float type other than FP32.
    """
    types = _float_tensors(graph)
    names = sorted(KEPT_OPERATORS & {node.op_type for node in graph.graph.node})
    base = f"{', '.join(names) or 'nothing'}"
    convertible = {i for i, node in enumerate(graph.graph.node) if _is_convertible(node, types)}
    yield _attempt(graph, types, convertible, output_dtype, base)
    hot = _out_of_range(graph, types, convertible, patches)
    if hot:
        yield _attempt(graph, types, convertible - hot, output_dtype, f"{base}, {len(hot)} nodes with large values")
    heavy = {i for i in convertible - hot if graph.graph.node[i].op_type in HEAVY_OPERATORS}
    yield _attempt(
        graph,
        types,
        heavy,
        output_dtype,
        f"all but {len(heavy)} of {sum(node.op_type in HEAVY_OPERATORS for node in graph.graph.node)} "
        "convolutions and matrix products",
    )


def _attempt(graph: Any, types: Collection[str], fp16: Collection[int], output_dtype: str, kept: str) -> Attempt:
    return Attempt(
        mixed=_Mixer(graph, types, fp16).mixed(output_dtype),
        simulated=_Mixer(graph, types, fp16).simulated(output_dtype),
        kept_fp32=kept,
    )


def _float_tensors(graph: Any) -> set[str]:
    """Return the names of all FP32 tensors."""
    import onnx
    from onnx import TensorProto

    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({item.name: item.data_type for item in inferred.graph.initializer})
    for node in graph.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise SpecError(f"{node.op_type} {node.name}: control flow cannot be converted to FP16")
        if unknown := [name for name in node.output if name and name not in types]:
            raise SpecError(f"{node.op_type} {node.name}: the type of {unknown[0]} is unknown, FP16 needs it")
    foreign = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE} & set(types.values())
    if foreign:
        raise SpecError("the graph has float types other than FP32 already: start from the FP32 graph")
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def _is_convertible(node: Any, floats: Collection[str]) -> bool:
    if node.op_type in KEPT_OPERATORS or node.op_type in ("Cast", "CastLike", "Constant", "ConstantOfShape"):
        return False
    if node.domain not in ("", "ai.onnx"):
        return False
    return any(name in floats for name in node.output) and all(name in floats for name in node.output if name)


def _out_of_range(graph: Any, floats: Collection[str], candidates: Collection[int], patches: Array) -> set[int]:
    """Return the nodes whose results, or float inputs, come near the end of the FP16 range on patches."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    (feed,) = probe.graph.input
    constants = {item.name for item in probe.graph.initializer}
    wanted = {
        name
        for i in candidates
        for name in (*probe.graph.node[i].input, *probe.graph.node[i].output)
        if name in floats and name not in constants and name != feed.name
    }
    for name in sorted(wanted):
        probe.graph.node.append(helper.make_node("Abs", [name], [f"{name}__abs"]))
        probe.graph.node.append(helper.make_node("Flatten", [f"{name}__abs"], [f"{name}__flat"], axis=0))
        probe.graph.node.append(helper.make_node("GlobalMaxPool", [f"{name}__row"], [f"{name}__max"]))
        probe.graph.node.insert(
            len(probe.graph.node) - 1,
            helper.make_node("Unsqueeze", [f"{name}__flat", "__axis_one"], [f"{name}__row"]),
        )
        probe.graph.output.append(helper.make_tensor_value_info(f"{name}__max", TensorProto.FLOAT, [1, 1, 1]))
    probe.graph.initializer.append(helper.make_tensor("__axis_one", TensorProto.INT64, [1], [1]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [f"{name}__max" for name in sorted(wanted)]
    largest: dict[str, float] = dict.fromkeys(sorted(wanted), 0.0)
    for patch in patches:
        for name, value in zip(largest, session.run(outputs, {feed.name: patch[None]}), strict=True):
            largest[name] = max(largest[name], float(value.max()))
    limit = FP16_MAX * _SAFE_SHARE
    return {
        i
        for i in candidates
        if any(
            not largest.get(name, 0.0) <= limit for name in (*graph.graph.node[i].input, *graph.graph.node[i].output)
        )
    }


class _Mixer:
    """Writes a graph in which the chosen nodes work in FP16.

    Args:
        graph: FP32 model; not changed.
        floats: Names of its FP32 tensors.
        fp16: Numbers of the nodes that shall work in FP16.
    """

    def __init__(self, graph: Any, floats: Collection[str], fp16: Collection[int]) -> None:
        import onnx
        from onnx import numpy_helper

        self._graph = graph
        self._floats = floats
        self._constants: Mapping[str, Any] = {
            item.name: numpy_helper.to_array(item) for item in graph.graph.initializer if item.name in floats
        }
        # a constant that FP16 cannot hold keeps its node in FP32
        self._fp16 = {
            i for i in fp16 if all(self._fits(name) for name in graph.graph.node[i].input if name in self._constants)
        }
        self._new = onnx.ModelProto()
        self._new.CopyFrom(graph)
        del self._new.graph.node[:]
        del self._new.graph.value_info[:]
        self._casts: dict[tuple[str, int], str] = {}

    def _fits(self, name: str) -> bool:
        values = self._constants[name]
        return not values.size or bool(np.abs(values).max() <= FP16_MAX)

    def mixed(self, output_dtype: str) -> Any:
        """Return the graph with FP16 tensors."""
        from onnx import TensorProto

        half = {name for i in self._fp16 for name in self._graph.graph.node[i].output if name}
        (answer,) = self._new.graph.output
        rename: dict[str, str] = {}
        if (output_dtype == "FP16") != (answer.name in half):
            rename[answer.name] = f"{answer.name}__native"
        for i, old in enumerate(self._graph.graph.node):
            wanted = TensorProto.FLOAT16 if i in self._fp16 else TensorProto.FLOAT
            inputs = []
            for name in old.input:
                own = TensorProto.FLOAT16 if name in half else TensorProto.FLOAT
                if name not in self._floats or own == wanted or not self._casts_input(old, name):
                    inputs.append(rename.get(name, name))
                elif name in self._constants:
                    inputs.append(self._constant(name, self._constants[name].astype(np.float16), "__fp16"))
                else:
                    inputs.append(self._cast(rename.get(name, name), wanted))
            self._append(old, inputs, [rename.get(name, name) for name in old.output])
        answer.type.tensor_type.elem_type = TensorProto.FLOAT16 if output_dtype == "FP16" else TensorProto.FLOAT
        if answer.name in rename:
            self._append_cast(rename[answer.name], answer.name, answer.type.tensor_type.elem_type)
        return self._finished()

    def simulated(self, output_dtype: str) -> Any:
        """Return float32 operators with rounding where :meth:`mixed` has FP16 tensors."""
        half = {name for i in self._fp16 for name in self._graph.graph.node[i].output if name}
        (answer,) = self._new.graph.output
        for i, old in enumerate(self._graph.graph.node):
            inputs = []
            for name in old.input:
                if i not in self._fp16 or name not in self._floats or name in half:
                    inputs.append(name)
                elif name in self._constants:
                    with np.errstate(under="ignore"):
                        rounded = self._constants[name].astype(np.float16).astype(np.float32)
                    inputs.append(self._constant(name, rounded, "__rounded"))
                else:
                    inputs.append(self._rounded(name))
            rounds = [name in half or (name == answer.name and output_dtype == "FP16") for name in old.output]
            outputs = [f"{name}__raw" if round_ else name for name, round_ in zip(old.output, rounds, strict=True)]
            self._append(old, inputs, outputs)
            for name, round_ in zip(old.output, rounds, strict=True):
                if round_:
                    self._append_rounding(f"{name}__raw", name)
        return self._finished()

    @staticmethod
    def _casts_input(node: Any, name: str) -> bool:
        # Cast takes what it gets; everything else wants one float type
        return node.op_type != "Cast" and bool(name)

    def _append(self, old: Any, inputs: list[str], outputs: list[str]) -> None:
        node = self._new.graph.node.add()
        node.CopyFrom(old)
        del node.input[:]
        del node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)

    def _append_cast(self, source: str, target: str, kind: int) -> None:
        from onnx import helper

        self._new.graph.node.append(helper.make_node("Cast", [source], [target], name=f"{target}__cast", to=kind))

    def _cast(self, name: str, kind: int) -> str:
        if (name, kind) not in self._casts:
            self._casts[name, kind] = target = f"{name}__as_{kind}"
            self._append_cast(name, target, kind)
        return self._casts[name, kind]

    def _append_rounding(self, source: str, target: str) -> None:
        from onnx import TensorProto

        self._append_cast(source, f"{target}__half", TensorProto.FLOAT16)
        self._append_cast(f"{target}__half", target, TensorProto.FLOAT)

    def _rounded(self, name: str) -> str:
        if (name, 0) not in self._casts:
            self._casts[name, 0] = target = f"{name}__rounded"
            self._append_rounding(name, target)
        return self._casts[name, 0]

    def _constant(self, name: str, values: Any, suffix: str) -> str:
        from onnx import numpy_helper

        if (name, -1) not in self._casts:
            self._casts[name, -1] = f"{name}{suffix}"
            self._new.graph.initializer.append(numpy_helper.from_array(values, f"{name}{suffix}"))
        return self._casts[name, -1]

    def _finished(self) -> Any:
        used = {name for node in self._new.graph.node for name in node.input}
        for item in [item for item in self._new.graph.initializer if item.name not in used]:
            self._new.graph.initializer.remove(item)
        return self._new
