"""A whole chest with trained weights: both runtimes are nearer to float32 nnU-Net than stock nnU-Net is."""

from pathlib import Path

import numpy as np
import pytest

from ctseg.deploy.exact_norms import write_with_exact_norms
from ctseg.deploy.network_predictor import NetworkPredictor
from ctseg.deploy.onnx_file import write_graph
from ctseg.deploy.onnx_graph import onnx_graph_of
from ctseg.deploy.runtimes import Network, onnxruntime_network, openvino_network
from ctseg.deploy.trained_model import load_trained_model
from ctseg.files.volume import read_volume
from ctseg.predict.segmenter import segment_volume
from scripts.gpu_proof.demo_weights import write_demo_folder
from tests.support.nnunet_reference import reference_predictor, reference_segmentation

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.mark.data
@pytest.mark.full
def test_labels_of_a_whole_chest_are_nearer_to_float32_than_stock_nnunets(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = shared_data / "lung_tumour" / "pyradiomics_lung2_ct.nrrd"
    folder = write_demo_folder(REPOSITORY / "composition", tmp_path)
    reference, stock = (
        reference_segmentation(reference_predictor(folder, float32=wanted, mirroring=False), [scan])
        for wanted in (True, False)
    )
    model = load_trained_model(folder, folds=(0,))
    spec = model.spec(name="composition", mirroring="none", max_batch_size=1)
    write_graph(onnx_graph_of(model, spec), tmp_path / "model.onnx")
    (tmp_path / "exact").mkdir()
    exact = write_with_exact_norms(tmp_path / "model.onnx", tmp_path / "exact")
    networks: dict[str, Network] = {
        "ONNX Runtime": onnxruntime_network(exact),
        "OpenVINO": openvino_network(exact),
        "ONNX Runtime, fast": onnxruntime_network(tmp_path / "model.onnx"),
        "OpenVINO, fast": openvino_network(tmp_path / "model.onnx"),
    }
    volume = read_volume((scan,), spec.reader)
    differing = {"stock nnU-Net": int(np.count_nonzero(stock != reference))}
    for name, network in networks.items():
        labels = segment_volume(volume, NetworkPredictor(network, spec))
        differing[name] = int(np.count_nonzero(labels != reference))
    with capsys.disabled():
        print(
            f"\n{reference.size} voxels, {np.count_nonzero(reference)} of them labelled; others than float32 nnU-Net's:"
        )
        print("\n".join(f"  {name}: {count}" for name, count in differing.items()))
    assert reference.any()
    assert differing["ONNX Runtime"] < differing["stock nnU-Net"]
    assert differing["OpenVINO"] < differing["stock nnU-Net"]
