"""Entries are built from proven bundles, proven again where they will run, and rebuilt only when something differs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from ctseg.cli.main import main
from ctseg.deploy.build import BuildOptions, build_entry
from ctseg.deploy.build_job import RuntimeChoice
from ctseg.deploy.bundle import PARITY_SETS, Bundle, read_bundle
from ctseg.deploy.export import ExportOptions, export_model
from ctseg.deploy.live_proof import check_live
from ctseg.deploy.onnx_file import sha256_of_network
from ctseg.deploy.onnx_graph import onnx_graph_of, weight_bytes_of
from ctseg.deploy.parity_data import PreparedCase
from ctseg.deploy.parity_report import ParityReport
from ctseg.deploy.plan_file import PlanFileOptions, build_plan_file
from ctseg.deploy.runtimes import Network, onnxruntime_network, seconds_per_patch
from ctseg.deploy.trained_model import load_trained_model
from ctseg.errors import OutputError, ParityError, SetupError, SpecError
from ctseg.files.digests import sha256_of_file
from ctseg.model_spec import SPEC_NAME, ModelSpec, ParitySet
from ctseg.numerics.mirroring import mirror_subsets
from ctseg.predict.predictor import Identity
from ctseg.presentation import LabelPresentation
from ctseg.serving.entries import Backend, read_entry
from ctseg.triton.configuration import config_from_text
from tests.support.nnunet_reference import make_dataset, make_plans, make_trained_folder, unet_architecture
from tests.support.onnx_as_plan import OnnxAsPlan

ONNXRUNTIME = BuildOptions(runtime="onnxruntime")
REFUSED: Mapping[ParitySet, str] = {
    "scans": "patches: .*; case: ",
    "phantom": "phantom patches: .*; random patches: .*; phantom case: ",
}


def build_json(folder: Path, name: str = "build.json") -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / name).read_text())
    return content


def test_python_entry_is_complete_and_proven(bundle: Bundle, tmp_path: Path) -> None:
    lines: list[str] = []
    entry = build_entry(bundle.folder, tmp_path / "repository", ONNXRUNTIME, report=lines.append)
    newest = entry.newest
    assert (entry.name, newest.version, entry.backend) == ("unet", 1, "python")
    assert newest.spec.parity.state == "proven"
    assert newest.spec.digest == bundle.spec.digest
    names = {path.name for path in newest.folder.iterdir()}
    assert names == {"model.py", "model.onnx", "build.json", "parity.json", "parity.md"}
    assert ParityReport.read(newest.folder / "parity.json").variants[0].proven
    info = build_json(newest.folder)
    assert info["onnx_sha256"] == bundle.variant("fp32").sha256
    assert str(info["runtime"]).startswith("onnxruntime ")
    assert any("case" in line for line in lines)


def test_the_spec_says_which_set_proved_what(
    bundle: Bundle, phantom_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bundle.spec.parity.summary == "proven with scans and phantom"
    with_both = build_entry(bundle.folder, tmp_path / "both", ONNXRUNTIME).newest.spec
    assert with_both.parity.summary == "proven with scans and phantom"
    lines: list[str] = []
    entry = build_entry(phantom_bundle.folder, tmp_path / "image", ONNXRUNTIME, report=lines.append).newest
    assert entry.spec.parity.proven_with == ("phantom",)
    assert entry.spec.parity.graph_proven_with == ("scans", "phantom")
    assert entry.spec.parity.summary == "proven with phantom (its graph with scans and phantom)"
    assert entry.spec.digest == with_both.digest == bundle.spec.digest
    report = ParityReport.read(entry.folder / "parity.json")
    assert report.variants[0].proven_with == ("phantom",)
    assert report.data == ""
    assert "Compared with PyTorch on a phantom" in (entry.folder / "parity.md").read_text()
    assert not any(re.search(r", (patches|case): ", line) for line in lines)
    assert main(["build", str(phantom_bundle.folder), "--repository", str(tmp_path / "image"), "--if_needed"]) == 0
    assert "parity proven with phantom (its graph with scans and phantom)" in capsys.readouterr().out


def test_a_bundle_of_an_older_ctseg_is_built_with_its_scans_and_told_from_one_that_an_image_may_carry(
    bundle: Bundle, tmp_path: Path
) -> None:
    older = copy_with(bundle, tmp_path / "b", "scans")
    report = json.loads((older / "parity.json").read_text())
    del report["phantom"]
    for variant in report["variants"]:
        for check in variant["checks"]:
            check["comparisons"] = [item for item in check["comparisons"] if item.pop("parity_set") == "scans"]
    (older / "parity.json").write_text(json.dumps(report))
    spec = json.loads((older / "ctseg.json").read_text())
    del spec["parity"]["proven_with"], spec["parity"]["graph_proven_with"]
    (older / "ctseg.json").write_text(json.dumps(spec))
    lines: list[str] = []
    entry = build_entry(older, tmp_path / "r", ONNXRUNTIME, report=lines.append)
    assert entry.newest.spec.parity.summary == "proven with scans"
    assert lines[0].endswith(
        "without parity_phantom/: an image that carries it would carry voxels of patients, and is refused: "
        "export the model again before one is made"
    )
    shutil.rmtree(older / "parity")
    with pytest.raises(SpecError, match=r"found neither parity/ nor parity_phantom/.*: export the model again"):
        build_entry(older, tmp_path / "r", ONNXRUNTIME)


@pytest.mark.parametrize("backend", ["python", "onnxruntime", "tensorrt"])
def test_an_entry_carries_no_voxels_and_no_names_of_scans(bundle: Bundle, tmp_path: Path, backend: Backend) -> None:
    build_entry(bundle.folder, tmp_path, BuildOptions(backend=backend, runtime="onnxruntime"), compiler=OnnxAsPlan())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".npy" or path.name == "README.txt"]
    assert b"STS_" in (bundle.folder / "parity" / "README.txt").read_bytes()
    assert not [path for path in files if b"STS_" in path.read_bytes()]
    beside = [path for path in bundle.folder.rglob("*") if path.is_file() and path.parent.name != "parity"]
    assert not [path for path in beside if b"STS_" in path.read_bytes()]


def test_every_build_is_the_next_version_and_if_needed_builds_none(bundle: Bundle, tmp_path: Path) -> None:
    build_entry(bundle.folder, tmp_path, ONNXRUNTIME)
    assert build_entry(bundle.folder, tmp_path, ONNXRUNTIME).newest.version == 2
    assert build_entry(bundle.folder, tmp_path, replace(ONNXRUNTIME, if_needed=True)).newest.version == 2
    assert build_entry(bundle.folder, tmp_path, replace(ONNXRUNTIME, version=7)).newest.version == 7
    with pytest.raises(SpecError, match=r"version 7 exists"):
        build_entry(bundle.folder, tmp_path, replace(ONNXRUNTIME, version=7))


def test_if_needed_builds_when_the_network_the_codes_or_the_tools_differ(
    bundle: Bundle, trained_unet: Path, real_cases: list[object], tmp_path: Path
) -> None:
    build_entry(bundle.folder, tmp_path / "r", ONNXRUNTIME)
    other = load_trained_model(trained_unet, folds=(1,))
    options = ExportOptions(name="unet", max_batch_size=3)
    second = export_model(other, tmp_path / "b", options, cases=real_cases)  # type: ignore[arg-type]
    needed = replace(ONNXRUNTIME, if_needed=True)
    assert build_entry(second.folder, tmp_path / "r", needed).newest.version == 2
    coded = second.spec.model_copy(update={"presentation": {"tumor": LabelPresentation(display_name="Tumour")}})
    (second.folder / SPEC_NAME).write_text(coded.to_json())
    assert build_entry(second.folder, tmp_path / "r", needed).newest.version == 3
    built = tmp_path / "r" / "unet" / "3" / "build.json"
    built.write_text(built.read_text().replace('"cpus"', '"former_cpus"'))
    assert build_entry(second.folder, tmp_path / "r", needed).newest.version == 4


def test_a_gpu_that_onnx_runtime_cannot_use_is_refused_before_anything_is_built(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SetupError, match=r"onnxruntime.* cannot use a GPU here, it has CPUExecutionProvider") as error:
        build_entry(bundle.folder, tmp_path / "r", BuildOptions(device="gpu"))
    assert error.value.settings == ("device",)
    assert not (tmp_path / "r").exists()
    for options in (BuildOptions(device="gpu", runtime="openvino"), BuildOptions(device="gpu", precision="bf16")):
        with pytest.raises(SetupError, match=r"on a GPU the python backend runs ONNX Runtime|lacks bf16|no bf16"):
            build_entry(bundle.folder, tmp_path / "r", options)


def test_an_onnx_runtime_that_falls_back_to_the_cpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where CUDA's libraries cannot be loaded: ONNX Runtime has the provider, and the session does not."""
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(SetupError, match="cannot use a GPU"):
        onnxruntime_network(bundle.folder / "model.onnx", device="gpu")


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_gpu_is_asked_for_of_the_python_backend_alone(bundle: Bundle, tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(SetupError, match=rf"for the python backend alone, not for {backend}") as error:
        build_entry(bundle.folder, tmp_path / "r", BuildOptions(backend=backend, device="gpu"))
    assert error.value.settings == ("device",)
    assert not (tmp_path / "r").exists()


def test_a_run_that_a_provider_fails_is_told_not_tried_by_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = []

    class Failing:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def run(self, *words: object) -> None:
            raise EPFail("out of memory")

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, *words: object, **options: object) -> None:
            super().__init__(*words, **options)
            sessions.append(self)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    network = onnxruntime_network(bundle.folder / "model.onnx")
    sessions[0]._sess = Failing(sessions[0]._sess)
    with pytest.raises(ParityError, match=r"ONNX Runtime failed on patches of shape .*out of memory"):
        network(np.zeros((1, 1, 16, 32, 32), np.float32))


def test_an_entry_for_the_cpu_is_built_anew_where_the_last_was_for_a_gpu(bundle: Bundle, tmp_path: Path) -> None:
    build_entry(bundle.folder, tmp_path, ONNXRUNTIME)
    built = tmp_path / "unet" / "1" / "build.json"
    assert build_json(built.parent)["gpu"] is None
    built.write_text(built.read_text().replace('"gpu": null', '"gpu": "NVIDIA H100"'))
    assert build_entry(bundle.folder, tmp_path, replace(ONNXRUNTIME, if_needed=True)).newest.version == 2


def test_unproven_bundle_is_refused_and_marked_when_accepted(trained_unet: Path, tmp_path: Path) -> None:
    model = load_trained_model(trained_unet, folds=(0,))
    bundle = export_model(model, tmp_path / "b", ExportOptions(accept_unproven=True))
    with pytest.raises(ParityError, match=r"is not proven: no real scan was given"):
        build_entry(bundle.folder, tmp_path / "r", ONNXRUNTIME)
    assert not (tmp_path / "r").exists()
    entry = build_entry(bundle.folder, tmp_path / "r", replace(ONNXRUNTIME, accept_unproven=True))
    assert entry.newest.spec.parity.state == "unproven"
    report = ParityReport.read(entry.newest.folder / "parity.json")
    assert not report.variants[0].proven
    assert "**UNPROVEN**" in (entry.newest.folder / "parity.md").read_text()


@pytest.mark.live
def test_every_run_with_an_unproven_model_warns(
    trained_unet: Path, ct_piece: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export_model(
        load_trained_model(trained_unet, folds=(0,)), tmp_path / "b", ExportOptions(name="unet", accept_unproven=True)
    )
    build_entry(bundle.folder, tmp_path / "r", replace(ONNXRUNTIME, accept_unproven=True))
    words = ["predict", "-i", str(ct_piece), "-o", str(tmp_path / "out"), "-m", "unet", "--disable_tta"]
    for _ in range(2):  # the second run has nothing left to do, and warns all the same
        assert main([*words, "--repository", str(tmp_path / "r"), "--c"]) == 0
        assert "unet is unproven: nobody has shown that it gives the labels" in capsys.readouterr().err
    (case,) = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    assert case["made_by"]["parity"] == "unproven"


def copy_with(bundle: Bundle, folder: Path, parity_set: ParitySet) -> Path:
    """A bundle with one set alone to prove it with."""
    others = [name for kind, name in PARITY_SETS.items() if kind != parity_set]
    return Path(shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns(*others)))


def broken_copy(bundle: Bundle, folder: Path, change: Callable[[onnx.ModelProto], None], parity_set: ParitySet) -> Path:
    """A bundle whose network was changed, with a report that names the new file: only the gate can tell."""
    copy_with(bundle, folder, parity_set)
    graph = onnx.load(folder / "model.onnx")
    change(graph)
    old = bundle.variant("fp32").sha256
    onnx.save(graph, folder / "model.onnx")
    report = folder / "parity.json"
    report.write_text(report.read_text().replace(old, sha256_of_file(folder / "model.onnx")))
    return folder


def scale_one_tensor(graph: onnx.ModelProto) -> None:
    item = next(item for item in graph.graph.initializer if len(item.dims) == 5 and item.dims[1] > 1)
    values = numpy_helper.to_array(item).copy()
    values[:, 0] *= 1.1  # one input channel: a norm behind it undoes a factor of all
    item.CopyFrom(numpy_helper.from_array(values, item.name))


def swap_label_channels(graph: onnx.ModelProto) -> None:
    last = next(node for node in graph.graph.node if graph.graph.output[0].name in node.output)
    for item in [item for item in graph.graph.initializer if item.name in last.input]:
        item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(item)[::-1]), item.name))


@pytest.mark.parametrize("backend", ["python", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("change", [scale_one_tensor, swap_label_channels])
def test_changed_network_is_refused_by_every_backend(
    bundle: Bundle, tmp_path: Path, backend: str, change: Callable[[onnx.ModelProto], None], parity_set: ParitySet
) -> None:
    broken = broken_copy(bundle, tmp_path / "b", change, parity_set)
    options = BuildOptions(backend=backend, runtime="onnxruntime")  # type: ignore[arg-type]
    with pytest.raises(ParityError, match=rf"does not give PyTorch's labels: {REFUSED[parity_set]}"):
        build_entry(broken, tmp_path / "r", options, compiler=OnnxAsPlan())  # type: ignore[arg-type]
    assert not (tmp_path / "r").exists()


def test_graph_that_lacks_one_flip_of_eight_is_not_built(
    trained_unet: Path, mirroring_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parity_set: ParitySet
) -> None:
    whole = mirroring_bundle
    monkeypatch.setattr("ctseg.deploy.onnx_graph.mirror_subsets", lambda axes: mirror_subsets(axes)[:-1])
    model = load_trained_model(trained_unet, folds=(0,))
    fewer = onnx_graph_of(model, whole.spec)
    broken = broken_copy(whole, tmp_path / "b", lambda graph: graph.CopyFrom(fewer), parity_set)
    with pytest.raises(ParityError, match=rf"does not give PyTorch's labels: {REFUSED[parity_set]}relative L2"):
        build_entry(broken, tmp_path / "r", ONNXRUNTIME)
    assert not (tmp_path / "r").exists()
    healthy = copy_with(whole, tmp_path / "h", parity_set)
    assert build_entry(healthy, tmp_path / "r", ONNXRUNTIME).newest.spec.parity.state == "proven"


def test_plan_that_overflows_is_refused(bundle: Bundle, tmp_path: Path, parity_set: ParitySet) -> None:
    compiler = OnnxAsPlan(scale=np.inf)
    alone = read_bundle(copy_with(bundle, tmp_path / "b", parity_set))
    with pytest.raises(ParityError, match=r"the logits are NaN or infinite \(an overflow of fp16\?\)"):
        tensorrt(alone, tmp_path / "r", compiler)
    assert not (tmp_path / "r").exists()


def test_repository_that_cannot_be_written_is_told_before_the_proof(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    lines: list[str] = []
    for backend in ("python", "onnxruntime", "tensorrt"):
        options = BuildOptions(backend=backend)  # type: ignore[arg-type]
        with pytest.raises(OutputError, match=r"unet: cannot write into .*file is read-only, or no folder"):
            build_entry(bundle.folder, tmp_path / "file" / "r", options, report=lines.append, compiler=OnnxAsPlan())  # type: ignore[arg-type]
    assert not lines


def test_onnxruntime_entry_is_for_tritons_own_backend(bundle: Bundle, tmp_path: Path) -> None:
    options = BuildOptions(backend="onnxruntime", precision="fp16", name="half")
    entry = build_entry(bundle.folder, tmp_path, options)
    assert entry.backend == "onnxruntime"
    assert entry.newest.spec.precision == "fp16"
    config = config_from_text((tmp_path / "half" / "config.pbtxt").read_text(), source="config")
    assert config.backend == "onnxruntime"
    assert config.default_model_filename == "model.onnx"
    assert config.max_batch_size == 3


def test_same_name_with_another_precision_or_backend_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    build_entry(bundle.folder, tmp_path, ONNXRUNTIME)
    with pytest.raises(SpecError, match=r"take another model name"):
        build_entry(bundle.folder, tmp_path, BuildOptions(backend="onnxruntime"))


def test_batch_limit_and_name_go_into_the_spec(bundle: Bundle, tmp_path: Path) -> None:
    options = replace(ONNXRUNTIME, name="other", max_batch_size=2)
    spec = build_entry(bundle.folder, tmp_path, options).newest.spec
    assert (spec.name, spec.max_batch_size) == ("other", 2)
    with pytest.raises(SpecError, match=r"name"):
        build_entry(bundle.folder, tmp_path, replace(ONNXRUNTIME, name="no spaces please"))


def test_bf16_needs_a_runtime_that_has_it(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctseg.deploy.build_python.available_runtimes", lambda: ("onnxruntime",))
    with pytest.raises(SetupError, match=r"only OpenVINO has bf16"):
        build_entry(bundle.folder, tmp_path, BuildOptions(precision="bf16"))
    with pytest.raises(SetupError, match=r"ONNX Runtime has no bf16"):
        build_entry(bundle.folder, tmp_path, BuildOptions(precision="bf16", backend="onnxruntime"))
    with pytest.raises(SpecError, match=r"has no bf16 network, only fp32, fp16: export it with that precision"):
        build_entry(bundle.folder, tmp_path, BuildOptions(precision="bf16", backend="tensorrt"), compiler=OnnxAsPlan())  # type: ignore[arg-type]


def test_what_is_built_by_default_is_exact_and_no_timing_decides(bundle: Bundle, tmp_path: Path) -> None:
    for folder, seconds in ((tmp_path / "a", 0.1), (tmp_path / "b", 9.9)):
        newest = build_entry(bundle.folder, folder, measure=lambda network, spec, s=seconds: s).newest
        info = build_json(newest.folder)
        assert str(info["runtime"]).startswith("openvino ")
        assert str(info["network"]).startswith("model.onnx in openvino ")
        assert newest.spec.parity.detail == info["network"]
        assert list(info["seconds_per_patch"].values()) == [seconds]  # type: ignore[attr-defined]
        assert newest.spec.parity.relative_l2 is not None
        assert newest.spec.parity.relative_l2 < 2e-6
        assert "InstanceNormalization" not in operators(newest.folder / "model.onnx")
        assert "InstanceNormalization" in operators(bundle.folder / "model.onnx")


def operators(file: Path) -> set[str]:
    return {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}


def test_an_exact_runtime_that_fails_the_gate_gives_way_to_the_next(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parity_set: ParitySet
) -> None:
    wrong = lambda model, **options: times(onnxruntime_network(model), 1.1)  # noqa: E731
    monkeypatch.setattr("ctseg.deploy.build_python.openvino_network", wrong)
    alone = copy_with(bundle, tmp_path / "b", parity_set)
    entry = build_entry(alone, tmp_path / "r", measure=lambda network, spec: 0.1)
    assert str(build_json(entry.newest.folder)["runtime"]).startswith("onnxruntime ")


@pytest.mark.parametrize("runtime", ["exact", "fast"])
def test_a_runtime_that_cannot_load_the_network_gives_way_to_the_next(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: RuntimeChoice
) -> None:
    def unloadable(model: Path, **options: object) -> Network:
        raise SpecError(f"{model}: OpenVINO cannot load it: no such operator")

    monkeypatch.setattr("ctseg.deploy.build_python.openvino_network", unloadable)
    lines: list[str] = []
    entry = build_entry(bundle.folder, tmp_path, BuildOptions(runtime=runtime), report=lines.append)
    assert str(build_json(entry.newest.folder)["runtime"]).startswith("onnxruntime ")
    assert any(line.endswith("OpenVINO cannot load it: no such operator") for line in lines)
    with pytest.raises(SpecError, match="OpenVINO cannot load it"):
        build_entry(bundle.folder, tmp_path / "alone", BuildOptions(runtime="openvino"))


def times(network: Network, factor: float) -> Network:
    return lambda patches: network(patches) * np.float32(factor)


def test_the_fastest_runtime_is_taken_only_where_that_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    for folder, seconds, fastest in (
        (tmp_path / "a", [0.3, 0.2], "onnxruntime"),
        (tmp_path / "b", [0.2, 0.3], "openvino"),
    ):
        given = iter(seconds)  # in the order in which they are tried
        options = BuildOptions(runtime="fast")
        newest = build_entry(bundle.folder, folder, options, measure=lambda network, spec, g=given: next(g)).newest
        info = build_json(newest.folder)
        assert str(info["runtime"]).startswith(f"{fastest} ")
        assert sorted(info["seconds_per_patch"].values()) == [0.2, 0.3]  # type: ignore[attr-defined]
        assert "InstanceNormalization" in operators(newest.folder / "model.onnx")
        assert not info["exact_sums"]


def test_a_float32_network_that_rounds_more_than_float32_is_refused_unless_fast_is_asked_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ctseg.deploy.build_python.onnxruntime_network",
        lambda model, **options: times(onnxruntime_network(model), 1 + 1e-4),
    )
    with pytest.raises(ParityError, match=r"relative L2 error 1.00e-04, at most 1e-05 is allowed") as error:
        build_entry(bundle.folder, tmp_path / "r", ONNXRUNTIME)
    assert error.value.settings == ("accept_unproven", "runtime")
    assert not (tmp_path / "r" / "unet").exists()
    monkeypatch.setattr("ctseg.deploy.build_python.available_runtimes", lambda: ("onnxruntime",))
    newest = build_entry(bundle.folder, tmp_path / "r", BuildOptions(runtime="fast")).newest
    assert newest.spec.parity.state == "proven"
    assert newest.spec.parity.relative_l2 == pytest.approx(1e-4, rel=0.1)


def test_an_entry_that_an_older_ctseg_built_with_other_sums_is_built_again(bundle: Bundle, tmp_path: Path) -> None:
    needed = replace(ONNXRUNTIME, if_needed=True)
    folder = build_entry(bundle.folder, tmp_path, needed).newest.folder
    assert build_entry(bundle.folder, tmp_path, needed).newest.version == 1
    info = build_json(folder)
    del info["exact_sums"]
    (folder / "build.json").write_text(json.dumps(info))
    assert build_entry(bundle.folder, tmp_path, needed).newest.version == 2
    assert build_entry(bundle.folder, tmp_path, replace(needed, runtime="fast")).newest.version == 3
    assert build_entry(bundle.folder, tmp_path, needed).newest.version == 4  # what would be served is not exact


def test_another_runtime_than_its_own_is_refused_for_the_onnxruntime_backend(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="backend runs ONNX Runtime: take the python backend") as error:
        build_entry(bundle.folder, tmp_path, BuildOptions(backend="onnxruntime", runtime="openvino"))
    assert error.value.settings == ("backend", "runtime")


def test_measured_is_the_shortest_of_several_calls_after_a_first(bundle: Bundle) -> None:
    ticks = iter([0.0, 0.5, 1.0, 1.2, 2.0, 2.4])
    calls: list[tuple[int, ...]] = []

    def network(patches: np.ndarray) -> np.ndarray:
        calls.append(patches.shape)
        return patches

    assert seconds_per_patch(network, bundle.spec, clock=lambda: next(ticks)) == pytest.approx(0.2)
    assert calls == [(1, 1, *bundle.spec.patch_size)] * 4


# --- Weights that lie beside the graph ----------------------------------------------------------


@pytest.mark.live
@pytest.mark.full
def test_network_with_its_weights_outside_gives_the_labels_of_one_file(
    large_bundle: Bundle, trained_unet: Path, export: Callable[..., Bundle], ct_piece: Path, tmp_path: Path
) -> None:
    one_file = export(trained_unet, folds=(0, 1), mirroring="graph", name="one_file", max_batch_size=3)
    maps = []
    for bundle in (large_bundle, one_file):
        build_entry(bundle.folder, tmp_path / "r", replace(ONNXRUNTIME, prove_live=True))
        words = ["predict", "-i", str(ct_piece), "-o", str(tmp_path / bundle.spec.name), "-m", bundle.spec.name]
        assert main([*words, "--repository", str(tmp_path / "r")]) == 0
        (file,) = (tmp_path / bundle.spec.name).glob("*.nii.gz")
        maps.append(np.asarray(nibabel.load(file).dataobj))
    entry = read_entry(tmp_path / "r" / "large")
    assert {path.name for path in entry.newest.folder.glob("model.onnx*")} == {"model.onnx", "model.onnx.data"}
    assert 0.01 < (maps[0] == 1).mean() < 0.99
    np.testing.assert_array_equal(maps[0], maps[1])


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_entry_has_the_weights_under_the_name_that_its_graph_says(
    large_bundle: Bundle, tmp_path: Path, backend: str
) -> None:
    options = BuildOptions(backend=backend, precision="fp16", if_needed=True)  # type: ignore[arg-type]
    version = build_entry(large_bundle.folder, tmp_path, options).newest
    names = {path.name for path in version.folder.iterdir() if path.suffix in (".onnx", ".data")}
    assert names == {"model.onnx", "model.fp16.onnx.data"}
    size = (version.folder / "model.fp16.onnx.data").stat().st_size
    assert build_json(version.folder)["data_files"] == {"model.fp16.onnx.data": size}
    assert sha256_of_network(version.folder / "model.onnx") == build_json(version.folder)["file_sha256"]
    patches = np.zeros((1, 1, 16, 32, 32), np.float32)
    assert np.isfinite(onnxruntime_network(version.folder / "model.onnx")(patches)).all()
    assert build_entry(large_bundle.folder, tmp_path, options).newest.version == 1  # nothing differs


def test_openvino_reads_the_weights_outside(large_bundle: Bundle, tmp_path: Path) -> None:
    entry = build_entry(large_bundle.folder, tmp_path, BuildOptions(runtime="openvino", threads=1))
    assert str(build_json(entry.newest.folder)["runtime"]).startswith("openvino ")
    assert (entry.newest.folder / "model.onnx.data").is_file()


def test_entry_that_has_lost_its_weights_is_named(large_bundle: Bundle, tmp_path: Path) -> None:
    folder = build_entry(large_bundle.folder, tmp_path, ONNXRUNTIME).newest.folder
    data = folder / "model.onnx.data"
    size = data.stat().st_size
    os.truncate(data, size - 1)
    with pytest.raises(SpecError, match=rf"expected {size} bytes of weights in .*, found {size - 1}: build the entry"):
        read_entry(tmp_path / "large")
    data.unlink()
    with pytest.raises(SpecError, match=r"found no such file: build the entry again"):
        read_entry(tmp_path / "large")


def test_plan_is_compiled_from_a_graph_with_its_weights_outside(large_bundle: Bundle, tmp_path: Path) -> None:
    for precision in ("fp16", "bf16"):
        options = BuildOptions(
            backend="tensorrt", precision=precision, name=f"plan_{precision}", accept_unproven=True  # type: ignore[arg-type]
        )  # fmt: skip
        compiler = OnnxAsPlan(types={precision: 5}, runs=large_bundle.folder / "model.onnx")
        entry = build_entry(large_bundle.folder, tmp_path, options, compiler=compiler)  # type: ignore[arg-type]
        assert entry.newest.spec.precision == precision
        assert compiler.files == [large_bundle.folder / f"model.{precision}.onnx"]
        assert not list(entry.newest.folder.glob("*.data"))  # the plan has them inside


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_bare_form_converts_a_graph_with_its_weights_outside(
    large_bundle: Bundle, tmp_path: Path, precision: str
) -> None:
    compiler = OnnxAsPlan(types={precision: 5}, runs=large_bundle.folder / "model.onnx")
    output = tmp_path / "model.plan"
    build_plan_file(large_bundle.folder / "model.onnx", output, PlanFileOptions(precision), compiler=compiler)  # type: ignore[arg-type]
    kinds = {item.data_type for item in onnx.load_from_string(output.read_bytes()).graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision] in kinds
    info = json.loads(Path(f"{output}.json").read_text())
    assert info["onnx_sha256"] == large_bundle.variant("fp32").sha256
    large_bundle_copy = Path(shutil.copytree(large_bundle.folder, tmp_path / "b"))
    (large_bundle_copy / "model.onnx.data").unlink()
    with pytest.raises(SpecError, match=r"its weights lie in model.onnx.data, which is no file beside it"):
        build_plan_file(large_bundle_copy / "model.onnx", output, PlanFileOptions(precision), compiler=compiler)  # type: ignore[arg-type]


@pytest.mark.full
@pytest.mark.live
@pytest.mark.timeout(7200)
def test_five_folds_of_a_large_residual_encoder_are_served(tmp_path: Path) -> None:
    """More than protobuf's 2 GiB of weights: nnU-Net's large residual encoder, a little wider, on a small patch."""
    architecture = unet_architecture(3, kind="ResidualEncoderUNet", features=(32, 64, 128, 256, 384, 384))
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    architecture["arch_kwargs"].update(n_blocks_per_stage=[1, 3, 4, 6, 6, 6], strides=strides)
    patch = (32, 64, 64)
    plans = make_plans(patch_size=patch, spacing=(2.0, 2.0, 2.0), architecture=architecture)
    folder = make_trained_folder(tmp_path / "model", plans, make_dataset(), folds=(0, 1, 2, 3, 4))
    noise = np.random.default_rng(1).standard_normal((1, *patch)).astype(np.float32)
    options = ExportOptions(name="large", max_batch_size=1)
    model = load_trained_model(folder)
    assert weight_bytes_of(model) > 2**31
    bundle = export_model(model, tmp_path / "bundle", options, cases=[PreparedCase("noise", noise)])
    del model
    assert (bundle.folder / "model.onnx.data").stat().st_size > 2**31
    built = BuildOptions(runtime="onnxruntime", prove_live=True)
    entry = build_entry(bundle.folder, tmp_path / "r", built, measure=lambda network, spec: 0.0)
    assert (entry.newest.folder / "model.onnx.data").stat().st_size > 2**31
    live = ParityReport.read(entry.newest.folder / "parity.json").variants[0].checks[1]
    assert live.network == "live server, large"
    assert max(item.relative_l2 for item in live.comparisons) < 1e-5


# --- TensorRT, with a compiler that needs no GPU ------------------------------------------------


def tensorrt(bundle: Bundle, repository: Path, compiler: OnnxAsPlan, **options: object) -> object:
    made = BuildOptions(backend="tensorrt", precision="fp16", name="plan", **options)  # type: ignore[arg-type]
    return build_entry(bundle.folder, repository, made, compiler=compiler)  # type: ignore[arg-type]


def test_plan_is_built_proven_and_described(bundle: Bundle, tmp_path: Path) -> None:
    compiler = OnnxAsPlan()
    tensorrt(bundle, tmp_path, compiler)
    assert [(item.min_batch, item.opt_batch, item.max_batch) for item in compiler.builds] == [(1, 3, 3)]
    folder = tmp_path / "plan" / "1"
    assert (folder / "model_sm89.plan").read_bytes() == (bundle.folder / "model.fp16.onnx").read_bytes()
    info = build_json(folder)
    assert info["tensorrt"] == "11.2.1.2"
    assert info["gpu"] == "Test GPU 8.9"
    assert info["profile"] == [1, 3, 3]
    assert info["engine_layers"] == {"fp32": 2, "fp16": 5}
    assert info["precision_proven_by"] == ["parsed network: 6 layers", "engine's tensors: 5 layers"]
    config = config_from_text((tmp_path / "plan" / "config.pbtxt").read_text(), source="config")
    assert dict(config.cc_model_filenames) == {"8.9": "model_sm89.plan"}
    assert read_entry(tmp_path / "plan").newest.spec.parity.state == "proven"


def test_plan_is_rebuilt_exactly_when_gpu_tensorrt_or_onnx_differ(bundle: Bundle, tmp_path: Path) -> None:
    first = OnnxAsPlan()
    tensorrt(bundle, tmp_path, first)
    tensorrt(bundle, tmp_path, first, if_needed=True)
    assert len(first.builds) == 1
    newer = OnnxAsPlan(version="11.4.0.106")
    tensorrt(bundle, tmp_path, newer, if_needed=True)
    tensorrt(bundle, tmp_path, newer, if_needed=True)
    assert len(newer.builds) == 1
    assert read_entry(tmp_path / "plan").newest.version == 2


def test_plan_for_another_gpu_joins_the_same_version(bundle: Bundle, tmp_path: Path) -> None:
    tensorrt(bundle, tmp_path, OnnxAsPlan("8.9"))
    other = OnnxAsPlan("9.0")
    tensorrt(bundle, tmp_path, other, if_needed=True)
    tensorrt(bundle, tmp_path, other, if_needed=True)
    assert len(other.builds) == 1
    entry = read_entry(tmp_path / "plan")
    assert [item.version for item in entry.versions] == [1]
    assert {path.name for path in entry.newest.folder.glob("*.plan")} == {"model_sm89.plan", "model_sm90.plan"}
    assert build_json(entry.newest.folder, "build_sm90.json")["gpu"] == "Test GPU 9.0"


def test_plan_without_the_precision_that_was_asked_for_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"expected a fp16 engine, found no fp16 in the engine"):
        tensorrt(bundle, tmp_path / "r", OnnxAsPlan(types={"fp32": 9}))
    assert not (tmp_path / "r").exists()


def test_plan_that_computes_something_else_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"plan of model.fp16.onnx in TensorRT 11.2.1.2 on Test GPU"):
        tensorrt(bundle, tmp_path / "r", OnnxAsPlan(scale=1.1))
    assert not (tmp_path / "r").exists()


def test_bare_form_writes_plan_and_description(bundle: Bundle, tmp_path: Path) -> None:
    compiler = OnnxAsPlan()
    output = tmp_path / "out" / "model.plan"
    build_plan_file(bundle.folder / "model.onnx", output, PlanFileOptions("fp16"), compiler=compiler)  # type: ignore[arg-type]
    assert onnx.load_from_string(output.read_bytes()).graph.initializer
    info = json.loads(Path(f"{output}.json").read_text())
    assert info["precision"] == "fp16"
    assert 1e-6 < info["relative_l2_random_patches"] < 5e-3
    with pytest.raises(ParityError, match=r"relative L2"):
        build_plan_file(bundle.folder / "model.onnx", output, compiler=OnnxAsPlan(scale=1.1))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"not an ONNX file"):
        build_plan_file(bundle.folder / "parity.json", output, compiler=compiler)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        (onnx.TensorProto.DOUBLE, ["batch", 1, 8, 8], "expected tensor input of FP32 or FP16, found DOUBLE"),
        (onnx.TensorProto.FLOAT, ["batch", 1, "y", "x"], "dynamic in the batch only, found shapes"),
        (onnx.TensorProto.FLOAT, ["batch", 9], "in 2-D or 3-D"),
    ],
)
def test_bare_form_refuses_a_graph_that_is_no_segmentation_network(
    tmp_path: Path, kind: int, shape: list[object], words: str
) -> None:
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "g", values[:1], values[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    with pytest.raises(SpecError, match=words):
        build_plan_file(tmp_path / "model.onnx", tmp_path / "model.plan", compiler=OnnxAsPlan())  # type: ignore[arg-type]
    assert not (tmp_path / "model.plan").exists()


def test_without_a_gpu_the_command_says_so(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    for command in (
        ["build", str(bundle.folder), "--repository", str(tmp_path), "--backend", "tensorrt"],
        [
            "build",
            str(bundle.folder / "model.onnx"),
            "-o",
            str(tmp_path / "m.plan"),
            "--precision",
            "fp16",
            "--workspace_mb",
            "64",
        ],
    ):
        assert main(command) == 2
        assert "no NVIDIA driver on this machine" in capsys.readouterr().err
    assert main(["build", str(bundle.folder)]) == 2
    assert "--repository DIR, or the bare form" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the live server ----------------------------------------------------------------------------


class Served:
    """A server's answers, changed on their way."""

    def __init__(self, bundle: Bundle, *, scale: float = 1.0, spec: ModelSpec | None = None) -> None:
        self.spec = spec or bundle.spec
        self.max_batch_size, self.max_in_flight = self.spec.max_batch_size, 1
        self.identity = Identity(self.spec.name, 1, self.spec.digest, (), "in process")
        self._network, self._scale = onnxruntime_network(bundle.folder / "model.onnx"), np.float32(scale)

    def predict(self, patches: np.ndarray) -> np.ndarray:
        return self._network(patches) * self._scale


def test_live_answers_are_compared_with_pytorch(bundle: Bundle, tmp_path: Path, parity_set: ParitySet) -> None:
    bundle = read_bundle(copy_with(bundle, tmp_path / "b", parity_set))
    assert check_live(Served(bundle), bundle, "fp32").proven_with == (parity_set,)
    assert not check_live(Served(bundle, scale=1.01), bundle, "fp32").passed
    other = bundle.spec.model_copy(update={"network_sha256": "0" * 64})
    with pytest.raises(SpecError, match=r"the server serves network 000000000000"):
        check_live(Served(bundle, spec=other), bundle, "fp32")


def test_live_answers_are_held_to_the_limits_that_the_entry_was_built_with(bundle: Bundle) -> None:
    for detail, off, passes in (
        ("model.onnx in onnxruntime on the CPU with exact sums", 1e-4, False),
        ("model.onnx in onnxruntime on the CPU with exact sums", 0, True),
        ("plan of model.onnx in TensorRT", 1e-4, True),
        ("plan of model.onnx in TensorRT", 1e-2, False),
    ):
        for relative_l2 in (1e-7, 1e-4):  # of the scans alone: it says nothing of the limits
            parity = bundle.spec.parity.model_copy(update={"detail": detail, "relative_l2": relative_l2})
            served = Served(bundle, scale=1 + off, spec=bundle.spec.model_copy(update={"parity": parity}))
            assert check_live(served, bundle, "fp32").passed == passes, (detail, off)


@pytest.mark.live
def test_live_proof_runs_through_a_real_server(bundle: Bundle, tmp_path: Path) -> None:
    entry = build_entry(bundle.folder, tmp_path, replace(ONNXRUNTIME, prove_live=True))
    report = ParityReport.read(entry.newest.folder / "parity.json")
    assert [check.network for check in report.variants[0].checks][1] == "live server, unet"
    assert report.variants[0].proven


def test_building_loads_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from ctseg.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print([name for name in ('torch', 'nnunetv2', 'monai') if name in sys.modules])\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", program, "build", str(bundle.folder), "--repository", str(tmp_path)]
    done = subprocess.run([*command, "--runtime", "onnxruntime"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
