"""Models as older nnU-Nets, wrappers and other people leave them: loaded as nnU-Net loads them, or refused."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctseg.deploy.trained_model import load_trained_model
from ctseg.deploy.trained_recipe import load_trained_recipe
from ctseg.errors import CheckpointError
from ctseg.model_spec import KeepLargest
from ctseg.nnunet.results_folder import Choice
from tests.support.nnunet_reference import make_dataset, make_plans, make_trained_folder, reference_predictor


@pytest.fixture
def copy_of_unet(trained_unet: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(trained_unet, tmp_path / trained_unet.name))
    shutil.rmtree(folder / "fold_1")
    return folder


def checkpoint_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / "fold_0" / "checkpoint_final.pth"
    return file, torch.load(file, weights_only=False)


def answer(network: torch.nn.Module) -> torch.Tensor:
    patch = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 16, 32, 32)).astype(np.float32))
    with torch.inference_mode():
        return network(patch)


def nnunets_answer(folder: Path) -> torch.Tensor:
    reference = reference_predictor(folder)
    reference.network.load_state_dict(reference.list_of_parameters[0])
    return answer(reference.network.eval())


def test_weights_in_bfloat16_are_what_nnunet_makes_of_them(copy_of_unet: Path) -> None:
    file, content = checkpoint_of(copy_of_unet)
    before = load_trained_model(copy_of_unet).network_sha256
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in content["network_weights"].items()}
    torch.save({**content, "network_weights": weights}, file)
    model = load_trained_model(copy_of_unet)
    assert model.network_sha256 != before
    torch.testing.assert_close(answer(model.networks[0]), nnunets_answer(copy_of_unet), rtol=0, atol=0)


def test_what_torch_wrote_before_it_used_zip_files_is_read(copy_of_unet: Path) -> None:
    before = load_trained_model(copy_of_unet).network_sha256
    file, content = checkpoint_of(copy_of_unet)
    torch.save(content, file, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(file)
    assert load_trained_model(copy_of_unet).network_sha256 == before


def test_arrays_in_the_log_are_read(copy_of_unet: Path) -> None:
    file, content = checkpoint_of(copy_of_unet)
    torch.save({**content, "logging": {"dice_per_class": [np.array([0.5, 0.25]), np.float64(1)]}}, file)
    assert load_trained_model(copy_of_unet).folds == ("0",)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_that_wrappers_put_in_front_are_taken_off(copy_of_unet: Path, prefix: str) -> None:
    file, content = checkpoint_of(copy_of_unet)
    plain = load_trained_model(copy_of_unet)
    weights = {f"{prefix}{name}": tensor for name, tensor in content["network_weights"].items()}
    torch.save({**content, "network_weights": weights}, file)
    torch.testing.assert_close(
        answer(load_trained_model(copy_of_unet).networks[0]), answer(plain.networks[0]), rtol=0, atol=0
    )
    weights.popitem()
    torch.save({**content, "network_weights": weights}, file)
    with pytest.raises(CheckpointError, match=r"fold_0: the weights do not fit the network that the plans describe"):
        load_trained_model(copy_of_unet)


def test_a_zip_may_have_other_folders_on_top(copy_of_unet: Path, tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in copy_of_unet.rglob("*.*"):
            inside = Path("share/nnUNet_results/Dataset999_Test") / copy_of_unet.name / file.relative_to(copy_of_unet)
            zipped.write(file, inside)
    assert load_trained_model(archive).network_sha256 == load_trained_model(copy_of_unet).network_sha256


OLD_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
class nnUNetTrainerOld(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        return get_network_from_plans(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
            num_input_channels, num_output_channels, allow_init=True, deep_supervision=enable_deep_supervision)
"""


def test_a_trainer_written_for_nnunet_2_3_to_2_6_is_asked_in_its_own_words(
    copy_of_unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "old.py").write_text(OLD_TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers))
    file, content = checkpoint_of(copy_of_unet)
    plain = load_trained_model(copy_of_unet)
    torch.save({**content, "trainer_name": "nnUNetTrainerOld"}, file)
    with pytest.raises(CheckpointError, match="by its own code"):
        load_trained_model(copy_of_unet)
    model = load_trained_model(copy_of_unet, trust=True)
    torch.testing.assert_close(answer(model.networks[0]), answer(plain.networks[0]), rtol=0, atol=0)


FIRST_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
class nnUNetTrainerFirst(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, dataset_json, configuration_manager, num_input_channels,
                                   enable_deep_supervision=True):
        return configuration_manager.UNet_class_name
"""


def test_a_trainer_written_for_nnunet_2_2_is_refused_as_nnunet_refuses_it(
    copy_of_unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "first.py").write_text(FIRST_TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers))
    file, content = checkpoint_of(copy_of_unet)
    torch.save({**content, "trainer_name": "nnUNetTrainerFirst"}, file)
    with pytest.raises(CheckpointError, match=r"nnUNetTrainerFirst was written for nnU-Net 2\.0 to 2\.2.*rewrite it"):
        load_trained_model(copy_of_unet, trust=True)
    with pytest.raises(AttributeError):
        reference_predictor(copy_of_unet)


def test_a_model_laid_out_as_totalsegmentators_are_is_read(tmp_path: Path) -> None:
    plans = make_plans(reader="NibabelIOWithReorient", name="Dataset297_TotalSegmentator_total_3mm_1559subj")
    folder = tmp_path / plans["dataset_name"] / "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres"
    make_trained_folder(folder, plans, make_dataset(), mirror_axes=None)
    file, content = checkpoint_of(folder)
    torch.save({**content, "trainer_name": "nnUNetTrainer_4000epochs_NoMirroring"}, file)
    model = load_trained_model(tmp_path)
    assert (model.trainer, model.mirror_axes) == ("nnUNetTrainer_4000epochs_NoMirroring", ())
    assert model.default_name == "totalsegmentator_total_3mm_1559subj"
    torch.testing.assert_close(answer(model.networks[0]), nnunets_answer(folder), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("Dataset012_Größe und Länge", "grosse_und_lange"),
        ("Dataset012_CT Liver (2024)", "ct_liver_2024"),
        ("Dataset012_肝臓", "model"),
        ("Dataset012_" + "x" * 200, "x" * 100),
    ],
)
def test_names_of_data_sets_become_names_that_triton_takes(tmp_path: Path, dataset: str, name: str) -> None:
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    make_trained_folder(folder, make_plans(name=dataset), make_dataset())
    model = load_trained_model(folder)
    assert model.default_name == name
    model.spec(name=model.default_name, mirroring="client", max_batch_size=1)


def test_a_zip_of_several_models_gives_their_ensemble_with_its_postprocessing(
    copy_of_unet: Path, tmp_path: Path
) -> None:
    other = copy_of_unet.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres")
    plans = make_plans(configuration="3d_lowres", spacing=(6.0, 3.0, 3.0))
    make_trained_folder(other, plans, make_dataset(), seed=5)
    steps = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": 1}],
    }
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for folder in (copy_of_unet, other):
            for file in folder.rglob("*.*"):
                zipped.write(file, Path("Dataset999_Test") / folder.name / file.relative_to(folder))
        ensemble = f"Dataset999_Test/ensembles/ensemble___{copy_of_unet.name}___{other.name}___0"
        zipped.writestr(f"{ensemble}/postprocessing.json", json.dumps(steps))
    choices = [(archive, Choice(configuration=name)) for name in ("3d_lowres", "3d_fullres")]
    trained = load_trained_recipe(choices)
    assert [stage.model.configuration for stage in trained.members] == ["3d_lowres", "3d_fullres"]
    assert trained.postprocessing == (KeepLargest(labels=(1,)),)
    with pytest.raises(CheckpointError, match=r"model.zip: 2 trained models fit, choose"):
        load_trained_recipe([(archive, Choice())])
