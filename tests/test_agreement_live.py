"""The agreement of folds through a real server is what NumPy makes of PyTorch's folds, one after the other.

nnU-Net's networks, preprocessing, windows and flips; the votes and the formula are written apart here.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from ctseg.cli.main import main as ctseg
from ctseg.numerics.decide import REGION_THRESHOLD
from ctseg.predict.report import Report
from ctseg.serving.entries import WITHOUT_VOTES_NAME
from ctseg.serving.process import ServerOptions
from ctseg.serving.server import embedded_server
from tests.support.nnunet_plans import make_dataset, make_plans
from tests.support.nnunet_reference import make_trained_folder, reference_predictor

pytestmark = pytest.mark.live

FOLDS = (0, 1)
MODELS = {
    "labels": (make_dataset({"background": 0, "a": 1, "b": 2}), "client", "onnxruntime"),
    "regions": (
        make_dataset({"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2]),
        "graph",
        "openvino",
    ),
}


@pytest.fixture(scope="module", params=["labels", pytest.param("regions", marks=pytest.mark.full)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ct_piece: Path):
    """A trained folder, and a server with its entry."""
    name = request.param
    dataset, mirroring, runtime = MODELS[name]
    root = tmp_path_factory.mktemp("served")
    make_trained_folder(root / name, make_plans(spacing=(4.0, 3.0, 3.0)), dataset, folds=FOLDS, mirror_axes=(0, 2))
    words = ["export", "-i", root / name, "-o", root / f"{name}_bundle", "--name", name, "--cases", ct_piece]
    assert ctseg([str(word) for word in [*words, "--tta", mirroring]]) == 0
    words = [
        "build",
        root / f"{name}_bundle",
        "--repository",
        root / "repository",
        "--backend",
        "python",
        "--runtime",
        runtime,
    ]
    assert ctseg([str(word) for word in words]) == 0
    without_votes = root / "repository" / name / "1" / WITHOUT_VOTES_NAME
    assert without_votes.is_file() == (runtime == "onnxruntime")
    with embedded_server(root / "repository", options=ServerOptions(is_private=False)) as server:
        yield root, server.url, name


def expected_agreement(folder: Path, scan: Path, *, flips_vote: bool) -> dict[str, float]:
    """Compute the agreement in the plainest way.

    Args:
        folder: The trained folder.
        scan: The scan.
        flips_vote: Whether each flip has a vote of its own (mirroring in the client), or a fold's mean over them one.
    """
    predictor = reference_predictor(folder, folds=FOLDS)
    manager, configuration = predictor.plans_manager, predictor.configuration_manager
    preprocessor: Any = configuration.preprocessor_class(verbose=False)
    data, _, _ = preprocessor.run_case([str(scan)], None, manager, configuration, predictor.dataset_json)
    patch = tuple(configuration.patch_size)
    padded, inside = pad_nd_image(torch.as_tensor(data).float(), patch, "constant", {"value": 0}, True, None)
    regions = predictor.label_manager.has_regions
    heads = predictor.label_manager.num_segmentation_heads
    weights = compute_gaussian(
        patch, sigma_scale=1 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
    ).numpy()
    logits, votes = np.zeros((2, heads, *padded.shape[1:]))
    total = np.zeros(padded.shape[1:])
    choices = [
        [axis for axis, taken in zip((2, 4), taken_, strict=True) if taken] for taken_ in product((0, 1), repeat=2)
    ]

    def vote(answer: np.ndarray) -> np.ndarray:
        if regions:
            return answer > REGION_THRESHOLD
        return answer.argmax(axis=0) == np.arange(heads)[:, None, None, None]

    networks = []
    for parameters in predictor.list_of_parameters:
        predictor.network.load_state_dict(parameters)
        networks.append({key: value.clone() for key, value in predictor.network.state_dict().items()})
    for slicer in predictor._internal_get_sliding_window_slicers(padded.shape[1:]):
        window = padded[slicer][None]
        for state in networks:
            predictor.network.load_state_dict(state)
            predictor.network.eval()
            with torch.inference_mode():
                flipped = [predictor.network(window.flip(axes)).flip(axes)[0].numpy() for axes in choices]
            mean = np.mean(flipped, axis=0)
            share = np.mean([vote(item) for item in flipped], axis=0) if flips_vote else vote(mean)
            logits[slicer] += mean * weights / len(FOLDS)
            votes[slicer] += share * weights / len(FOLDS)
        total[slicer[1:]] += weights
    logits, votes = (array[(slice(None), *inside[1:])] / total[inside[1:]] for array in (logits, votes))
    if regions:
        names = {"whole": 0, "core": 1}
        masks = logits > REGION_THRESHOLD
    else:
        names = {"a": 1, "b": 2}
        masks = logits.argmax(axis=0) == np.arange(heads)[:, None, None, None]
    return {
        name: 2 * votes[head][masks[head]].sum() / (votes[head].sum() + masks[head].sum())
        for name, head in names.items()
        if votes[head].any()
    }


def predicted(root: Path, url: str, output: Path, name: str, scan: Path, *words: str) -> dict[str, float]:
    """Return the agreement that ``ctseg predict`` reports."""
    arguments = ["predict", "-i", str(scan), "-o", str(output), "-m", name, "--url", url, *words]
    assert ctseg(arguments) == 0
    (case,) = Report.model_validate_json((output / "report.json").read_bytes()).cases
    return dict(case.agreement)


def test_agreement_through_a_live_server_is_that_of_pytorchs_folds(served, ct_piece, tmp_path) -> None:
    root, url, name = served
    expected = expected_agreement(root / name, ct_piece, flips_vote=MODELS[name][1] == "client")
    assert any(0.05 < value < 0.98 for value in expected.values()), f"folds of one mind prove nothing: {expected}"
    by_windows = predicted(root, url, tmp_path / "windows", name, ct_piece, "--where", "client", "--agreement")
    assert by_windows == pytest.approx(expected, abs=5e-4)
    in_the_server = predicted(root, url, tmp_path / "scans", name, ct_piece, "--where", "server")
    assert in_the_server == by_windows, "on by default, for nothing travels"
    columns = (tmp_path / "scans" / "report.csv").read_text().splitlines()[0].split(",")
    assert set(columns) >= {f"{label} agreement" for label in expected}


def test_agreement_that_nobody_asked_for_is_not_there(served, ct_piece, tmp_path) -> None:
    root, url, name = served
    assert predicted(root, url, tmp_path / "windows", name, ct_piece, "--where", "client") == {}
    silent = predicted(root, url, tmp_path / "scans", name, ct_piece, "--where", "server", "--no_agreement")
    assert silent == {}
    header = (tmp_path / "windows" / "report.csv").read_text().splitlines()[0]
    assert "agreement" not in header
    labels = [(tmp_path / folder / "piece.nii.gz").read_bytes() for folder in ("windows", "scans")]
    assert labels[0] == labels[1]
    assert json.loads((tmp_path / "windows" / "report.json").read_text())["cases"][0]["agreement"] == {}
