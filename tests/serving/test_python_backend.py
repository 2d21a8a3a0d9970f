"""What the python backend's model does with a batch, on a real server."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from ctseg.errors import SetupError
from ctseg.serving.entries import WITHOUT_VOTES_NAME
from ctseg.serving.server import embedded_server
from ctseg.triton.configuration import config_from_text, text_from_config
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from tests.support.toy_models import (
    WEIGHTS,
    save_toy_network,
    toy_logits,
    toy_patches,
    toy_spec,
    toy_votes,
    write_toy_entry,
)

pytestmark = pytest.mark.live


def test_a_cpu_runs_a_batch_patch_by_patch(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_toy_entry(repository)
    path = repository / "toy" / "1" / "model.onnx"
    network = onnx.load(path)
    for tensor in (*network.graph.input, *network.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1  # ONNX Runtime refuses more at once
    onnx.save(network, path)
    with (
        embedded_server(repository, ["toy"]) as server,
        connect([server.url], "toy", options=ClientOptions(headers=server.headers)) as predictor,
    ):
        patches = toy_patches(4)
        np.testing.assert_allclose(predictor.predict(patches), toy_logits(patches), rtol=1e-5, atol=1e-5)


def test_network_without_votes_runs_until_somebody_asks_for_votes(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    spec = toy_spec(votes={"folds": 3})
    other = save_toy_network(tmp_path / WITHOUT_VOTES_NAME, weights=2 * WEIGHTS)  # told apart by its logits
    write_toy_entry(repository, spec, data_files=(other,))
    patches = toy_patches(1)
    with (
        embedded_server(repository, ["toy"]) as server,
        connect([server.url], "toy", options=ClientOptions(headers=server.headers)) as predictor,
    ):
        for _ in range(2):
            np.testing.assert_allclose(predictor.predict(patches), 2 * toy_logits(patches), rtol=1e-5, atol=1e-5)
        answer = predictor.predict(patches, votes=True)
        np.testing.assert_allclose(answer[:, :3], toy_logits(patches), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(answer[:, 3:], toy_votes(patches)[:, 1:] / 3)
        after = predictor.predict(patches)
        np.testing.assert_allclose(after, toy_logits(patches), rtol=1e-5, atol=1e-5)


def test_an_entry_for_a_gpu_is_refused_by_name_where_onnx_runtime_has_none(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_toy_entry(repository, device="gpu")
    path = repository / "toy" / "config.pbtxt"
    config = config_from_text(path.read_text(), source=str(path))
    config.instance_group[0].kind = 2  # KIND_CPU: Triton itself would refuse KIND_GPU without a GPU
    path.write_text(text_from_config(config))
    with (
        pytest.raises(SetupError, match="this entry was built for a GPU, and ONNX Runtime"),
        embedded_server(repository, ["toy"]),
    ):
        pass
