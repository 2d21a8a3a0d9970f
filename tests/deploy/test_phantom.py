"""The phantom stands for a scan where no scan may go: labels are found on it, and healthy networks pass on it."""

from pathlib import Path

import numpy as np
import pytest

from ctseg.deploy.bundle import Bundle
from ctseg.deploy.onnx_graph import onnx_graph_of
from ctseg.deploy.parity import FAST_FP32, case_logits_of, compare
from ctseg.deploy.phantom import phantom_case
from ctseg.deploy.precision import bf16_attempts
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.deploy.trained_model import load_trained_model
from ctseg.model_spec import IntensityProperties, Label, ModelSpec
from ctseg.nnunet.plans import spec_from_plans
from ctseg.numerics.decide import labels_of_logits
from ctseg.serving.entries import EntryVersion, read_entry
from scripts.gpu_proof.demo_weights import write_demo_folder
from tests.support.nnunet_reference import make_dataset, make_plans

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def demo(name: str) -> EntryVersion:
    return read_entry(REPOSITORY / name).newest


@pytest.mark.parametrize("name", ["sarcoma", "composition"])
def test_a_trained_network_finds_all_its_labels_on_it(name: str) -> None:
    model = demo(name)
    logits = case_logits_of(
        phantom_case(model.spec).voxels, onnxruntime_network(model.folder / "model.onnx"), model.spec
    )
    labels = labels_of_logits(logits, model.spec)
    voxels = {label.name: int(np.isin(labels, label.values).sum()) for label in model.spec.labels}
    assert min(voxels.values()) > 5000, voxels


def test_a_healthy_network_passes_on_it_though_its_near_ties_differ(tmp_path: Path) -> None:
    # BF16 as it is served, and as it passes on real CT: on a phantom more voxels are near ties
    model = load_trained_model(write_demo_folder(REPOSITORY / "composition", tmp_path))
    spec = model.spec(name="composition", mirroring="none", max_batch_size=1)
    graph = onnx_graph_of(model, spec)
    _, attempt, *_ = bf16_attempts(graph)
    phantom = phantom_case(spec).voxels
    reference, found = (
        case_logits_of(phantom, onnxruntime_network(item.SerializeToString()), spec)[None]
        for item in (graph, attempt.simulated)
    )
    as_scan = compare("case", reference, found, spec, "bf16")
    assert "fat: Dice" in as_scan.problems[0]
    as_phantom = compare("case", reference, found, spec, "bf16", "phantom")
    assert as_phantom.problems == ()
    assert as_phantom.label_difference_share == 0
    assert as_phantom.relative_l2 == as_scan.relative_l2 < 1e-2
    counted = sum(figures.voxels for figures in as_phantom.labels.values())
    assert 0.95 * phantom.size < counted < phantom.size


def test_its_labels_count_where_pytorch_decides_them_clearly(bundle: Bundle) -> None:
    reference = np.ones((1, 2, 10, 10, 10), np.float32)
    reference[0, 1] = -1
    reference[0, 0, 0], reference[0, 1, 0] = 0.5, 0.4999  # 100 near ties
    reference[0, :, 5:] *= -1
    ties, clear = reference.copy(), reference.copy()
    ties[0, 0, 0], ties[0, 1, 0] = 0.4999, 0.5
    clear[0, 0, 9, 9, :3], clear[0, 1, 9, 9, :3] = 1, -1
    regions = ModelSpec.validated(
        {**bundle.spec.model_dump(), "labels": (Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))),
         "regions_class_order": (1, 2)}, source="test",
    )  # fmt: skip
    near_zero = reference.copy()
    near_zero[0, 1, 0] = 1e-4
    others = near_zero.copy()
    others[0, 1, 0] = -1e-4
    for spec, expected, found in ((bundle.spec, reference, ties), (regions, near_zero, others)):
        assert "have another label" in compare("case", expected, found, spec, "fp32", limits=FAST_FP32).problems[0]
        comparison = compare("case", expected, found, spec, "fp32", "phantom", FAST_FP32)
        assert (comparison.label_difference_share, comparison.problems) == (0, ())
    comparison = compare("case", reference, clear, bundle.spec, "fp32", "phantom", FAST_FP32)
    assert comparison.label_difference_share == pytest.approx(3 / 900)
    assert any("3 of 500 voxels differ" in problem for problem in comparison.problems)


def spec_with(normalization: str, *, use_mask: bool = False, std: float = 30.0, is_2d: bool = False) -> ModelSpec:
    plans = make_plans(patch_size=(24, 40), spacing=(1, 1), configuration="2d") if is_2d else make_plans()
    spec = spec_from_plans(plans, make_dataset(), "2d" if is_2d else "3d_fullres", name="m", mirror_axes=())
    spread = 2 * std
    known = IntensityProperties(mean=60, std=std, percentile_00_5=60 - spread, percentile_99_5=60 + spread)
    change = {"normalization": normalization, "use_mask_for_norm": use_mask, "intensity": known}
    channels = tuple(spec.channels[0].model_copy(update={**change, "name": name}) for name in ("CT", "PET"))
    return spec.model_copy(update={"channels": channels})


@pytest.mark.parametrize(
    "spec",
    [
        spec_with("CTNormalization"),
        spec_with("ZScoreNormalization"),
        spec_with("ZScoreNormalization", use_mask=True),
        spec_with("NoNormalization"),
        spec_with("RescaleTo01Normalization"),
        spec_with("RGBTo01Normalization"),
        spec_with("CTNormalization", is_2d=True),
        spec_with("ZScoreNormalization", std=0.0),
    ],
    ids=lambda spec: f"{spec.channels[0].normalization} {spec.configuration} {spec.channels[0].intensity.std}",
)
def test_it_suits_every_kind_of_network(spec: ModelSpec) -> None:
    voxels = phantom_case(spec).voxels
    longer, *rest = spec.patch_size
    expected = (4, 1.5 * longer, *rest) if spec.is_2d else (1.5 * longer, *rest)
    assert voxels.shape == (2, *expected)
    assert voxels.dtype == np.float32
    assert np.isfinite(voxels).all()
    assert voxels.reshape(2, -1).std(axis=1).min() > 0.05
    assert np.corrcoef(voxels.reshape(2, -1))[0, 1] < 0.99  # the channels are not copies
    np.testing.assert_array_equal(voxels, phantom_case(spec).voxels)


def test_it_depends_on_what_the_spec_says_alone() -> None:
    spec = spec_with("CTNormalization")
    named = spec.model_copy(update={"name": "other", "network_sha256": "0" * 64})
    np.testing.assert_array_equal(phantom_case(spec).voxels, phantom_case(named).voxels)
    assert phantom_case(spec).name == "phantom"
    assert not np.array_equal(phantom_case(spec).voxels, phantom_case(spec_with("NoNormalization")).voxels)


def test_reports_of_scans_and_phantom_keep_the_scans_figures_for_the_spec(bundle: Bundle) -> None:
    check = bundle.report.variants[0].checks[0]
    worse = tuple(
        item.model_copy(update={"relative_l2": 5e-6 if item.parity_set == "phantom" else 1e-6})
        for item in check.comparisons
    )
    parity = check.model_copy(update={"comparisons": worse}).as_parity()
    assert parity.relative_l2 == 1e-6
    assert parity.proven_with == ("scans", "phantom")
