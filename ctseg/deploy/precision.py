"""Mixed FP16 or BF16 written into the ONNX graph, as strongly typed compilers need it, and its faithful simulation.

ONNX Runtime on a CPU computes FP16 operators in FP32 and joins them, so an overflow goes unnoticed
there, and has no BF16 for them at all. Beside each mixed graph stands its simulation: float32 operators
whose results are rounded to the half type wherever the mixed graph has a half tensor, infinities included.
"""

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctseg.deploy.onnx_file import (
    MAX_ONE_FILE_BYTES,
    DataFile,
    is_outside,
    values_of,
    with_weights,
    without_weights,
    write_graph,
)
from ctseg.deploy.parity_data import Array
from ctseg.errors import SpecError
from ctseg.stages import stage

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
NOT_IN_BF16 = frozenset({"ConvTranspose"})
"""TensorRT-RTX 1.7 compiles no deconvolution in BF16; the others of a network's operators it does."""
BF16_OPSET = 22
"""The first in which ONNX's convolutions take BF16."""
_SAFE_SHARE = 0.25
"""Of the FP16 range; activations that come nearer to its end on real patches stay in FP32."""


@dataclass(frozen=True)
class HalfType:
    """A float type of 16 bits.

    Attributes:
        name: ctseg's word for it.
        kept: Operators that stay in FP32.
        largest: Its largest finite number.
    """

    name: Literal["fp16", "bf16"]
    kept: frozenset[str]
    largest: float

    @cached_property
    def onnx_type(self) -> int:
        """ONNX's number of it."""
        from onnx import TensorProto

        return int(TensorProto.FLOAT16 if self.name == "fp16" else TensorProto.BFLOAT16)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type, for BF16 that of ml_dtypes."""
        from onnx import helper

        return np.dtype(helper.tensor_dtype_to_np_dtype(self.onnx_type))

    def rounded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values in this type, each the nearest."""
        with np.errstate(under="ignore", over="ignore"):
            return values.astype(self.dtype)


FP16 = HalfType("fp16", KEPT_OPERATORS, largest=65504.0)
BF16 = HalfType("bf16", KEPT_OPERATORS | NOT_IN_BF16, largest=float.fromhex("0x1.FEp127"))


@dataclass(frozen=True, eq=False)
class Attempt:
    """A mixed network, and what stayed in FP32.

    Attributes:
        mixed: ``onnx.ModelProto`` with tensors of the half type.
        simulated: The same in float32 operators, for a CPU.
        kept_fp32: For people.
    """

    mixed: Any
    simulated: Any
    kept_fp32: str


def fp16_attempts(
    graph: Any, patches: Array, *, output_dtype: Literal["FP32", "FP16"] = "FP32", outside: Path | None = None
) -> Iterator[Attempt]:
    """Yield mixed FP16 networks, the most aggressive first.

    1. All but normalisation, softmax and reductions in FP16.
    2. In addition, nodes whose values come near the end of the FP16 range on ``patches`` in FP32.
    3. Only convolutions and matrix products in FP16, without those of 2.

    Args:
        graph: FP32 ``onnx.ModelProto``.
        patches: (n, channels, *patch_size), real ones.
        output_dtype: Of the answer; the input stays FP32.
        outside: Folder for new weights of a graph that keeps them outside; whoever gives it removes it.

    Raises:
        SpecError: The graph has a control-flow node or a float type other than FP32.
    """
    types = _float_tensors(graph)
    convertible = {i for i, node in enumerate(graph.graph.node) if _is_convertible(node, types, FP16)}
    base = _kept_names(graph, FP16)
    yield _attempt(graph, types, convertible, FP16, output_dtype, base, outside)
    hot = _out_of_range(graph, types, convertible, patches, outside)
    if hot:
        kept = f"{base}, {len(hot)} nodes with large values"
        yield _attempt(graph, types, convertible - hot, FP16, output_dtype, kept, outside)
    heavy, kept = _heavy_alone(graph, convertible - hot)
    yield _attempt(graph, types, heavy, FP16, output_dtype, kept, outside)


def bf16_attempts(graph: Any, *, outside: Path | None = None, half: HalfType = BF16) -> Iterator[Attempt]:
    """Yield mixed BF16 networks of operator set 22 or later, the most aggressive first; input and answer stay FP32.

    1. All but normalisation, softmax, reductions and transposed convolutions in BF16, whose range is FP32's.
    2. In addition, the convolutions that read the patch and that give the logits in FP32: BF16 has 8 bits, and their
       rounding errors are most of what reaches the labels.
    3. Only convolutions and matrix products in BF16, without those of 2.

    Args:
        graph: FP32 ``onnx.ModelProto``.
        outside: See :func:`fp16_attempts`.
        half: What stays in FP32.

    Raises:
        SpecError: The graph has a control-flow node or a float type other than FP32, or cannot be written in
            operator set 22.
    """
    graph = _raised_to_opset(graph, BF16_OPSET)
    types = _float_tensors(graph)
    convertible = {i for i, node in enumerate(graph.graph.node) if _is_convertible(node, types, half)}
    yield _attempt(graph, types, convertible, half, "FP32", _kept_names(graph, half), outside)
    ends = _first_and_last(graph) & convertible
    kept = f"{_kept_names(graph, half)}, the {len(ends)} first and last convolutions"
    yield _attempt(graph, types, convertible - ends, half, "FP32", kept, outside)
    heavy, kept = _heavy_alone(graph, convertible - ends)
    yield _attempt(graph, types, heavy, half, "FP32", kept, outside)


def _first_and_last(graph: Any) -> set[int]:
    """Return the convolutions and matrix products with no other one before them, and those with none behind them."""
    ends = set()
    numbered = list(enumerate(graph.graph.node))
    for nodes, read, given in ((numbered, "input", "output"), (numbered[::-1], "output", "input")):
        passed: set[str] = set()
        for i, node in nodes:
            is_heavy, is_behind = node.op_type in HEAVY_OPERATORS, not passed.isdisjoint(getattr(node, read))
            if is_heavy and not is_behind:
                ends.add(i)
            if is_heavy or is_behind:
                passed.update(name for name in getattr(node, given) if name)
    return ends


def _attempt(
    graph: Any,
    types: Collection[str],
    nodes: Collection[int],
    half: HalfType,
    output_dtype: str,
    kept: str,
    outside: Path | None,
) -> Attempt:
    if not any(map(is_outside, graph.graph.initializer)):
        mixed, simulated = (_Mixer(graph, types, nodes, half, None) for _ in range(2))
        return Attempt(mixed.mixed(output_dtype), simulated.simulated(output_dtype), kept)
    if outside is None:
        raise ValueError("the graph keeps weights outside: new ones need a folder")
    folder = Path(tempfile.mkdtemp(prefix=f"{half.name}-", dir=outside))
    with DataFile(folder / "mixed.data") as rounded, DataFile(folder / "simulated.data") as widened:
        return Attempt(
            mixed=_Mixer(graph, types, nodes, half, rounded).mixed(output_dtype),
            simulated=_Mixer(graph, types, nodes, half, widened).simulated(output_dtype),
            kept_fp32=kept,
        )


def _kept_names(graph: Any, half: HalfType) -> str:
    return ", ".join(sorted(half.kept & {node.op_type for node in graph.graph.node})) or "nothing"


def _heavy_alone(graph: Any, convertible: Collection[int]) -> tuple[set[int], str]:
    heavy = {i for i in convertible if graph.graph.node[i].op_type in HEAVY_OPERATORS}
    total = sum(node.op_type in HEAVY_OPERATORS for node in graph.graph.node)
    return heavy, f"all but {len(heavy)} of {total} convolutions and matrix products"


def _raised_to_opset(graph: Any, opset: int) -> Any:
    import onnx
    from onnx import version_converter

    if max(item.version for item in graph.opset_import if item.domain in ("", "ai.onnx")) >= opset:
        return graph
    shell, weights = without_weights(graph)
    try:
        raised = version_converter.convert_version(shell, opset)
        onnx.checker.check_model(raised, full_check=True)
    except (
        RuntimeError,
        ValueError,
        version_converter.ConvertError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise SpecError(f"the graph cannot be written in ONNX opset {opset}, which BF16 needs: {error}") from error
    return with_weights(raised, weights)


def _float_tensors(graph: Any) -> set[str]:
    """Return the names of all FP32 tensors."""
    import onnx
    from onnx import TensorProto

    inferred = onnx.shape_inference.infer_shapes(without_weights(graph)[0], strict_mode=True, data_prop=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({item.name: item.data_type for item in inferred.graph.initializer})
    for node in graph.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise SpecError(f"{node.op_type} {node.name}: control flow cannot be converted to half precision")
        if unknown := [name for name in node.output if name and name not in types]:
            raise SpecError(f"{node.op_type} {node.name}: the type of {unknown[0]} is unknown, half precision needs it")
    foreign = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE} & set(types.values())
    if foreign:
        raise SpecError("the graph has float types other than FP32 already: start from the FP32 graph")
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def _is_convertible(node: Any, floats: Collection[str], half: HalfType) -> bool:
    if node.op_type in half.kept or node.op_type in ("Cast", "CastLike", "Constant", "ConstantOfShape"):
        return False
    if node.domain not in ("", "ai.onnx"):
        return False
    return any(name in floats for name in node.output) and all(name in floats for name in node.output if name)


def _out_of_range(
    graph: Any, floats: Collection[str], candidates: Collection[int], patches: Array, outside: Path | None
) -> set[int]:
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
    with tempfile.TemporaryDirectory(prefix="ctseg-range-", dir=outside) as temporary:
        write_graph(probe, Path(temporary) / "probe.onnx", one_file_bytes=_one_file_bytes(graph))
        session = onnxruntime.InferenceSession(
            str(Path(temporary) / "probe.onnx"), options, providers=["CPUExecutionProvider"]
        )
    outputs = [f"{name}__max" for name in sorted(wanted)]
    largest: dict[str, float] = dict.fromkeys(sorted(wanted), 0.0)
    with stage("the largest values in the network", len(patches), unit="patches") as run:
        for patch in patches:
            for name, value in zip(largest, session.run(outputs, {feed.name: patch[None]}), strict=True):
                largest[name] = max(largest[name], float(value.max()))
            run.advance()
    limit = FP16.largest * _SAFE_SHARE
    return {
        i
        for i in candidates
        if any(
            not largest.get(name, 0.0) <= limit for name in (*graph.graph.node[i].input, *graph.graph.node[i].output)
        )
    }


def _one_file_bytes(graph: Any) -> int:
    """Return from how many bytes on weights go outside: those of a graph that has any there stay there."""
    return 0 if any(map(is_outside, graph.graph.initializer)) else MAX_ONE_FILE_BYTES


class _Mixer:
    """Writes a graph in which the chosen nodes work in a half type.

    Args:
        graph: FP32 model; not changed.
        floats: Names of its FP32 tensors.
        nodes: Numbers of the nodes that shall work in the half type.
        half: The half type.
        data: Takes the new weights of those that lie outside; None where none do.
    """

    def __init__(
        self, graph: Any, floats: Collection[str], nodes: Collection[int], half: HalfType, data: DataFile | None
    ) -> None:
        self._graph = graph
        self._floats = floats
        self._type = half
        self._data = data
        self._constants = {item.name: item for item in graph.graph.initializer if item.name in floats}
        # a constant that the half type cannot hold keeps its node in FP32
        large = {name for name in self._constants if not self._fits(name)}
        self._chosen = {i for i in nodes if not large.intersection(graph.graph.node[i].input)}
        self._new, self._weights = without_weights(graph)
        del self._new.graph.node[:]
        del self._new.graph.value_info[:]
        self._casts: dict[tuple[str, int], str] = {}

    def _fits(self, name: str) -> bool:
        values = values_of(self._constants[name])
        return not values.size or bool(np.abs(values).max() <= self._type.largest)

    def mixed(self, output_dtype: str) -> Any:
        """Return the graph with tensors of the half type."""
        from onnx import TensorProto

        half = {name for i in self._chosen for name in self._graph.graph.node[i].output if name}
        answer = self._new.graph.output[0]  # votes, behind it, are UINT8 in every precision
        rename: dict[str, str] = {}
        if (output_dtype != "FP32") != (answer.name in half):
            rename[answer.name] = f"{answer.name}__native"
        for i, old in enumerate(self._graph.graph.node):
            wanted = self._type.onnx_type if i in self._chosen else TensorProto.FLOAT
            inputs = []
            for name in old.input:
                own = self._type.onnx_type if name in half else TensorProto.FLOAT
                if name not in self._floats or own == wanted or not self._casts_input(old, name):
                    inputs.append(rename.get(name, name))
                elif name in self._constants:
                    inputs.append(self._constant(name, self._rounded_values(name), f"__{self._type.name}"))
                else:
                    inputs.append(self._cast(rename.get(name, name), wanted))
            self._append(old, inputs, [rename.get(name, name) for name in old.output])
        answer.type.tensor_type.elem_type = TensorProto.FLOAT if output_dtype == "FP32" else self._type.onnx_type
        if answer.name in rename:
            self._append_cast(rename[answer.name], answer.name, answer.type.tensor_type.elem_type)
        return self._finished()

    def simulated(self, output_dtype: str) -> Any:
        """Return float32 operators with rounding where :meth:`mixed` has half tensors."""
        half = {name for i in self._chosen for name in self._graph.graph.node[i].output if name}
        answer = self._new.graph.output[0]
        for i, old in enumerate(self._graph.graph.node):
            inputs = []
            for name in old.input:
                if i not in self._chosen or name not in self._floats or name in half:
                    inputs.append(name)
                elif name in self._constants:
                    inputs.append(self._constant(name, self._rounded_values(name).astype(np.float32), "__rounded"))
                else:
                    inputs.append(self._rounded(name))
            rounds = [name in half or (name == answer.name and output_dtype != "FP32") for name in old.output]
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

        self._append_cast(source, f"{target}__half", self._type.onnx_type)
        self._append_cast(f"{target}__half", target, TensorProto.FLOAT)

    def _rounded(self, name: str) -> str:
        if (name, 0) not in self._casts:
            self._casts[name, 0] = target = f"{name}__rounded"
            self._append_rounding(name, target)
        return self._casts[name, 0]

    def _rounded_values(self, name: str) -> npt.NDArray[Any]:
        return self._type.rounded(values_of(self._constants[name]))

    def _constant(self, name: str, values: npt.NDArray[Any], suffix: str) -> str:
        from onnx import numpy_helper

        if (name, -1) not in self._casts:
            self._casts[name, -1] = new = f"{name}{suffix}"
            tensor = numpy_helper.from_array(np.asarray(values), new) if self._data is None else None
            if self._data is not None:
                kind = self._type.onnx_type if values.dtype == self._type.dtype else self._constants[name].data_type
                tensor = self._data.add_values(values, new, kind)
            self._new.graph.initializer.append(tensor)
        return self._casts[name, -1]

    def _finished(self) -> Any:
        used = {name for node in self._new.graph.node for name in node.input}
        for item in [item for item in self._new.graph.initializer if item.name not in used]:
            self._new.graph.initializer.remove(item)
        return with_weights(self._new, self._weights)
