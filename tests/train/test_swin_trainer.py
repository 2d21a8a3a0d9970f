"""The Swin UNETR trainer in 2d and 3d, with several channels, regions and an ignore label."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctseg.nnunet.trainers import TRAINERS_FOLDER
from ctseg.train.extended_trainer import extended
from ctseg.train.options import TrainingOptions
from ctseg.train.trainers.nnUNetTrainerSwinUNETR import WarmupCosineLR, nnUNetTrainerSwinUNETR
from tests.support.nnunet_reference import swin_architecture
from tests.support.tiny_trainings import TinyNnunet
from tests.support.trainers import CPU


def swin_trainer(tiny: TinyNnunet, patch: list[int], labels: dict[str, Any], channels: int) -> Any:
    folder = tiny.root / "preprocessed" / tiny.dataset
    plans = {**json.loads((folder / "nnUNetSwinUNETRPlans.json").read_text()), "continue_training": False}
    architecture = swin_architecture(len(patch))
    architecture["arch_kwargs"].update(depths=[1, 1, 1, 1], window_size=4)
    plans["configurations"]["3d_fullres"].update(patch_size=patch, architecture=architecture)
    dataset = {
        "channel_names": {str(i): "CT" for i in range(channels)}, "labels": labels,
        "regions_class_order": [1, 2], "numTraining": 5, "file_ending": ".nii.gz",
    }  # fmt: skip
    trainer = extended(nnUNetTrainerSwinUNETR, TrainingOptions(batch_size=2), CPU)(
        plans, "3d_fullres", 0, dataset, CPU.device
    )
    trainer.initialize()
    return trainer


@pytest.mark.parametrize("patch", [[64, 64], [32, 32, 64], [20, 40, 40]], ids=["2d", "3d", "foreign patch"])
@pytest.mark.parametrize("kind", ["labels", "regions", "ignore"])
def test_a_step_and_a_validation_step(tiny: TinyNnunet, patch: list[int], kind: str) -> None:
    labels = {
        "labels": {"background": 0, "a": 1, "b": 2},
        "regions": {"background": 0, "whole": [1, 2], "core": 2},
        "ignore": {"background": 0, "a": 1, "ignore": 2},
    }[kind]
    trainer = swin_trainer(tiny, patch, labels, channels=2)
    torch.manual_seed(0)
    data = torch.randn(2, 2, *patch)
    values = torch.randint(0, 3, (2, 1, *patch))
    if kind == "regions":
        target = torch.cat([values > 0, values == 2], dim=1)
    else:
        target = values.to(torch.int16)
    before = trainer.network.state_dict()["out.conv.conv.weight"].clone()
    trainer.network.train()
    loss = float(trainer.train_step({"data": data, "target": target})["loss"])
    assert -1 < loss < 3
    assert not torch.equal(before, trainer.network.state_dict()["out.conv.conv.weight"])
    trainer.network.eval()
    with torch.no_grad():
        counts = trainer.validation_step({"data": data, "target": target.clone()})
    voxels = counts["tp_hard"] + counts["fn_hard"]
    expected = {
        "labels": [int((values == i).sum()) for i in (1, 2)],
        "regions": [int((values > 0).sum()), int((values == 2).sum())],
        "ignore": [int((values == 1).sum())],
    }[kind]
    assert voxels.tolist() == expected


def test_both_signatures_build_the_same_network(tiny: TinyNnunet) -> None:
    plans = json.loads((tiny.root / "preprocessed" / tiny.dataset / "nnUNetSwinUNETRPlans.json").read_text())
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    build = nnUNetTrainerSwinUNETR.build_network_architecture
    former = (configuration.network_arch_class_name, configuration.network_arch_init_kwargs, [])
    # nnU-Net's trainer gives deep supervision by position, its predictor by keyword
    networks = [
        build(manager, configuration, 1, 2, True),
        build(manager, configuration, 1, 2, enable_deep_supervision=True),
        build(*former, 1, 2, True),
        build(*former, 1, 2, enable_deep_supervision=True),
    ]
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in networks]
    assert shapes[0]["out.conv.conv.weight"][:2] == (2, 12)
    assert all(other == shapes[0] for other in shapes[1:])
    assert "plans_manager" in inspect.signature(build).parameters  # by which nnU-Net 2.8 tells them apart


def test_the_rate_warms_up_and_decays_to_nothing() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = WarmupCosineLR(optimizer, 1e-4, warmup_epochs=10, num_epochs=110)
    rates = [schedule.lr_at(epoch) for epoch in range(111)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[9] == rates[10] == pytest.approx(1e-4)
    assert rates[60] == pytest.approx(0.5e-4)
    assert rates[110] == pytest.approx(0, abs=1e-12)
    schedule.step(60)
    assert optimizer.param_groups[0]["lr"] == rates[60]


def test_nnunet_finds_the_trainer_through_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    monkeypatch.setattr(sys, "path", list(sys.path))
    found = recursive_find_python_class(
        str(TRAINERS_FOLDER), "nnUNetTrainerSwinUNETR", None, base_folder=str(TRAINERS_FOLDER),
        cleanup_imports_from_base_folder=True,
    )  # fmt: skip
    assert found is not None
    assert found.__name__ == "nnUNetTrainerSwinUNETR"
    assert Path(sys.modules[nnUNetTrainerSwinUNETR.__module__].__file__ or "").parent == TRAINERS_FOLDER
