"""The network without votes beside the one with them: a runtime computes all that a graph has, asked for or not."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.deploy.parity_data import ParityData
from ctseg.deploy.runtimes import Network
from ctseg.model_spec import ModelSpec
from ctseg.serving.entries import WITHOUT_VOTES_NAME


def write_without_votes(source: Path, folder: Path, data_files: tuple[Path, ...]) -> Path:
    """Write an ONNX file that gives the logits alone, without the nodes that only votes need.

    Args:
        source: ONNX file with votes behind the logits; only read.
        folder: Where it is written, if the weights do not lie beside it already, these too.
        data_files: With the weights of ``source``, which the new file takes them from, too; none for most.
    """
    import onnx

    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    del graph.output[1:]
    needed = {graph.output[0].name}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= _inputs_of(node)
            kept.append(node)
    nodes = kept[::-1]
    initializers = [item for item in graph.initializer if item.name in needed]
    known = [item for item in graph.value_info if item.name in needed]
    for field, items in ((graph.node, nodes), (graph.initializer, initializers), (graph.value_info, known)):
        copies = [type(item).FromString(item.SerializeToString()) for item in items]
        del field[:]
        field.extend(copies)
    for file in data_files:
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)  # ONNX takes no weights from a file with several links
    (folder / WITHOUT_VOTES_NAME).write_bytes(model.SerializeToString())
    return folder / WITHOUT_VOTES_NAME


def gives_same_logits(network: Network, without: Network, spec: ModelSpec, data: ParityData) -> bool:
    """Whether two networks give the same logits of a patch, bit by bit: a runtime may fuse operations otherwise.

    Args:
        network: With votes behind the logits.
        without: The other one.
        spec: Of the first.
        data: Has the patch.
    """
    patch = np.asarray((data.random if len(data.random) else data.patches)[:1])
    return np.array_equal(network(patch)[:, : spec.num_heads], without(patch))


def _inputs_of(node: Any) -> set[str]:
    """Return the names that a node takes, those of its subgraphs too."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    inner += [graph for attribute in node.attribute for graph in attribute.graphs]
    return set(node.input).union(*(_inputs_of(item) for graph in inner for item in graph.node))
