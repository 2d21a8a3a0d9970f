"""Cascades and ensembles from nnU-Net's results to label maps, by the commands of the docs, on a real server."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest

from ctseg.cli.main import main
from ctseg.deploy.build import BuildOptions, build_entry
from ctseg.deploy.recipe_build import build_recipe
from ctseg.deploy.recipe_bundle import RECIPE_PARITY_NAME, read_recipe_bundle
from ctseg.errors import ParityError
from ctseg.serving.entries import Entry, read_recipe, versions_on_disk
from tests.support.nnunet_plans import make_dataset, make_plans
from tests.support.nnunet_reference import (
    make_trained_folder,
    reference_predictor,
    reference_probabilities,
    reference_segmentation,
)

LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
CASCADE = "3d_cascade_fullres"
DATASET = "Dataset999_Test"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's results with a cascade of random networks; every configuration has the same plans."""
    plans = make_plans()
    fullres = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_lowres"] = {**deepcopy(fullres), "spacing": [6.0, 3.0, 3.0], "next_stage": CASCADE}
    plans["configurations"][CASCADE] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    root = tmp_path_factory.mktemp("results")
    for seed, configuration in enumerate(("3d_fullres", "3d_lowres", CASCADE)):
        folder = root / DATASET / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        make_trained_folder(
            folder, plans, make_dataset(LABELS), mirror_axes=None, seed=seed, configuration=configuration
        )
    return root


def folder_of(results: Path, configuration: str) -> Path:
    return results / DATASET / f"nnUNetTrainer__nnUNetPlans__{configuration}"


def predicted(repository: Path, model: str, scan: Path, out: Path, *words: str) -> np.ndarray:
    command = ["predict", "-i", str(scan), "-o", str(out), "-m", model, "--repository", str(repository), *words]
    assert main(command) == 0
    return np.asarray(nib.load(out / "piece.nii.gz").dataobj).transpose(2, 1, 0)


@pytest.mark.live
def test_a_cascade_from_results_to_labels(
    results: Path, ct_piece: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, repository = tmp_path / "bundle", tmp_path / "models"
    command = ["export", "-i", str(results), "-c", CASCADE, "-o", str(bundle), "--name", "liver"]
    assert main([*command, "--cases", str(ct_piece)]) == 0
    told = capsys.readouterr().out
    assert "cascade of liver_3d_lowres, liver_3d_cascade_fullres, each a bundle" in told
    assert "liver as a whole, a real scan: 0.0" in told
    read = read_recipe_bundle(bundle)
    second = read.members[f"liver_{CASCADE}"].spec
    assert second.previous_stage is not None
    assert second.previous_stage.labels == (1, 2, 3)
    assert second.previous_stage.network_sha256 == read.members["liver_3d_lowres"].spec.network_sha256
    assert second.provenance.tools["batchgenerators"]
    (check,) = json.loads((bundle / RECIPE_PARITY_NAME).read_text())["checks"]
    assert check["problems"] == []
    assert check["first_stages"]["liver_3d_lowres"] <= 2
    assert (
        f"; of its first stage liver_3d_lowres {check['first_stages']['liver_3d_lowres']} of {check['voxels']}" in told
    )

    build = ["build", str(bundle), "--repository", str(repository), "--runtime", "onnxruntime", "--prove_live"]
    assert main(build) == 0
    told = capsys.readouterr().out
    assert "  liver as a whole, on a live server, the phantom: 0.0" in told
    assert f"{repository / 'liver'}: version 1, cascade of liver_3d_lowres" in told
    first_reference = reference_predictor(folder_of(results, "3d_lowres"))
    previous = reference_segmentation(first_reference, [ct_piece])
    reference = reference_predictor(folder_of(results, CASCADE))
    expected = reference_segmentation(reference, [ct_piece], previous=previous)
    labels = predicted(repository, "liver", ct_piece, tmp_path / "out")
    assert len(np.unique(expected)) > 1
    assert (labels != expected).mean() <= 1e-4

    with pytest.raises(ParityError, match=r"do not give the labels of the bundle's FP32 networks: the phantom: "):
        build_recipe(bundle, repository, BuildOptions(runtime="onnxruntime", prove_live=True), build=built_and_spoiled)
    assert versions_on_disk(repository / "liver") == [1]


def built_and_spoiled(folder: Path, repository: Path, options: BuildOptions, **more: Any) -> Entry:
    """Build an entry that passes, and turn the sign of its network's answer afterwards."""
    entry = build_entry(folder, repository, replace(options, prove_live=False), **more)
    file = entry.newest.folder / "model.onnx"
    model = onnx.load(file)
    (answer,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = [f"{name}_before" if name == answer.name else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", [f"{answer.name}_before"], [answer.name]))
    onnx.save(model, file)
    return entry


def test_mixed_networks_that_fail_are_left_out_of_a_recipe_each_by_name(
    results: Path, ct_piece: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(job: Any, precision: str, graph: Any) -> None:
        raise ParityError(f"{job.spec.name}: overflow of {precision}", settings=("accept_unproven",))

    monkeypatch.setattr("ctseg.deploy.export._half_variant", fails)
    bundle = tmp_path / "bundle"
    command = ["export", "-i", str(results), "-c", CASCADE, "-o", str(bundle), "--name", "liver"]
    assert main([*command, "--cases", str(ct_piece), "--precision", "fp32", "fp16"]) == 2
    told = capsys.readouterr().err
    assert "liver_3d_lowres: overflow of fp16; liver_3d_cascade_fullres: overflow of fp16; " in told
    assert f"{bundle} is written without them, with what passed (see --precision, --accept_unproven)" in told
    read = read_recipe_bundle(bundle)
    assert {item.precision for member in read.members.values() for item in member.report.variants} == {"fp32"}


@pytest.mark.live
def test_the_ensemble_that_find_best_chose_is_exported_whole(
    results: Path, ct_piece: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    def member(configuration: str, **changes: Any) -> dict[str, Any]:
        return {"trainer": "nnUNetTrainer", "plans": "nnUNetPlans", "configuration": configuration, **changes}

    best = {
        "schema_version": 2,
        "dataset": DATASET,
        "members": [member("3d_fullres"), member(CASCADE)],
        "folds": [0],
        "postprocessing": [{"kind": "keep_largest", "labels": [2]}],
    }
    (tmp_path / "best.json").write_text(json.dumps(best))
    monkeypatch.setenv("nnUNet_results", str(results))
    bundle, repository = tmp_path / "bundle", tmp_path / "models"
    export = ["export", "--from", str(tmp_path / "best.json"), "-o", str(bundle), "--cases", str(ct_piece)]
    assert main(export) == 0
    assert (
        main(["build", str(bundle), "--repository", str(repository), "--runtime", "onnxruntime", "--name", "both"]) == 0
    )
    found = read_recipe(repository / "both")
    assert found is not None
    assert found[0].step.kind == "ensemble"
    assert [member.model for member in found[0].members] == ["test_3d_fullres", "test_3d_lowres", f"test_{CASCADE}"]

    previous = reference_segmentation(reference_predictor(folder_of(results, "3d_lowres")), [ct_piece])
    fullres, second = (reference_predictor(folder_of(results, name)) for name in ("3d_fullres", CASCADE))
    total = reference_probabilities(fullres, [ct_piece]).astype(np.float32)
    total += reference_probabilities(second, [ct_piece], previous=previous)
    expected = np.asarray(fullres.label_manager.convert_probabilities_to_segmentation(total / 2))
    expected = remove_all_but_largest_component_from_segmentation(expected, 2)
    labels = predicted(repository, "both", ct_piece, tmp_path / "out", "--save_probabilities")
    assert (labels != expected).mean() <= 1e-3  # one voxel on a tie can join two components
    with np.load(tmp_path / "out" / "piece.npz") as saved:
        np.testing.assert_allclose(saved["probabilities"], total / 2, rtol=0, atol=1e-3)


def test_a_second_stage_without_its_first_is_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone" / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    alone.parent.mkdir()
    alone.symlink_to(folder_of(results, CASCADE))
    assert main(["export", "-i", str(alone), "-o", str(tmp_path / "b"), "--accept_unproven"]) == 2
    told = capsys.readouterr().err
    assert "its first stage is not beside it: expected nnUNetTrainer__nnUNetPlans__3d_lowres" in told
    assert not (tmp_path / "b").exists()
