"""The network as one ONNX graph: folds and, where asked for, flips averaged in it."""

import warnings
from typing import TYPE_CHECKING, Any

from ctseg.deploy.opset import lower_to_opset_17
from ctseg.deploy.trained_model import LoadedModel
from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec
from ctseg.numerics.mirroring import mirror_subsets

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = 17
EXPORTER_OPSET = 18
"""The lowest that torch's exporter writes."""
MAX_ONE_FILE_BYTES = 1_900_000_000
"""Of weights. Protobuf stops at 2 GiB, and the graph itself and folded constants need room."""
_FOLDING_LIMIT_BYTES = 1 << 20
"""Constants larger than this stay computed in the graph: Swin's attention masks would grow it fivefold."""


def served_module(model: LoadedModel, spec: ModelSpec) -> "torch.nn.Module":
    """Return the module that is exported: mean of the logits over folds, and over flips if the graph mirrors.

    The flips go through the network as one batch: eight copies of the graph would be eight times as large.
    """
    import torch

    subsets = mirror_subsets(spec.mirror_axes) if spec.mirroring == "graph" else [()]
    flips = [tuple(axis + 2 for axis in subset) for subset in subsets]

    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = torch.nn.ModuleList(model.networks)

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            stacked = (
                torch.cat([torch.flip(patches, flip) if flip else patches for flip in flips])
                if len(flips) > 1
                else patches
            )
            first, *others = self.networks
            total = first(stacked)
            for network in others:
                total = total + network(stacked)
            if len(flips) > 1:
                parts = total.chunk(len(flips))
                total = parts[0]
                for part, flip in zip(parts[1:], flips[1:], strict=True):
                    total = total + torch.flip(part, flip)
            divisor = len(self.networks) * len(flips)
            logits: torch.Tensor = total / divisor if divisor > 1 else total
            return logits

    return Served().eval()


def onnx_graph_of(model: LoadedModel, spec: ModelSpec, *, opset: int = DEFAULT_OPSET) -> Any:
    """Export the network with torch's exporter, simplified, with a dynamic batch.

    Args:
        model: The trained model.
        spec: Its contract; names the tensors, and says whether the graph mirrors.
        opset: ONNX operator set, 17 or more.

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
    example = torch.zeros((2, len(spec.channels), *spec.patch_size))
    batch = torch.export.Dim("batch", min=1, max=1024)
    try:
        with warnings.catch_warnings():
            # of torch's own internals, while it exports; a wrong graph is what the parity gate is for
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.onnx.export(
                served_module(model, spec),
                (example,),
                input_names=[spec.input.name],
                output_names=[spec.output.name],
                dynamo=True,
                dynamic_shapes=({0: batch},),
                opset_version=max(opset, EXPORTER_OPSET),
                verbose=False,
            )
        graph = None if program is None else program.model_proto
        graph = onnxslim.slim(graph, size_threshold=_FOLDING_LIMIT_BYTES)
        if opset == DEFAULT_OPSET:
            graph = lower_to_opset_17(graph)
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
    for value in graph.graph.input[0], graph.graph.output[0]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return graph


def check_size(model: LoadedModel, spec: ModelSpec) -> None:
    """Refuse, before the minutes that an export takes, weights that one ONNX file cannot hold.

    Raises:
        SpecError: They are too large together.
    """
    # a state dict names nnU-Net's weights several times, `parameters` each once
    weights = sum(item.numel() * item.element_size() for network in model.networks for item in network.parameters())
    if weights >= MAX_ONE_FILE_BYTES:
        raise SpecError(
            f"{spec.name}: the weights of {len(model.networks)} folds have {weights / 1e9:.2f} GB, one ONNX file holds "
            f"{MAX_ONE_FILE_BYTES / 1e9:.1f}: export fewer folds, or a network with fewer features",
            settings=("folds",),
        )
