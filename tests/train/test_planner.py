"""What the Swin UNETR is planned with, from data and memory."""

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ctseg.cli.main import main
from ctseg.errors import SetupError
from ctseg.train.architectures import SWIN_CLASS_NAME
from ctseg.train.memory_estimate import estimate_memory
from ctseg.train.planning import find_planner, summary
from ctseg.train.swin_planner import ESTIMATE_KEY, plan_swin
from ctseg.train.swin_unetr import SwinUNETR, padded_sides
from tests.support.tiny_trainings import PlannedNnunet, TinyNnunet

SARCOMA = ((3.27, 0.977, 0.977), (59, 165, 172))
CHEST = ((1.0, 0.8, 0.8), (300, 400, 400))
SLICES = ((0.977, 0.977), (165, 172))


def plan(data: tuple[Any, Any], gb: float, **more: Any) -> Any:
    return plan_swin(*data, **{"channels": 1, "heads": 2, "gpu_memory_gb": gb, "dataset_voxels": 1e9, **more})


def test_patches_follow_the_shape_of_the_data() -> None:
    # the whole median case of an anisotropic data set; proportions of the spacing where the case is larger
    assert plan(SARCOMA, 48).patch_size == (64, 160, 160)
    patch = plan(CHEST, 80).patch_size
    assert patch[0] <= patch[1] == patch[2]
    assert plan(SLICES, 16).patch_size == (160, 160)


@pytest.mark.parametrize("data", [SARCOMA, CHEST, SLICES], ids=["sarcoma", "chest", "2d"])
@pytest.mark.parametrize("gb", [pytest.param(6, marks=pytest.mark.full), 16, 48])
def test_sides_divide_by_32_and_the_estimate_fits(data: tuple[Any, Any], gb: float) -> None:
    decided = plan(data, gb)
    assert padded_sides(decided.patch_size) == decided.patch_size
    assert decided.batch_size >= 2
    assert decided.estimate.bytes_of(decided.batch_size) <= gb * 1e9


def test_less_memory_brings_checkpointing_before_a_narrower_network() -> None:
    plenty, less, least = plan(SARCOMA, 40), plan(SARCOMA, 20), plan(SARCOMA, 4)
    assert (plenty.feature_size, plenty.use_checkpoint) == (48, False)
    assert (less.feature_size, less.use_checkpoint) == (48, True)
    assert (least.feature_size, least.use_checkpoint) == (12, True)


def test_a_batch_covers_at_most_a_twentieth_of_the_data() -> None:
    voxels = 64 * 160 * 160
    assert plan(SARCOMA, 80, dataset_voxels=voxels * 20 * 3).batch_size == 3
    assert plan(SARCOMA, 80, dataset_voxels=voxels).batch_size == 2


def test_too_little_memory_is_told_with_a_number() -> None:
    with pytest.raises(SetupError, match=r"1 GB of GPU memory: even the smallest Swin UNETR needs about 1\.\d GB"):
        plan(SARCOMA, 1)


def test_the_estimate_counts_what_autograd_really_keeps() -> None:
    patch = (32, 32, 64)
    kept: dict[int, int] = {}
    network = SwinUNETR(1, 2, feature_size=12)
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.zeros(1, 1, *patch))
    estimate = estimate_memory(patch, 1, 2, feature_size=12, use_checkpoint=False)
    counted = estimate.per_patch_bytes - 16 * logits.numel() - 3 * max(kept.values())
    assert counted == pytest.approx(sum(kept.values()), rel=0.02)
    assert estimate.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_checkpointing_takes_less_memory() -> None:
    with_it, without = (
        estimate_memory((64, 64, 64), 1, 2, feature_size=12, use_checkpoint=flag).per_patch_bytes
        for flag in (True, False)
    )
    assert with_it < 0.8 * without


def test_both_plans_are_written_and_the_network_is_described(planned: PlannedNnunet) -> None:
    folder = planned.tiny.root / "preprocessed" / planned.tiny.dataset
    assert {"nnUNetPlans.json", "nnUNetSwinUNETRPlans.json"} <= {file.name for file in folder.iterdir()}
    plans = json.loads((folder / "nnUNetSwinUNETRPlans.json").read_text())
    fullres = plans["configurations"]["3d_fullres"]
    assert fullres["architecture"]["network_class_name"] == "ctseg.train.swin_unetr.SwinUNETR"
    assert fullres["architecture"]["arch_kwargs"] == {"spatial_dims": 3, "feature_size": 48, "use_checkpoint": False}
    assert fullres["patch_size"] == [32, 64, 64]
    # the preprocessed cases are nnU-Net's own
    assert fullres["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert fullres[ESTIMATE_KEY]["measured"] is False
    assert fullres[ESTIMATE_KEY]["gb"] <= 16
    assert "estimated, not measured on a GPU" in planned.said
    assert any((folder / "nnUNetPlans_3d_fullres").iterdir())


@pytest.fixture
def own(planned: PlannedNnunet, tiny: TinyNnunet) -> TinyNnunet:
    """A copy with the planners' own plans, and a training of ``nnUNetPlans``."""
    for name in ("raw", "preprocessed"):
        (tiny.root / name).unlink()
        shutil.copytree(planned.tiny.root / name, tiny.root / name)
    fold = tiny.results / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_1"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    return tiny


def replan(*words: str) -> int:
    return main(["plan", "-d", "301", "-c", "3d_fullres", "-np", "1", *words])


def files_of(tiny: TinyNnunet) -> dict[str, int]:
    root = tiny.root / "preprocessed" / tiny.dataset
    ignored = ("dataset.json", "plan_log.txt")
    return {str(f): f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file() and f.name not in ignored}


def test_planning_the_same_again_leaves_what_a_training_reads(
    own: TinyNnunet, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(own)
    assert replan("-pl", "ExperimentPlanner") == 0
    said = capsys.readouterr().out
    assert "nnUNetPlans: nothing to do, the plans are those of nnUNetTrainer__nnUNetPlans__3d_fullres" in said
    assert "nnUNetPlans_3d_fullres: nothing to do" in said
    assert files_of(own) == before


@pytest.mark.full
def test_other_plans_that_share_the_cases_may_change(own: TinyNnunet) -> None:
    before = files_of(own)
    assert replan("-pl", "nnUNetPlannerSwinUNETR", "--gpu_memory_gb", "3") == 0
    after = files_of(own)
    changed = {Path(file).name for file in after if after[file] != before.get(file)}
    assert changed == {"nnUNetSwinUNETRPlans.json"}


def add_a_case(own: TinyNnunet) -> None:
    folder = own.root / "raw" / own.dataset
    for file in (*(folder / "imagesTr").glob("tiny0*"), *(folder / "labelsTr").glob("tiny0*")):
        shutil.copy(file, file.with_name(file.name.replace("tiny0", "tiny7")))


def correct_a_label_map(own: TinyNnunet) -> None:
    os.utime(own.root / "raw" / own.dataset / "labelsTr" / "tiny2.nii.gz")


def rename_a_label(own: TinyNnunet) -> None:
    file = own.root / "raw" / own.dataset / "dataset.json"
    file.write_text(file.read_text().replace("tumor", "lesion"))


def change_the_plans(own: TinyNnunet) -> None:
    file = own.root / "preprocessed" / own.dataset / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"].update(batch_size=5, patch_size=[24, 32, 32])
    file.write_text(json.dumps(plans))


def nothing(_own: TinyNnunet) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (change_the_plans, [], "nnUNetPlans 3d_fullres: patch_size [24, 32, 32] -> [24, 48, 48]"),
        (nothing, ["--clean"], "the fingerprint would be extracted anew"),
        (add_a_case, ["--no_check"], "nnUNetPlans_3d_fullres has no tiny7 (1 cases of "),
        (correct_a_label_map, [], "nnUNetPlans_3d_fullres is older than the files of tiny2 (1 cases)"),
        (rename_a_label, ["--no_pp"], "dataset.json of "),
    ],
)
def test_what_a_training_goes_on_with_is_not_changed_by_accident(
    own: TinyNnunet, capsys: pytest.CaptureFixture[str], change: Any, words: list[str], message: str
) -> None:
    change(own)
    before = files_of(own)
    assert replan("-pl", "ExperimentPlanner", *words) == 2
    said = capsys.readouterr().err
    assert "nnUNetTrainer__nnUNetPlans__3d_fullres could not go on" in said
    assert message in said
    assert files_of(own) == before


@pytest.mark.full
def test_overwrite_plans_and_preprocesses_anew(own: TinyNnunet) -> None:
    change_the_plans(own)
    before = files_of(own)
    assert replan("-pl", "ExperimentPlanner", "--overwrite") == 0
    after = files_of(own)
    changed = {Path(file).name for file in before if after.get(file) != before[file]}
    assert {"nnUNetPlans.json", "tiny0.b2nd", "tiny4.pkl"} <= changed
    plans = json.loads((own.root / "preprocessed" / own.dataset / "nnUNetPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 2


def test_the_plans_name_the_class_by_which_nnunet_imports_it() -> None:
    module, _, name = SWIN_CLASS_NAME.rpartition(".")
    assert getattr(importlib.import_module(module), name) is SwinUNETR


def test_stock_planners_are_found_by_name() -> None:
    for name in ("ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"):
        assert find_planner(name).__name__ == name
    with pytest.raises(SetupError, match="planner 'Mine' is unknown"):
        find_planner("Mine")


@pytest.mark.parametrize("sides", [(16, 20, 40), (32, 32, 32), (56, 64, 33), (96, 64)])
def test_foreign_patches_are_padded_and_cropped(sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = SwinUNETR(1, 3, spatial_dims=len(sides), feature_size=12, depths=(1, 1, 1, 1), window_size=4).eval()
    patch = torch.randn(1, 1, *sides)
    with torch.inference_mode():
        logits = network(patch)
        larger = torch.zeros(1, 1, *padded_sides(sides))
        inside = (..., *(slice(0, side) for side in sides))
        larger[inside] = patch
        expected = network(larger)[inside]
    assert logits.shape == (1, 3, *sides)
    torch.testing.assert_close(logits, expected)


def test_the_summary_gives_each_configurations_patch_and_batch(tiny: TinyNnunet) -> None:
    text = summary(tiny.root / "preprocessed" / tiny.dataset / "nnUNetPlans.json")
    assert text == "  3d_fullres: patch 32 x 32 x 64, batch 2"
