"""Trained models are read completely or refused; nothing foreign runs."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ctseg.deploy.reference import torch_network
from ctseg.deploy.trained_model import load_trained_model
from ctseg.errors import CheckpointError, CtsegError
from ctseg.model_spec import KeepLargest
from ctseg.nnunet.results_folder import Choice
from tests.support.nnunet_reference import make_dataset, make_plans, make_trained_folder, reference_predictor


@pytest.fixture
def copy_of_unet(trained_unet: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_unet, tmp_path / trained_unet.name))


def change_checkpoint(folder: Path, **changes: object) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    torch.save({**content, **changes}, file)


def change_plans(folder: Path, **changes: object) -> None:
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"].update(changes)
    (folder / "plans.json").write_text(json.dumps(plans))


def test_logits_are_those_of_nnunets_own_predictor_with_folds_and_flips(trained_unet: Path) -> None:
    model = load_trained_model(trained_unet)
    assert model.folds == ("0", "1")
    assert model.mirror_axes == (0, 1, 2)
    spec = model.spec(name="unet", mirroring="graph", max_batch_size=1)
    predictor = reference_predictor(trained_unet, folds=(0, 1))
    patch = np.random.default_rng(3).standard_normal((1, 1, *spec.patch_size)).astype(np.float32)
    expected = torch.zeros((1, spec.num_heads, *spec.patch_size))
    with torch.inference_mode():
        for weights in predictor.list_of_parameters:
            predictor.network.load_state_dict(weights)
            predictor.network.eval()
            expected += predictor._internal_maybe_mirror_and_predict(torch.from_numpy(patch)) / 2
    np.testing.assert_allclose(torch_network(model, spec)(patch), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_spec_says_what_the_plans_say(trained_unet: Path) -> None:
    steps = (KeepLargest(labels=(1,)),)
    model = load_trained_model(trained_unet, folds=(1,), postprocessing=steps)
    spec = model.spec(name="unet", mirroring="client", max_batch_size=2)
    assert (spec.patch_size, spec.spacing_mm) == ((16, 32, 32), (3.0, 2.0, 2.0))
    assert spec.postprocessing == steps
    assert spec.mirror_axes == (0, 1, 2)
    assert spec.provenance.folds == ("1",)
    assert spec.provenance.trainer == "nnUNetTrainer"
    assert model.default_name == "test"


def test_digest_of_the_network_changes_with_one_weight(copy_of_unet: Path) -> None:
    before = load_trained_model(copy_of_unet, folds=(0,)).network_sha256
    weights = torch.load(copy_of_unet / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    next(iter(weights.values())).view(-1)[0] += 1e-6
    change_checkpoint(copy_of_unet, network_weights=weights)
    assert load_trained_model(copy_of_unet, folds=(0,)).network_sha256 != before


def test_zip_that_nnunet_exports_gives_the_same_network(trained_unet: Path, tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in trained_unet.rglob("*.*"):
            zipped.write(file, Path("Dataset999_Test") / trained_unet.name / file.relative_to(trained_unet))
    assert load_trained_model(archive).network_sha256 == load_trained_model(trained_unet).network_sha256


def test_several_configurations_are_told_apart_or_refused(trained_unet: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_unet, tmp_path / trained_unet.name)
    shutil.copytree(trained_unet, tmp_path / "nnUNetTrainer__nnUNetPlans__3d_lowres")
    with pytest.raises(CheckpointError, match=r"2 trained models fit, choose a configuration") as caught:
        load_trained_model(tmp_path)
    assert caught.value.settings == ("configuration", "trainer", "plans")
    assert load_trained_model(tmp_path, Choice(configuration="3d_fullres")).folds == ("0", "1")
    with pytest.raises(CheckpointError, match=r"no trained model that fits"):
        load_trained_model(tmp_path, Choice(configuration="2d"))


def test_missing_fold_and_missing_checkpoint_are_named(trained_unet: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing for folds 3; it is there for 0, 1"):
        load_trained_model(trained_unet, folds=(0, 3))
    with pytest.raises(CheckpointError, match=r"no fold has checkpoint_best.pth; found checkpoint_final.pth"):
        load_trained_model(trained_unet, checkpoint="checkpoint_best.pth")


@pytest.mark.parametrize(
    ("file", "part", "found", "said"),
    [
        ("dataset.json", "labels", None, "dataset.json: expected labels by their names, found None"),
        ("dataset.json", "labels", ["liver"], r"found \['liver'\]: take the file that nnU-Net wrote"),
        ("plans.json", "configurations", None, "plans.json: expected configurations by their names, found None"),
        ("plans.json", "configurations", {}, "nnUNetTrainer__nnUNetPlans__3d_fullres: plans: no configuration"),
    ],
)
def test_documents_without_what_a_model_needs_are_refused_by_name(
    copy_of_unet: Path, file: str, part: str, found: object, said: str
) -> None:
    content = json.loads((copy_of_unet / file).read_text())
    (copy_of_unet / file).write_text(json.dumps({**content, part: found}))
    with pytest.raises(CtsegError, match=said):
        load_trained_model(copy_of_unet)


def test_numbered_folds_are_preferred_to_fold_all(copy_of_unet: Path) -> None:
    shutil.copytree(copy_of_unet / "fold_0", copy_of_unet / "fold_all")
    assert load_trained_model(copy_of_unet).folds == ("0", "1")
    assert load_trained_model(copy_of_unet, folds=("all",)).folds == ("all",)


def test_numpy_scalars_of_nnunets_logs_load(copy_of_unet: Path) -> None:
    logging = {"ema_fg_dice": [np.float32(0.5), np.float64(0.5), np.int64(3)], "epoch_end_timestamps": [1.5]}
    change_checkpoint(copy_of_unet, logging=logging, _best_ema=np.float32(0.7))
    assert load_trained_model(copy_of_unet, folds=(0,)).folds == ("0",)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.file,)


def test_code_in_a_checkpoint_does_not_run(copy_of_unet: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    change_checkpoint(copy_of_unet, logging=Bomb(str(mark)))
    with pytest.raises(CheckpointError, match=r"more than weights and numbers.*mkdir.*can be trusted") as caught:
        load_trained_model(copy_of_unet, folds=(0,))
    assert caught.value.settings == ("trust_checkpoint",)
    assert not mark.exists()
    load_trained_model(copy_of_unet, folds=(0,), trust=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "torch.nn.functional.torch.hub.load",
        "torch.nn.modules.module.functools.partial",
        "torch.nn.functional.relu",
        "torch.nn",
        "torch.nnx.Conv3d",
        "monai.networks.utils.torch.load",
        "foreign_package.Network",
        "torch.nn.Conv3d.__class__",
    ],
)
def test_class_from_elsewhere_in_the_plans_is_refused(copy_of_unet: Path, name: str) -> None:
    change_plans(copy_of_unet, network_class_name=name)
    with pytest.raises(CheckpointError, match=r"plans.json names .* as network_class_name") as caught:
        load_trained_model(copy_of_unet, folds=(0,))
    assert caught.value.settings == ("trust_checkpoint",)


def test_layer_class_from_elsewhere_is_refused(copy_of_unet: Path) -> None:
    plans = json.loads((copy_of_unet / "plans.json").read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    change_plans(copy_of_unet, arch_kwargs={**kwargs, "nonlin": "os.system"})
    with pytest.raises(CheckpointError, match=r"'os.system' as nonlin"):
        load_trained_model(copy_of_unet, folds=(0,))
    # also where the plans do not ask for an import: a trainer may locate it all the same
    change_plans(copy_of_unet, arch_kwargs={**kwargs, "conv_op": "os.system"}, _kw_requires_import=[])
    with pytest.raises(CheckpointError, match=r"'os.system' as conv_op"):
        load_trained_model(copy_of_unet, folds=(0,))


def test_trainer_that_builds_its_own_network_needs_trust(
    copy_of_unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "mine.py").write_text(
        "import pathlib\n"
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "pathlib.Path(__file__).with_suffix('.ran').touch()\n"
        "class nnUNetTrainerMine(nnUNetTrainer):\n"
        "    @staticmethod\n"
        "    def build_network_architecture(plans_manager, configuration_manager, num_input_channels,\n"
        "                                   num_output_channels, enable_deep_supervision=True):\n"
        "        return nnUNetTrainer.build_network_architecture(plans_manager, configuration_manager,\n"
        "            num_input_channels, num_output_channels, enable_deep_supervision)\n"
        "class nnUNetTrainerSlow(nnUNetTrainer):\n"
        "    def configure_optimizers(self):\n"
        "        return None\n"
    )
    change_checkpoint(copy_of_unet, trainer_name="nnUNetTrainerMine")
    with pytest.raises(CheckpointError, match=r"nnUNetTrainerMine is neither in nnU-Net nor in a folder of nnUNet_ext"):
        load_trained_model(copy_of_unet, folds=(0,))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers))
    with pytest.raises(CheckpointError, match=r"by its own code in .*mine.py.*can be trusted") as caught:
        load_trained_model(copy_of_unet, folds=(0,))
    assert caught.value.settings == ("trust_checkpoint",)
    change_checkpoint(copy_of_unet, trainer_name="nnUNetTrainerSlow")
    assert load_trained_model(copy_of_unet, folds=(0,)).trainer == "nnUNetTrainerSlow"
    assert not (trainers / "mine.ran").exists()


@pytest.mark.parametrize("trainer", ["nnUNetTrainer_5epochs", "nnUNetTrainerNoMirroring", "nnUNetTrainerDA5"])
def test_trainers_of_nnunet_that_build_the_stock_network_load(copy_of_unet: Path, trainer: str) -> None:
    change_checkpoint(copy_of_unet, trainer_name=trainer)
    assert load_trained_model(copy_of_unet, folds=(0,)).trainer == trainer


def test_trainer_of_nnunet_with_another_network_builds_that_one(copy_of_unet: Path) -> None:
    change_checkpoint(copy_of_unet, trainer_name="nnUNetTrainerBN")
    with pytest.raises(CheckpointError, match=r"weights do not fit.*running_mean"):
        load_trained_model(copy_of_unet, folds=(0,))


def test_weights_that_do_not_fit_or_have_diverged_are_refused(copy_of_unet: Path) -> None:
    weights = torch.load(copy_of_unet / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    name = next(iter(weights))
    change_checkpoint(copy_of_unet, network_weights={key: value * torch.nan for key, value in weights.items()})
    with pytest.raises(CheckpointError, match=r"NaN or infinite"):
        load_trained_model(copy_of_unet, folds=(0,))
    del weights[name]
    change_checkpoint(copy_of_unet, network_weights=weights)
    with pytest.raises(CheckpointError, match=r"do not fit the network"):
        load_trained_model(copy_of_unet, folds=(0,))


def test_truncated_checkpoint_is_named(copy_of_unet: Path) -> None:
    file = copy_of_unet / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"checkpoint_final.pth: damaged or not copied whole"):
        load_trained_model(copy_of_unet, folds=(0,))


def test_empty_mirror_axes_mean_none(tmp_path: Path) -> None:
    folder = make_trained_folder(tmp_path / "a", make_plans(), make_dataset(), mirror_axes=())
    model = load_trained_model(folder)
    assert model.mirror_axes == ()
    assert model.spec(name="a", mirroring="client", max_batch_size=1).mirroring == "none"
