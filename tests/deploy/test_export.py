"""Every kind of network goes from checkpoint to a proven bundle."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctseg.cli.main import main
from ctseg.deploy.bundle import Bundle, read_bundle, write_bundle
from ctseg.deploy.export import ExportOptions, export_model
from ctseg.deploy.onnx_graph import onnx_graph_of
from ctseg.deploy.opset import lower_to_opset_17
from ctseg.deploy.parity_cases import preprocessed_cases
from ctseg.deploy.parity_data import PreparedCase
from ctseg.deploy.reference import torch_network
from ctseg.deploy.runtimes import onnxruntime_network
from ctseg.deploy.trained_model import load_trained_model
from ctseg.errors import InputError, OutputError, SetupError, SpecError
from ctseg.numerics.mirroring import mirror_subsets
from ctseg.presentation import Code, LabelPresentation
from tests.support.nnunet_reference import (
    make_dataset,
    make_plans,
    make_trained_folder,
    swin_architecture,
    unet_architecture,
)


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_bundle_has_what_it_should(bundle: Bundle) -> None:
    names = {path.name for path in bundle.folder.iterdir()}
    documents = {"ctseg.json", "parity.json", "parity.md"}
    assert names == {*documents, "model.onnx", "model.fp16.onnx", "parity", "parity_phantom"}
    for folder, begin in (("parity", "PATIENT DATA unless"), ("parity_phantom", "No patient: ")):
        assert f"\n\n{begin}" in (bundle.folder / folder / "README.txt").read_text()
    assert bundle.spec.parity.state == "proven"
    assert bundle.spec.parity.relative_l2 is not None
    assert bundle.spec.parity.relative_l2 < 1e-5
    scans, phantom = bundle.parity_data()
    assert len(scans.patches) == 4  # three windows of the first case, one of the second
    assert len(phantom.patches) == 2  # the windows of one and a half patches
    assert phantom.case.shape == (1, 24, 32, 32)
    assert (len(scans.random), len(phantom.random)) == (0, 2)


def test_graph_is_opset_17_with_dynamic_batch_and_the_specs_tensors(bundle: Bundle) -> None:
    graph = onnx.load(bundle.folder / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [(item.domain, item.version) for item in graph.opset_import] == [("", 17)]
    (feed,), (answer,) = graph.graph.input, graph.graph.output
    assert (feed.name, answer.name) == ("input", "output")
    for value, channels in ((feed, 1), (answer, 2)):
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert [side.dim_value for side in rest] == [channels, 16, 32, 32]


def test_batch_of_any_size_equals_single_patches(bundle: Bundle) -> None:
    network = onnxruntime_network(bundle.folder / "model.onnx")
    patches = np.random.default_rng(0).standard_normal((5, 1, 16, 32, 32)).astype(np.float32)
    singles = np.concatenate([network(patches[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(network(patches), singles, rtol=1e-4, atol=1e-5)


SHARED_NAMES = ("ctseg.json", "parity.json", "parity.md", "parity", "parity_phantom")
NETWORKS = {
    "plain 2d": ((2, "plain"), (32, 32)),
    "residual 3d": ((3, "residual"), (16, 32, 32)),
    "swin 2d, padded": ((2, "swin"), (40, 64)),
    "swin 3d": ((3, "swin"), (32, 64, 64)),
}


@pytest.mark.parametrize(
    "name",
    [
        "plain 2d",
        "residual 3d",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("swin 2d, padded", "swin 3d")),
    ],
)
def test_every_kind_of_network_gives_pytorchs_logits(name: str, tmp_path: Path) -> None:
    (dims, kind), patch = NETWORKS[name]
    architecture = (
        swin_architecture(dims)
        if kind == "swin"
        else unet_architecture(dims, kind={"plain": "PlainConvUNet", "residual": "ResidualEncoderUNet"}[kind])
    )
    plans = make_plans(
        patch_size=patch,
        spacing=(2.0,) * dims,
        configuration="2d" if dims == 2 else "3d_fullres",
        architecture=architecture,
    )
    folder = make_trained_folder(tmp_path / "model", plans, make_dataset(), mirror_axes=tuple(range(dims)))
    rng = np.random.default_rng(1)
    # two windows or more, and none with padding, where norms of constant regions amplify rounding
    size = (3, patch[0] + 5, patch[1]) if dims == 2 else (patch[0] + 1, *patch[1:])
    case = PreparedCase("noise", rng.standard_normal((1, *size)).astype(np.float32))
    model = load_trained_model(folder)
    lies_outside = name == "swin 2d, padded"  # its constants too
    options = ExportOptions(max_batch_size=2)
    options = replace(options, one_file_bytes=0) if lies_outside else options
    bundle = export_model(model, tmp_path / "bundle", options, cases=[case])
    (check,) = bundle.report.variants[0].checks
    assert check.passed
    assert check.proven_with == ("scans", "phantom")
    assert max(item.relative_l2 for item in check.comparisons) < 1e-5
    assert bundle.spec.patch_size == patch
    if lies_outside:
        assert (bundle.folder / "model.onnx.data").stat().st_size > 20 * (bundle.folder / "model.onnx").stat().st_size


def test_folds_and_flips_in_the_graph_are_the_mean_of_the_logits(trained_unet: Path) -> None:
    model = load_trained_model(trained_unet)
    spec = model.spec(name="unet", mirroring="graph", max_batch_size=1)
    network = onnxruntime_network(onnx_graph_of(model, spec).SerializeToString())
    patches = np.random.default_rng(2).standard_normal((2, 1, 16, 32, 32)).astype(np.float32)
    assert relative_l2(network(patches), torch_network(model, spec)(patches)) < 1e-5
    # a network of both folds is none of either
    single = load_trained_model(trained_unet, folds=(0,))
    assert relative_l2(network(patches), torch_network(single, spec)(patches)) > 1e-2


def test_subsets_of_the_mirror_axes_are_all_and_once() -> None:
    assert mirror_subsets((0, 1, 2)) == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert mirror_subsets(()) == [()]


def test_mirroring_in_the_graph_is_said_in_the_spec(trained_unet: Path, export: Callable[..., Bundle]) -> None:
    bundle = export(trained_unet, mirroring="graph", name="mirrored")
    assert bundle.spec.mirroring == "graph"
    assert bundle.report.variants[0].proven


@pytest.mark.parametrize("opset", [18, 20])
def test_later_opsets_can_be_asked_for(trained_unet: Path, opset: int) -> None:
    model = load_trained_model(trained_unet, folds=(0,))
    spec = model.spec(name="unet", mirroring="none", max_batch_size=1)
    graph = onnx_graph_of(model, spec, opset=opset)
    assert graph.opset_import[0].version == opset
    patches = np.random.default_rng(2).standard_normal((1, 1, 16, 32, 32)).astype(np.float32)
    assert (
        relative_l2(onnxruntime_network(graph.SerializeToString())(patches), torch_network(model, spec)(patches)) < 1e-5
    )
    with pytest.raises(SpecError, match=r"opset 16 has no LayerNormalization"):
        onnx_graph_of(model, spec, opset=16)


def test_weights_that_one_file_cannot_hold_lie_beside_each_graph(large_bundle: Bundle, trained_unet: Path) -> None:
    names = {path.name for path in large_bundle.folder.iterdir()}
    graphs = {"model.onnx", "model.fp16.onnx", "model.bf16.onnx"}
    assert names == {*graphs, *(f"{name}.data" for name in graphs), *SHARED_NAMES}
    whole, half = ((large_bundle.folder / f"model{name}.onnx.data").stat().st_size for name in ("", ".fp16"))
    assert half < 0.75 * whole
    for variant in large_bundle.report.variants:
        assert max(item.relative_l2 for item in variant.checks[0].comparisons) < {
            "fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2
        }[variant.precision]  # fmt: skip
    model = load_trained_model(trained_unet, folds=(0, 1))
    patches = np.random.default_rng(2).standard_normal((2, 1, 16, 32, 32)).astype(np.float32)
    expected = torch_network(model, large_bundle.spec)(patches)
    assert relative_l2(onnxruntime_network(large_bundle.folder / "model.onnx")(patches), expected) < 1e-5
    assert relative_l2(onnxruntime_network(large_bundle.folder / "model.fp16.onnx")(patches), expected) < 2e-3


def test_digest_of_the_network_and_the_spec_do_not_depend_on_how_it_is_stored(
    large_bundle: Bundle, trained_unet: Path, export: Callable[..., Bundle]
) -> None:
    small = export(trained_unet, folds=(0, 1), mirroring="graph", name="large", max_batch_size=3)
    assert small.spec.network_sha256 == large_bundle.spec.network_sha256
    assert small.spec.digest == large_bundle.spec.digest
    assert not list(small.folder.glob("*.data"))


def test_changed_weights_beside_the_graph_are_refused(large_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(large_bundle.folder, tmp_path / "bundle"))
    assert read_bundle(copy).variant("fp32").sha256 == large_bundle.variant("fp32").sha256
    with (copy / "model.onnx.data").open("r+b") as file:
        file.seek(4100)
        file.write(b"\x00\x00\x80\x3f")
    with pytest.raises(SpecError, match=r"not the file that parity.json describes"):
        read_bundle(copy).variant("fp32")
    (copy / "model.onnx.data").unlink()
    with pytest.raises(SpecError, match=r"parity.json describes.* model.onnx.data, which is no file beside it"):
        read_bundle(copy).variant("fp32")


def test_full_disk_is_told_with_what_is_free_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half.onnx").write_bytes(b"x")
        raise OSError("65536 requested and 44000 written")  # numpy's words; they have no number

    with pytest.raises(OutputError, match=r"b: cannot be written: 65536 requested .*; \d+ MiB are free there"):
        write_bundle(tmp_path / "b", fill)
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_written_is_told_before_the_work(trained_unet: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file is read-only, or no folder"):
        export_model(load_trained_model(trained_unet, folds=(0,)), tmp_path / "file" / "b")


def small_graph(*nodes: onnx.NodeProto, constants: tuple[onnx.TensorProto, ...]) -> onnx.ModelProto:
    feed = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4, 6])
    answer = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", "channels", "width"])
    graph = helper.make_graph(nodes, "g", [feed], [answer], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_lowering_keeps_the_meaning_of_pads_reductions_and_splits() -> None:
    graph = small_graph(
        helper.make_node("Pad", ["input", "pads", "fill"], ["padded"]),
        helper.make_node("ReduceMean", ["padded", "axes"], ["mean"], keepdims=1),
        helper.make_node("Split", ["mean"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Sub", ["a", "b"], ["output"]),
        constants=(
            numpy_helper.from_array(np.array([0, 1, 2, 0, 1, 3]), "pads"),
            numpy_helper.from_array(np.float32(7), "fill"),
            numpy_helper.from_array(np.array([2]), "axes"),
        ),
    )
    lowered = lower_to_opset_17(graph)
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.opset_import[0].version == 17
    patches = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    expected = onnxruntime_network(graph.SerializeToString())(patches)
    assert expected.shape == (3, 3, 1)
    np.testing.assert_array_equal(onnxruntime_network(lowered.SerializeToString())(patches), expected)


def test_lowering_refuses_what_opset_17_lacks() -> None:
    pad = helper.make_node("Pad", ["input", "pads", "", "axes"], ["output"])
    constants = (numpy_helper.from_array(np.array([1, 1]), "pads"), numpy_helper.from_array(np.array([2]), "axes"))
    with pytest.raises(ValueError, match=r"Pad .* names its axes: take opset 18"):
        lower_to_opset_17(small_graph(pad, constants=constants))
    with pytest.raises(ValueError, match=r"Mish .* has no equal"):
        lower_to_opset_17(small_graph(helper.make_node("Mish", ["input"], ["output"]), constants=()))


def test_folder_that_is_no_bundle_is_not_overwritten(bundle: Bundle, trained_unet: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("thesis")
    with pytest.raises(SetupError, match=r"is no bundle: choose another folder"):
        export_model(load_trained_model(trained_unet, folds=(0,)), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "thesis"


def test_without_a_real_scan_the_first_mixed_network_that_random_patches_pass_is_kept(
    trained_unet: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    options = ExportOptions(precisions=("fp32", "fp16"), accept_unproven=True)
    model = load_trained_model(trained_unet, folds=(0,))
    variant = export_model(model, tmp_path / "b", options, report=told.append).variant("fp16")
    assert len([line for line in told if "fp16, kept in FP32" in line]) == 1
    assert "alone" not in variant.kept_fp32
    assert variant.checks[0].passed
    assert not variant.proven


def test_changed_model_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SpecError, match=r"not the file that parity.json describes: export again \(.* not an ONNX file"):
        read_bundle(copy).variant("fp32")
    (copy / "model.onnx").unlink()
    with pytest.raises(SpecError, match=r"is missing or not the file that parity.json describes: export again$"):
        read_bundle(copy).variant("fp32")
    with pytest.raises(SpecError, match=r"is .* a bundle of `ctseg export`"):
        read_bundle(tmp_path)


def test_scans_are_prepared_from_files_by_the_command_line(
    trained_unet: Path, demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = demo_data / "images" / "STS_042_0000.nii.gz"
    code = main(
        ["export", "-i", str(trained_unet), "-f", "1", "-o", str(tmp_path / "b"), "--cases", str(scan), "--tta", "none"]
    )
    assert code == 0, capsys.readouterr().err
    bundle = read_bundle(tmp_path / "b")
    assert bundle.spec.provenance.folds == ("1",)
    assert bundle.spec.mirroring == "none"
    assert bundle.report.data == "scans: 1 case"
    assert "scans: 1 case (STS_042)" in (tmp_path / "b" / "parity" / "README.txt").read_text()
    assert bundle.report.variants[0].proven
    told = capsys.readouterr().out
    assert "fp32 proven" in told
    assert "parity/ holds patient data and stays here, parity_phantom/ holds none and goes into images" in told


def test_preprocessed_training_data_is_found_without_unpickling(
    trained_unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import blosc2

    folder = tmp_path / "Dataset999_Test" / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True)
    voxels = np.random.default_rng(0).standard_normal((1, 8, 9, 10)).astype(np.float32)
    blosc2.asarray(voxels, urlpath=str(folder / "case1.b2nd"))
    blosc2.asarray(voxels[:, :1], urlpath=str(folder / "case1_seg.b2nd"))
    (folder / "case1.pkl").write_bytes(b"not a pickle")
    np.savez(folder / "case2.npz", data=np.repeat(voxels, 40, axis=1), seg=voxels)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    cases = preprocessed_cases(load_trained_model(trained_unet, folds=(0,)))
    assert [case.name for case in cases] == ["case1", "case2"]
    np.testing.assert_array_equal(cases[0].voxels, voxels)
    monkeypatch.delenv("nnUNet_preprocessed")
    assert preprocessed_cases(load_trained_model(trained_unet, folds=(0,))) == []


def test_source_of_the_model_has_to_be_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "-o", str(tmp_path / "b")]) == 2
    assert "exactly one of -i" in capsys.readouterr().err
    assert main(["export", "-i", str(tmp_path / "nothing"), "-o", str(tmp_path / "b")]) == 2
    assert "no such folder or zip file" in capsys.readouterr().err


def test_best_json_names_model_folds_and_postprocessing(
    trained_unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained_unet, results / "Dataset999_Test" / trained_unet.name)
    best = {
        "dataset": "Dataset999_Test",
        "members": [{"trainer": "nnUNetTrainer", "plans": "nnUNetPlans", "configuration": "3d_fullres"}],
        "folds": [1],
        "postprocessing": [{"kind": "keep_largest", "labels": [1]}],
    }
    (tmp_path / "best.json").write_text(json.dumps(best))
    monkeypatch.setenv("nnUNet_results", str(results))
    command = ["export", "--from", str(tmp_path / "best.json"), "-o", str(tmp_path / "b"), "--accept-unproven"]
    code = {"value": "108369006", "scheme": "SCT", "meaning": "Neoplasm"}
    (tmp_path / "codes.json").write_text(json.dumps({"tumor": {"category": code, "type": code}}))
    command += ["--codes", str(tmp_path / "codes.json")]
    assert main(command) == 0
    bundle = read_bundle(tmp_path / "b")
    assert bundle.spec.provenance.folds == ("1",)
    assert [step.labels for step in bundle.spec.postprocessing] == [(1,)]
    assert "fp32 UNPROVEN" in capsys.readouterr().out
    said = bundle.spec.presentation
    assert said["tumor"].type == Code(**code)
    assert bundle.spec.digest == bundle.spec.model_copy(update={"presentation": {}}).digest


def test_codes_of_labels_that_the_model_does_not_have_are_refused_before_the_work(
    trained_unet: Path, tmp_path: Path
) -> None:
    model = load_trained_model(trained_unet, folds=(0,))
    options = ExportOptions(codes={"liver": LabelPresentation()}, accept_unproven=True)
    with pytest.raises(InputError, match="codes are given for liver, which the model does not have; it has tumor"):
        export_model(model, tmp_path / "b", options)
    assert not (tmp_path / "b").exists()
