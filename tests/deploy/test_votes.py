"""Votes of folds: the graph counts what PyTorch's folds say, in every form; the gate finds where it does not."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from ctseg.deploy.bundle import Bundle
from ctseg.deploy.export import ExportOptions, export_model
from ctseg.deploy.onnx_file import data_files
from ctseg.deploy.onnx_graph import onnx_graph_of
from ctseg.deploy.parity import check_network
from ctseg.deploy.parity_data import PreparedCase
from ctseg.deploy.runtimes import onnxruntime_network, openvino_network
from ctseg.deploy.tensorrt_plan import PlanOptions, build_plan, load_tensorrt
from ctseg.deploy.trained_model import LoadedModel, load_trained_model
from ctseg.deploy.without_votes import gives_same_logits, write_without_votes
from ctseg.model_spec import Votes
from ctseg.numerics.decide import REGION_THRESHOLD
from ctseg.numerics.votes import voted_heads
from tests.deploy.test_tensorrt_plan import installed
from tests.support.nnunet_reference import make_dataset, make_plans, make_trained_folder

LABELS = make_dataset({"background": 0, "a": 1, "b": 2})
REGIONS = make_dataset({"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, object]], LoadedModel]:
    """Three folds of the U-Net with random weights, for a data set."""

    def make(dataset: dict[str, object]) -> LoadedModel:
        folder = tmp_path_factory.mktemp("folds") / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        return load_trained_model(make_trained_folder(folder, make_plans(), dataset, folds=(0, 1, 2)))

    return make


@pytest.fixture(scope="module")
def exported(
    trained: Callable[[dict[str, object]], LoadedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[LoadedModel, Bundle]]:
    case = PreparedCase("noise", np.random.default_rng(0).standard_normal((1, 20, 40, 40)).astype(np.float32))

    def run(dataset: dict[str, object], **options: object) -> tuple[LoadedModel, Bundle]:
        model, output = trained(dataset), tmp_path_factory.mktemp("bundles") / "bundle"
        return model, export_model(model, output, ExportOptions(name="voting", **options), cases=[case])  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="module")
def labels(exported: Callable[..., tuple[LoadedModel, Bundle]]) -> tuple[LoadedModel, Bundle]:
    """A model of labels, and its bundle, FP32 and FP16, with the weights beside the graph."""
    return exported(LABELS, precisions=("fp32", "fp16"), mirroring="client", one_file_bytes=2048, accept_unproven=True)


@pytest.fixture(scope="module")
def bundle(labels: tuple[LoadedModel, Bundle]) -> Bundle:
    return labels[1]


@pytest.fixture(scope="module")
def regions(exported: Callable[..., tuple[LoadedModel, Bundle]]) -> tuple[LoadedModel, Bundle]:
    """A model of regions, mirrored in the graph."""
    return exported(REGIONS, mirroring="graph")


def votes_of(model: LoadedModel, patches: np.ndarray, flips: list[tuple[int, ...]], *, regions: bool) -> np.ndarray:
    """Return how PyTorch's folds vote, each by its own mean over flips."""
    votes = []
    with torch.inference_mode():
        x = torch.from_numpy(patches)
        for network in model.networks:
            total = sum(network(x.flip(flip)).flip(flip) if flip else network(x) for flip in flips).numpy() / len(flips)
            if regions:
                votes.append(total > REGION_THRESHOLD)
            else:
                votes.append(total.argmax(axis=1)[:, None] == np.arange(total.shape[1])[:, None, None, None])
    return np.sum(votes, axis=0)


@pytest.mark.parametrize(
    ("made", "flips"),
    [
        ("labels", [()]),
        pytest.param("regions", [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)], marks=pytest.mark.full),
    ],
    ids=["labels", "regions, mirrored in the graph"],
)
def test_graph_counts_the_votes_of_pytorchs_folds(
    request: pytest.FixtureRequest, made: str, flips: list[tuple[int, ...]]
) -> None:
    model, found = request.getfixturevalue(made)
    assert found.spec.votes == Votes(folds=3)
    assert found.spec.parity.state == "proven"
    graph = onnx.load(found.folder / "model.onnx")
    assert [item.name for item in graph.graph.output] == ["output", "votes"]
    assert [side.dim_param or side.dim_value for side in graph.graph.output[1].type.tensor_type.shape.dim] == [
        "batch", found.spec.num_heads, 16, 32, 32,
    ]  # fmt: skip
    patches = np.random.default_rng(5).standard_normal((2, 1, 16, 32, 32)).astype(np.float32)
    answer = onnxruntime_network(found.folder / "model.onnx", voting=found.spec)(patches)
    expected = votes_of(model, patches, flips, regions=found.spec.has_regions)[:, voted_heads(found.spec).start :]
    votes = answer[:, found.spec.num_heads :] * 3
    differing = (np.rint(votes) != expected).mean()
    assert differing < 1e-4, "beyond ties"
    assert (expected % 3 != 0).any(), "the folds are of one mind: that proves nothing"
    logits = onnxruntime_network(found.folder / "model.onnx")(patches)
    np.testing.assert_array_equal(answer[:, : found.spec.num_heads], logits)
    openvino = openvino_network(found.folder / "model.onnx", voting=found.spec)(patches)
    assert (np.rint(openvino[:, found.spec.num_heads :] * 3) != expected).mean() < 1e-3


def test_one_fold_and_a_model_that_shall_not_say_have_no_votes(labels: tuple[LoadedModel, Bundle]) -> None:
    model, _ = labels
    said = {"name": "voting", "mirroring": "none", "max_batch_size": 1}
    voting, silent = (model.spec(**said, votes=votes) for votes in (True, False))  # type: ignore[arg-type]
    assert voting.votes == Votes(folds=3)
    assert replace(model, networks=model.networks[:1]).spec(**said, votes=True).votes is None  # type: ignore[arg-type]
    assert silent.votes is None
    assert "votes" not in silent.to_json()
    assert silent.digest != voting.digest


@pytest.mark.full
def test_graph_of_a_model_that_shall_not_say_has_no_votes(labels: tuple[LoadedModel, Bundle]) -> None:
    model, _ = labels
    graph = onnx_graph_of(model, model.spec(name="voting", mirroring="none", max_batch_size=1, votes=False))
    assert [item.name for item in graph.graph.output] == ["output"]


def test_votes_are_uint8_in_fp16_too_and_their_graph_keeps_its_weights_outside(bundle: Bundle) -> None:
    for name in ("model.onnx", "model.fp16.onnx"):
        assert (bundle.folder / f"{name}.data").is_file()
        answer, votes = onnx.load(bundle.folder / name, load_external_data=False).graph.output
        assert (answer.type.tensor_type.elem_type, votes.type.tensor_type.elem_type) == (1, 2), name
    patches = np.random.default_rng(5).standard_normal((1, 1, 16, 32, 32)).astype(np.float32)
    full, half = (
        onnxruntime_network(bundle.folder / name, voting=bundle.spec)(patches)[:, 3:]
        for name in ("model.onnx", "model.fp16.onnx")
    )
    assert (np.rint(full * 3) != np.rint(half * 3)).mean() < 0.01


def test_graph_without_votes_has_no_node_of_theirs_and_the_same_logits_from_the_same_weights(
    bundle: Bundle, tmp_path: Path
) -> None:
    source = bundle.folder / "model.onnx"
    file = write_without_votes(source, tmp_path, data_files(source))
    whole, alone = (onnx.load(path, load_external_data=False).graph for path in (source, file))
    assert [item.name for item in alone.output] == ["output"]
    taken = {name for node in alone.node for name in node.input} | {"output"}
    assert all(taken & set(node.output) for node in alone.node), "a node is left that nobody needs"
    assert [node.output for node in whole.node if taken & set(node.output)] == [node.output for node in alone.node]
    assert len(alone.node) < len(whole.node) - 5
    assert {item.name for item in alone.initializer} == {item.name for item in whole.initializer} & taken
    assert file.stat().st_size < source.stat().st_size, "the weights are those beside it"
    networks = onnxruntime_network(source, voting=bundle.spec), onnxruntime_network(file)
    (data, *_) = bundle.parity_data()
    assert gives_same_logits(*networks, bundle.spec, data)
    assert not gives_same_logits(networks[0], lambda patches: networks[1](patches) + 1e-6, bundle.spec, data)


def _swap(graph: onnx.ModelProto) -> None:
    """Let the labels' votes change places."""
    (cast,) = [node for node in graph.graph.node if node.output[0] == "votes"]
    graph.graph.initializer.append(helper.make_tensor("order", onnx.TensorProto.INT64, [3], [0, 2, 1]))
    swapped = helper.make_node("Gather", [cast.input[0], "order"], ["swapped"], axis=1)
    cast.input[0] = "swapped"
    graph.graph.node.insert(list(graph.graph.node).index(cast), swapped)


def _forget(graph: onnx.ModelProto) -> None:
    """Leave a fold out of the count."""
    makers = {node.output[0]: node for node in graph.graph.node}
    cast = makers["votes"]
    cast.input[0] = makers[cast.input[0]].input[0]


@pytest.mark.parametrize("fault", [_swap, _forget])
def test_fault_in_the_votes_alone_is_found(bundle: Bundle, fault: Callable[[onnx.ModelProto], None]) -> None:
    graph = onnx.load(bundle.folder / "model.onnx")
    fault(graph)
    onnx.checker.check_model(graph)
    for data in bundle.parity_data():
        network = onnxruntime_network(graph.SerializeToString(), voting=bundle.spec)
        check = check_network(network, [data], bundle.spec, what="changed", precision="fp32")
        assert not check.passed, data.parity_set
        assert all("the folds vote otherwise in" in problem for problem in check.problems)


def test_tensorrt_rtx_compiles_votes(bundle: Bundle) -> None:
    sys.path.append(str(installed("rtx")))
    rtx = load_tensorrt(("tensorrt_rtx_bindings",))
    for name in ("model.onnx", "model.fp16.onnx"):
        plan = build_plan(bundle.folder / name, PlanOptions(compute_capability="SM89"), trt=rtx)
        assert len(plan.data) > 10_000
