"""A colleague's zip becomes a model that is served, in one step."""

import json
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctseg.cli.main import main
from ctseg.deploy.bundle import Bundle
from ctseg.deploy.deployment import DeployOptions, deploy
from ctseg.deploy.export import ExportOptions
from ctseg.errors import CheckpointError, ParityError, SpecError
from ctseg.nnunet.choosing import choose
from ctseg.nnunet.results_folder import Choice
from ctseg.serving.entries import read_entry

DATASET = "Dataset999_Test"


@pytest.fixture
def scan(demo_data: Path, tmp_path: Path) -> Path:
    """A piece of a real scan, as a file."""
    image = nibabel.load(sorted((demo_data / "images").glob("*.nii.gz"))[0])
    nibabel.save(image.slicer[30:110, 30:110, 10:34], tmp_path / "scan_0000.nii.gz")
    return tmp_path / "scan_0000.nii.gz"


def results(trained: Path, root: Path, dice: dict[str, float]) -> Path:
    """``nnUNet_results`` with trained models, as nnU-Net leaves them after a validation."""
    for configuration, value in dice.items():
        folder = root / DATASET / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        shutil.copytree(trained, folder)
        (folder / "dataset_fingerprint.json").write_text("{}")
        for fold in folder.glob("fold_*"):
            (fold / "validation").mkdir()
            (fold / "validation" / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": value}}))
            (fold / "progress.png").write_bytes(b"")
    return root


def exported_by_nnunet(root: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, *configurations: str) -> Path:
    """The zip that nnU-Net's own exporter writes."""
    from nnunetv2.model_sharing import model_export
    from nnunetv2.utilities import file_path_utilities

    for module in (model_export, file_path_utilities):
        monkeypatch.setattr(module, "nnUNet_results", str(root))
    model_export.export_pretrained_model(DATASET, str(archive), configurations, folds=(0, 1))
    return archive


@pytest.mark.full
def test_the_zip_of_nnunets_own_exporter_is_deployed_and_proven(
    trained_unet: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = results(trained_unet, tmp_path / "results", {"3d_fullres": 0.5})
    archive = exported_by_nnunet(root, tmp_path / "model.zip", monkeypatch, "3d_fullres")
    temporary, repository = tmp_path / "temporary", tmp_path / "models"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    words = ["deploy", str(archive), "--cases", str(scan), "--repository", str(repository), "--backend", "python"]
    assert main(words) == 0
    entry = read_entry(repository / "test")
    assert entry.newest.spec.parity.state == "proven"
    assert entry.newest.spec.provenance.folds == ("0", "1")
    assert {path.name for path in repository.iterdir() if path.is_dir()} == {"test", "test_scan"}
    said = capsys.readouterr().out
    assert f"next: `ctseg predict -i scans -o labels -m test --repository {repository}`" in said
    assert "live server" in said
    assert not [path for path in temporary.iterdir() if "ctseg" in path.name]


def test_a_scan_that_is_missing_is_told_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.zip").write_bytes(b"no zip")
    model, scan, output = (str(tmp_path / name) for name in ("model.zip", "scan.nii.gz", "output"))
    for words in (["deploy", model, "--repository", output], ["export", "-i", model, "-o", output]):
        assert main([*words, "--cases", scan]) == 2
        assert capsys.readouterr().err == (
            f"InputError: {tmp_path / 'scan.nii.gz'}: expected a scan or a folder of scans: no such file or folder\n"
        )


def test_a_scan_that_cannot_be_used_leaves_no_repository(trained_unet: Path, tmp_path: Path) -> None:
    (tmp_path / "scan_0000.nii.gz").write_bytes(b"no scan")
    words = ["deploy", str(trained_unet), "--cases", str(tmp_path / "scan_0000.nii.gz")]
    assert main([*words, "--repository", str(tmp_path / "models"), "--backend", "python"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"scan_0000.nii.gz"}


def test_of_several_configurations_one_is_asked_for_the_best_first(
    trained_unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = results(trained_unet, tmp_path / "results", {"3d_fullres": 0.5, "3d_lowres": 0.75})
    archive = exported_by_nnunet(root, tmp_path / "model.zip", monkeypatch, "3d_fullres", "3d_lowres")
    capsys.readouterr()
    assert main(["deploy", str(archive), "--repository", str(tmp_path / "models")]) == 2
    assert capsys.readouterr().err == (
        f"CheckpointError: {archive}: 2 trained models: nnUNetTrainer__nnUNetPlans__3d_lowres (validation Dice "
        "0.7500), nnUNetTrainer__nnUNetPlans__3d_fullres (validation Dice 0.5000): choose a configuration, or take "
        "'best' (see --configuration, --trainer, --plans)\n"
    )
    best = choose(archive, ["best"])
    assert best.choices == (Choice("nnUNetTrainer", "nnUNetPlans", "3d_lowres"),)
    assert best.why == "nnUNetTrainer__nnUNetPlans__3d_lowres: the highest validation Dice, 0.7500"
    assert choose(archive, ["3d_fullres"]).choices == (Choice(None, None, "3d_fullres"),)


def test_the_best_is_what_nnunets_comparison_chose_where_that_is_there(trained_unet: Path, tmp_path: Path) -> None:
    root = results(trained_unet, tmp_path / "results", {"3d_fullres": 0.5, "3d_lowres": 0.75})
    selected = [
        {"trainer": "nnUNetTrainer", "plans_identifier": "nnUNetPlans", "configuration": name}
        for name in ("3d_lowres", "3d_fullres")
    ]
    information = {"best_model_or_ensemble": {"selected_model_or_models": selected}}
    (root / DATASET / "inference_information.json").write_text(json.dumps(information))
    assert [choice.configuration for choice in choose(root, ["best"]).choices] == ["3d_lowres", "3d_fullres"]


def test_a_best_that_nothing_tells_is_not_guessed(trained_unet: Path, tmp_path: Path) -> None:
    root = results(trained_unet, tmp_path / "results", {"3d_fullres": float("nan"), "3d_lowres": float("nan")})
    with pytest.raises(CheckpointError, match=r"nothing in it says which of .* is the best: choose a configuration"):
        choose(root, ["best"])


def test_a_zip_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as zipped:
        zipped.writestr("../plans.json", "{}")
    assert main(["deploy", str(tmp_path / "model.zip"), "--repository", str(tmp_path / "models")]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip"}


def test_errors_name_the_zip_and_not_where_it_was_unpacked(
    trained_unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, folder = tmp_path / "model.zip", f"{DATASET}/{trained_unet.name}"
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in ("plans.json", "dataset.json"):
            zipped.write(trained_unet / name, f"{folder}/{name}")
        zipped.write(trained_unet / "fold_0" / "checkpoint_final.pth", f"{folder}/fold_0/checkpoint_best.pth")
    assert main(["deploy", str(archive), "--repository", str(tmp_path / "models")]) == 2
    assert capsys.readouterr().err == (
        f"CheckpointError: {archive}/{folder}: no fold has checkpoint_final.pth; found checkpoint_best.pth: finish the "
        "training, or choose another checkpoint (see --checkpoint)\n"
    )


def test_trained_models_of_several_data_sets_are_not_compared(
    trained_unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset in (DATASET, "Dataset998_Other"):
        shutil.copytree(trained_unet, tmp_path / "results" / dataset / trained_unet.name)
    words = ["deploy", str(tmp_path / "results"), "--repository", str(tmp_path / "models")]
    for chosen in ([], ["-c", "best"], ["-c", "3d_fullres"]):
        assert main([*words, *chosen]) == 2
        assert capsys.readouterr().err == (
            f"CheckpointError: {tmp_path / 'results'}: trained models of several data sets: Dataset998_Other, "
            f"{DATASET}: give the folder of one of them\n"
        )


def test_a_failure_leaves_what_was_in_the_repository(trained_unet: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "other").mkdir(parents=True)
    (tmp_path / "scan_0000.nii.gz").write_bytes(np.zeros(9, np.uint8).tobytes())
    words = ["deploy", str(trained_unet), "--cases", str(tmp_path / "scan_0000.nii.gz"), "--backend", "python"]
    assert main([*words, "--repository", str(tmp_path / "models")]) == 2
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"other"}


def test_what_another_deployment_has_put_there_meanwhile_stays_where_this_one_fails(
    trained_unet: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        (tmp_path / "models" / bundle.spec.name).mkdir(parents=True)
        raise ParityError("this one fails")

    monkeypatch.setattr("ctseg.deploy.deployment.export_trained", lambda *_, **__: bundle)
    monkeypatch.setattr("ctseg.deploy.deployment.build_entry", build)
    with pytest.raises(ParityError):
        deploy(trained_unet, tmp_path / "models", DeployOptions(backend="python"))
    assert [path.name for path in (tmp_path / "models").iterdir()] == [bundle.spec.name]


@pytest.mark.parametrize("name", ["a b/c", "_body", "../body", "body_scan", "a" * 129, "körper", "body\n"])
def test_a_name_that_no_model_can_have_is_refused_before_anything_is_read(name: str) -> None:
    for options in (DeployOptions, ExportOptions):
        with pytest.raises(SpecError) as refused:
            options(name=name)
        assert refused.value.settings == ("name",)
