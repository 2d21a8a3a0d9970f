"""The gate lets through what gives PyTorch's labels, and refuses what does not."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from ctseg.deploy.bundle import Bundle, read_bundle
from ctseg.deploy.export import ExportOptions, LeftOutError, export_model
from ctseg.deploy.parity import FAST_FP32, Limits, case_logits_of, check_network, compare, require
from ctseg.deploy.parity_cases import prepare_scans
from ctseg.deploy.parity_data import ParityData, PreparedCase
from ctseg.deploy.parity_report import Check, ParityReport, summary
from ctseg.deploy.precision import fp16_attempts
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.deploy.trained_model import load_trained_model
from ctseg.errors import InputError, ParityError, SpecError
from ctseg.model_spec import Label, ModelSpec, ParitySet
from ctseg.nnunet.plans import spec_from_plans
from ctseg.numerics.decide import REGION_THRESHOLD, labels_of_logits
from ctseg.numerics.mirroring import mirror_subsets
from tests.support.nnunet_reference import make_dataset, make_plans


def changed(bundle: Bundle, change: object) -> bytes:
    graph = onnx.load(bundle.folder / "model.onnx")
    change(graph)  # type: ignore[operator]
    return graph.SerializeToString()


def data_of(bundle: Bundle, parity_set: ParitySet) -> ParityData:
    (found,) = [data for data in bundle.parity_data() if data.parity_set == parity_set]
    return found


def check_of(bundle: Bundle, graph: bytes, parity_set: ParitySet) -> Check:
    data = (data_of(bundle, parity_set),)
    return check_network(onnxruntime_network(graph), data, bundle.spec, what="changed", precision="fp32")


def weights_of(graph: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [item for item in graph.graph.initializer if len(item.dims) == 5]


def replace_weight(item: onnx.TensorProto, values: np.ndarray) -> None:
    item.CopyFrom(numpy_helper.from_array(values.astype(np.float32), item.name))


def test_graph_as_exported_passes(bundle: Bundle) -> None:
    network = onnxruntime_network(bundle.folder / "model.onnx")
    check = check_network(network, bundle.parity_data(), bundle.spec, what="as exported", precision="fp32")
    assert check.proven_with == ("scans", "phantom")
    titles = [item.title for item in check.comparisons]
    assert titles == ["patches", "case", "phantom patches", "random patches", "phantom case"]
    assert all(item.relative_l2 < 1e-5 for item in check.comparisons)


@pytest.mark.parametrize("index", [1, 2, -1])
def test_one_scaled_weight_tensor_is_refused(bundle: Bundle, index: int, parity_set: ParitySet) -> None:
    def scale(graph: onnx.ModelProto) -> None:
        item = weights_of(graph)[index]
        values = numpy_helper.to_array(item)
        # an instance norm behind it undoes a common factor: the first input channel alone is scaled
        replace_weight(item, np.concatenate([values[:, :1] * 1.05, values[:, 1:]], axis=1))

    graph = changed(bundle, scale)
    check = check_of(bundle, graph, parity_set)
    assert not check.passed
    with pytest.raises(ParityError, match=r"does not give PyTorch's labels: (phantom )?patches: relative L2 error"):
        require(check, model="unet", accept_unproven=False)


def test_swapped_label_channels_are_refused(bundle: Bundle, parity_set: ParitySet) -> None:
    def swap(graph: onnx.ModelProto) -> None:
        last = next(node for node in graph.graph.node if graph.graph.output[0].name in node.output)
        assert last.op_type == "Conv"
        for item in graph.graph.initializer:
            if item.name in last.input:
                replace_weight(item, numpy_helper.to_array(item)[::-1])

    check = check_of(bundle, changed(bundle, swap), parity_set)
    case = check.comparisons[-1]
    assert case.label_difference_share > 0.5
    assert any("have another label" in problem for problem in case.problems)


def test_one_missing_flip_of_eight_is_refused(
    trained_unet: Path, real_cases: list[PreparedCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctseg.deploy.onnx_graph.mirror_subsets", lambda axes: mirror_subsets(axes)[:-1])
    model = load_trained_model(trained_unet, folds=(0,))
    options = ExportOptions(mirroring="graph", max_batch_size=1)
    titles = ("patches", "case", "phantom patches", "random patches", "phantom case")
    refusal = ".*; ".join(f"{title}: relative L2 error" for title in titles)
    with pytest.raises(ParityError, match=refusal):
        export_model(model, tmp_path / "bundle", options, cases=real_cases)
    assert not list(tmp_path.iterdir())


def folder_with_scaled_weight(source: Path, folder: Path, name: str, factor: float) -> Path:
    """A trained folder with every copy of one weight of fold 0 scaled."""
    shutil.copytree(source, folder)
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["network_weights"] = {
        key: value * factor if key.endswith(name) else value for key, value in checkpoint["network_weights"].items()
    }
    torch.save(checkpoint, file)
    return folder


def test_overflow_of_fp16_is_refused_and_the_next_attempt_taken(
    trained_unet: Path, export: Callable[..., Bundle], tmp_path: Path
) -> None:
    # the norm behind it undoes the factor: harmless in FP32, infinite in FP16
    scaled = folder_with_scaled_weight(trained_unet, tmp_path / "m", "encoder.stages.1.0.convs.0.conv.weight", 5e4)
    copied = folder_with_scaled_weight(
        scaled, tmp_path / "model", "encoder.stages.1.0.convs.0.all_modules.0.weight", 5e4
    )
    bundle = export(copied, precisions=("fp32", "fp16"))
    graph = onnx.load(bundle.folder / "model.onnx")
    first = next(fp16_attempts(graph, data_of(bundle, "scans").patches))
    network = onnxruntime_network(first.simulated.SerializeToString())
    for data in bundle.parity_data():
        check = check_network(network, [data], bundle.spec, what="first attempt", precision="fp16")
        titled = "patches" if data.parity_set == "scans" else "phantom patches"
        assert f"{titled}: 100.000% of the logits are NaN or infinite (an overflow of fp16?)" in check.problems
        with pytest.raises(ParityError, match=r"overflow of fp16"):
            require(check, model="unet", accept_unproven=False)
    variant = bundle.variant("fp16")
    assert variant.proven
    assert re.fullmatch(r"InstanceNormalization, \d nodes with large values", variant.kept_fp32)


def test_overflow_that_no_attempt_avoids_leaves_the_fp32_network_alone(
    trained_unet: Path, real_cases: list[PreparedCase], tmp_path: Path
) -> None:
    scaled = folder_with_scaled_weight(trained_unet, tmp_path / "model", "decoder.seg_layers.1.weight", 1e6)
    options = ExportOptions(precisions=("fp32", "fp16"), fp16_output=True)  # the answer itself does not fit
    lines: list[str] = []
    with pytest.raises(LeftOutError, match=r"model.fp16.onnx.* NaN or infinite.* is written without it, with FP32"):
        export_model(
            load_trained_model(scaled, folds=(0,)), tmp_path / "b", options, cases=real_cases, report=lines.append
        )
    assert sum("kept in FP32" in line for line in lines) == 3
    assert [variant.precision for variant in read_bundle(tmp_path / "b").report.variants] == ["fp32"]
    assert sorted(file.name for file in (tmp_path / "b").glob("*.onnx*")) == ["model.onnx"]


def double_the_slope(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        for attribute in node.attribute:
            if (node.op_type, attribute.name) == ("LeakyRelu", "alpha"):
                attribute.f *= 2


def lose_one_filter(graph: onnx.ModelProto) -> None:
    item = weights_of(graph)[1]
    values = numpy_helper.to_array(item).copy()
    values[0] = 0
    replace_weight(item, values)


def round_the_weights_to_bf16(graph: onnx.ModelProto) -> None:
    for item in weights_of(graph):
        bits = numpy_helper.to_array(item).view(np.uint32)
        replace_weight(item, ((bits + 0x8000) & 0xFFFF0000).view(np.float32))


@pytest.mark.parametrize("fault", [double_the_slope, lose_one_filter, round_the_weights_to_bf16])
def test_small_faults_are_refused(
    bundle: Bundle, fault: Callable[[onnx.ModelProto], None], parity_set: ParitySet
) -> None:
    check = check_of(bundle, changed(bundle, fault), parity_set)
    assert any(re.match(r"(phantom )?case: relative L2 error", problem) for problem in check.problems)


@pytest.mark.parametrize(("limits", "allowed"), [(None, 1e-5), (FAST_FP32, 1e-3)])
def test_logits_that_differ_are_refused_though_no_label_does(
    bundle: Bundle, limits: Limits | None, allowed: float
) -> None:
    # a scan on which the network is sure of one label everywhere: labels alone would prove nothing
    reference = np.random.default_rng(0).uniform(1, 2, (1, 2, 8, 8, 8)).astype(np.float32)
    reference[:, 1] *= -1
    healthy, faulty = (
        compare("case", reference, reference * np.float32(1 + off * allowed), bundle.spec, "fp32", limits=limits)
        for off in (0.3, 2)
    )
    assert healthy.label_difference_share == faulty.label_difference_share == 0
    assert healthy.problems == ()
    (problem,) = faulty.problems
    assert re.fullmatch(rf"relative L2 error (2\.0|1\.9)\de-0\d, at most {allowed:.0e} is allowed", problem)


def test_a_network_that_fails_on_the_case_only_is_refused(bundle: Bundle, parity_set: ParitySet) -> None:
    network = onnxruntime_network(bundle.folder / "model.onnx")
    data = data_of(bundle, parity_set)
    calls = []

    def counted(patches: np.ndarray) -> np.ndarray:
        calls.append(len(patches))
        return network(patches)

    check_network(counted, [replace(data, case=data.case[:, :0])], bundle.spec, what="patches", precision="fp32")
    before_the_case = len(calls)

    def sometimes(patches: np.ndarray) -> np.ndarray:
        logits = counted(patches)
        return logits if len(calls) <= 2 * before_the_case else logits * np.nan

    check = check_network(sometimes, [data], bundle.spec, what="breaks later", precision="fp32")
    assert len(calls) > 2 * before_the_case
    (problem,) = check.problems
    assert re.match(r"(phantom )?case: .*NaN", problem)


def test_constant_patches_prove_nothing(bundle: Bundle) -> None:
    zeros = np.zeros((1, 2, 16, 32, 32), np.float32)
    assert "proves nothing" in compare("patches", zeros, zeros, bundle.spec, "fp32").problems[0]


def test_without_a_real_scan_nothing_is_proven(trained_unet: Path, tmp_path: Path) -> None:
    model = load_trained_model(trained_unet, folds=(0,))
    with pytest.raises(ParityError, match=r"no real scan to prove the graph with: give real scans") as caught:
        export_model(model, tmp_path / "bundle")
    assert caught.value.settings == ("cases", "accept_unproven")
    assert not (tmp_path / "bundle").exists()
    bundle = export_model(model, tmp_path / "bundle", ExportOptions(accept_unproven=True))
    assert bundle.spec.parity.state == "unproven"
    assert bundle.spec.parity.proven_with == ()
    network = onnxruntime_network(bundle.folder / "model.onnx")
    check = check_network(network, bundle.parity_data(), bundle.spec, what="x", precision="fp32")
    assert check.passed  # on the phantom too, which proves nothing of a graph that no scan was shown to
    with pytest.raises(ParityError, match=r"no real scan") as caught:
        require(check, model="unet", accept_unproven=False)


def test_no_comparison_is_no_proof() -> None:
    assert not Check(network="x", precision="fp32", sha256="", comparisons=()).passed


def test_dice_and_differing_voxels_are_counted_as_defined(bundle: Bundle) -> None:
    reference = np.zeros((1, 2, 10, 10, 10), np.float32)
    reference[0, 1] = -1
    reference[0, 1, :5] = 1  # 500 voxels of tumor
    found = reference.copy()
    found[0, 1, 4, 0, :4] = -2  # four voxels lost
    comparison = compare("patches", reference, found, bundle.spec, "fp32")
    tumor = comparison.labels["tumor"]
    assert (tumor.voxels, tumor.differing) == (500, 4)
    assert tumor.dice == pytest.approx(2 * 496 / (500 + 496))
    assert comparison.label_difference_share == pytest.approx(4 / 1000)
    assert any("tumor: 4 of 500 voxels differ, at most 2 may" in problem for problem in comparison.problems)


def test_regions_are_decided_one_by_one_in_their_order(bundle: Bundle) -> None:
    spec = ModelSpec.validated(
        {
            **bundle.spec.model_dump(),
            "labels": (Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))),
            "regions_class_order": (1, 2),
        },
        source="test",
    )
    logits = np.array([[1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]], np.float32)
    assert labels_of_logits(logits, spec).tolist() == [1, 2, 2, 0]
    assert "core" in compare("patches", logits[None], logits[None], spec, "fp32").labels
    assert make_dataset()["labels"]["tumor"] == 1


def test_labels_are_decided_as_the_client_decides_them(bundle: Bundle) -> None:
    # sigmoid of a tiny positive logit is one half in float32: background for nnU-Net, and for the client
    spec = ModelSpec.validated(
        {
            **bundle.spec.model_dump(),
            "labels": (Label(name="whole", values=(1,)),),
            "regions_class_order": (1,),
        },
        source="test",
    )
    reference = np.linspace(-1, 1, 1000, dtype=np.float32).reshape(1, 1, 10, 10, 10)
    at, above = reference.copy(), reference.copy()
    at[reference < 0] = REGION_THRESHOLD
    above[reference < 0] = np.nextafter(REGION_THRESHOLD, np.float32(1))
    assert compare("patches", reference, at, spec, "fp32").label_difference_share == 0
    assert compare("patches", reference, above, spec, "fp32").label_difference_share == pytest.approx(0.5)


def test_label_that_neither_has_is_agreed_upon(bundle: Bundle) -> None:
    logits = np.random.default_rng(0).uniform(1, 2, (1, 2, 8, 8, 8)).astype(np.float32)
    logits[:, 1] *= -1
    tumor = compare("case", logits, logits, bundle.spec, "fp32").labels["tumor"]
    assert (tumor.voxels, tumor.differing, tumor.dice) == (0, 0, 1.0)


def test_report_round_trips_and_can_be_read_by_a_person(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    file.write_text(bundle.report.to_json())
    assert ParityReport.read(file) == bundle.report
    page = bundle.report.to_markdown()
    assert "**proven**" in page
    assert "| case |" in page
    assert "tumor" in page
    assert "case" in summary(bundle.report.variants[0].checks)


def test_report_of_an_infinite_error_round_trips(bundle: Bundle, tmp_path: Path) -> None:
    failed = compare(
        "patches", np.ones((1, 2, 4), np.float32), np.full((1, 2, 4), np.inf, np.float32), bundle.spec, "fp16"
    )
    check = Check(network="x", precision="fp16", sha256="", comparisons=(failed,))
    variant = bundle.report.variants[0].model_copy(update={"checks": (check,)})
    report = bundle.report.model_copy(update={"variants": (variant,)})
    (tmp_path / "parity.json").write_text(report.to_json())
    assert ParityReport.read(tmp_path / "parity.json").variants[0].checks[0].comparisons[0].relative_l2 == np.inf
    assert check.as_parity().state == "unproven"
    assert check.as_parity().relative_l2 is None


def test_broken_parity_data_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"parity data cannot be read"):
        ParityData.read(tmp_path, "scans", source="nowhere")
    assert all(data.is_complete for data in read_bundle(bundle.folder).parity_data())


def test_whole_case_is_covered_by_windows(bundle: Bundle) -> None:
    case = np.asarray(data_of(bundle, "scans").case)
    logits = case_logits_of(case, lambda patches: np.concatenate([patches, -patches], axis=1), bundle.spec)
    np.testing.assert_allclose(logits[0], case[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits[1], -case[0], rtol=1e-5, atol=1e-6)


def test_a_case_whose_files_are_incomplete_is_refused_with_its_own_words(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        (tmp_path / name).write_bytes(b"never opened")
    spec = spec_from_plans(make_plans(), make_dataset(), "3d_fullres", name="m", mirror_axes=())
    with pytest.raises(InputError, match=r"case a: expected a_0000, found a_0000\.nii\.gz, a_0001\.nii\.gz"):
        prepare_scans([tmp_path], spec)
