"""What the python backend's model does with a batch, on a real server."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from ctseg.errors import SetupError
from ctseg.serving.server import embedded_server
from ctseg.triton.configuration import config_from_text, text_from_config
from ctseg.triton.options import ClientOptions
from ctseg.triton.predictor import connect
from tests.support.toy_models import toy_logits, toy_patches, write_toy_entry

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
