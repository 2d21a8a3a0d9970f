"""The network as one ONNX graph: folds and, where asked for, flips averaged in it, and the folds' votes counted."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctseg.deploy.onnx_file import read_graph, with_weights, without_weights
from ctseg.deploy.opset import lower_to_opset_17
from ctseg.deploy.trained_model import LoadedModel
from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.numerics.decide import REGION_THRESHOLD
from ctseg.numerics.mirroring import mirror_subsets
from ctseg.stages import stage

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = 17
EXPORTER_OPSET = 18
"""The lowest that torch's exporter writes."""
_FOLDING_LIMIT_BYTES = 1 << 20
"""Constants larger than this stay computed in the graph: Swin's attention masks would grow it fivefold."""


def served_module(model: LoadedModel, spec: ModelSpec) -> "torch.nn.Module":
    """Return the module that is exported: mean of the logits over folds, and over flips if the graph mirrors.

    The flips go through the network as one batch: eight copies of the graph would be eight times as large. Where the
    spec has votes, they are its second answer: each fold's by its own logits, averaged over its own flips.
    """
    import torch

    subsets = mirror_subsets(spec.mirror_axes) if spec.mirroring == "graph" else [()]
    flips = [tuple(axis + 2 for axis in subset) for subset in subsets]
    threshold = float(REGION_THRESHOLD)

    def summed(logits: torch.Tensor) -> torch.Tensor:
        """Sum over flips, each turned back."""
        parts = logits.chunk(len(flips)) if len(flips) > 1 else (logits,)
        total = parts[0]
        for part, flip in zip(parts[1:], flips[1:], strict=True):
            total = total + torch.flip(part, flip)
        return total

    def given(logits: torch.Tensor) -> torch.Tensor:
        """Return 1 for each head that a fold gives the voxel to, and 0 for the others."""
        if spec.has_regions:
            return (logits > threshold).float()
        heads = torch.arange(spec.num_heads).reshape(1, -1, *(1 for _ in spec.patch_size))
        return (torch.argmax(logits, dim=1, keepdim=True) == heads).float()

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = torch.nn.ModuleList(model.networks)

        def forward(self, patches: torch.Tensor) -> "torch.Tensor | tuple[torch.Tensor, torch.Tensor]":
            stacked = (
                torch.cat([torch.flip(patches, flip) if flip else patches for flip in flips])
                if len(flips) > 1
                else patches
            )
            if spec.votes is not None:
                return self._with_votes(stacked)
            first, *others = self.networks
            total = first(stacked)
            for network in others:
                total = total + network(stacked)
            total = summed(total)
            divisor = len(self.networks) * len(flips)
            logits: torch.Tensor = total / divisor if divisor > 1 else total
            return logits

        def _with_votes(self, stacked: torch.Tensor) -> "tuple[torch.Tensor, torch.Tensor]":
            first, *others = self.networks
            total = summed(first(stacked))
            votes = given(total / len(flips))
            for network in others:
                of_fold = summed(network(stacked))
                total = total + of_fold
                votes = votes + given(of_fold / len(flips))
            # counted as floats, and cast once: TensorRT has UINT8 for what goes in and out alone
            return total / (len(self.networks) * len(flips)), votes.to(torch.uint8)

    return Served().eval()


def onnx_graph_of(
    model: LoadedModel, spec: ModelSpec, *, opset: int = DEFAULT_OPSET, outside: Path | None = None
) -> Any:
    """Export the network with torch's exporter, simplified, with a dynamic batch.

    Args:
        model: The trained model.
        spec: Its contract; names the tensors, and says whether the graph mirrors.
        opset: ONNX operator set, 17 or more.
        outside: Empty folder for the weights of a network that is too large for one file: they stay there, see
            :mod:`ctseg.deploy.onnx_file`, and what could be computed from them beforehand is not. None keeps them
            in the graph.

    Returns:
        ``onnx.ModelProto`` that ONNX's checker accepts.

    Raises:
        SpecError: torch cannot export the network, or not with this operator set.
    """
    import onnx
    import onnxslim
    import torch

    if opset < DEFAULT_OPSET:
        raise SpecError(f"{spec.name}: opset {opset} has no LayerNormalization; take {DEFAULT_OPSET} or more")
    weights: dict[str, Any] = {}
    try:
        with stage("torch exports the network"):
            program = _exported(served_module(model, spec), spec, max(opset, EXPORTER_OPSET))
        if outside is None:
            graph = program.model_proto
        else:
            program.save(outside / "exported.onnx", external_data=True)
            graph, weights = without_weights(read_graph(outside / "exported.onnx"))
        with stage("the graph is simplified"):
            graph = onnxslim.slim(graph, size_threshold=_FOLDING_LIMIT_BYTES)
        if opset == DEFAULT_OPSET:
            graph = lower_to_opset_17(graph)
        with stage("ONNX checks the graph"):
            onnx.checker.check_model(graph, full_check=True)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        torch.onnx.OnnxExporterError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise SpecError(f"{spec.name}: the network cannot be exported to ONNX opset {opset}: {error}") from error
    for value in graph.graph.input[0], *graph.graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    if spec.mirroring == "graph":
        # torch notes the example's batch in these shapes, and ONNX Runtime believes them where an answer is bound
        del graph.graph.value_info[:]
    return with_weights(graph, weights) if weights else graph


def _exported(module: "torch.nn.Module", spec: ModelSpec, opset: int) -> Any:
    """Return torch's own form of the exported network."""
    import torch

    example = torch.zeros((2, spec.num_input_channels, *spec.patch_size))
    batch = torch.export.Dim("batch", min=1, max=1024)
    with warnings.catch_warnings():
        # of torch's own internals, while it exports; a wrong graph is what the parity gate is for
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[spec.input.name],
            output_names=[spec.output.name, *([spec.votes.name] if spec.votes else [])],
            dynamo=True,
            dynamic_shapes=({0: batch},),
            opset_version=opset,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch gave no graph")
    return program


def weight_bytes_of(model: LoadedModel) -> int:
    """Return how many bytes the weights of all folds have in a graph."""
    # a state dict names nnU-Net's weights several times, `parameters` each once
    return sum(item.numel() * item.element_size() for network in model.networks for item in network.parameters())
