"""nnU-Net's cascade, from plans to labels by ctseg's commands, beside nnU-Net's own prediction."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from benchmarks.models import nnunet_program
from ctseg.cli.main import main
from ctseg.nnunet.best_configuration import BestConfiguration
from tests.support.nnunet_plans import unet_architecture
from tests.support.tiny_trainings import PlannedNnunet, TinyNnunet

CASCADE = "3d_cascade_fullres"
SHORT = ("-device", "cpu", "--epochs", "1", "--iterations_per_epoch", "2")


@pytest.fixture
def cascaded(planned: PlannedNnunet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyNnunet:
    """The data set, with a cascade that nnU-Net's planner makes none of, for images so small."""
    tiny = TinyNnunet(tmp_path)
    shutil.copytree(planned.tiny.root / "preprocessed", tmp_path / "preprocessed")
    (tmp_path / "raw").symlink_to(planned.tiny.root / "raw")
    (tmp_path / "results").mkdir()
    for name, value in tiny.environment.items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    return tiny


def plans_of(tiny: TinyNnunet) -> dict[str, Any]:
    return json.loads((tiny.root / "preprocessed" / tiny.dataset / "nnUNetPlans.json").read_text())


def plan_with_lowres(tiny: TinyNnunet) -> None:
    """Plan both resolutions, and let their networks be so small that a CPU trains them."""
    assert "3d_lowres" not in plans_of(tiny)["configurations"]
    tiny.run("ctseg", "plan", "-d", "301", "-pl", "ExperimentPlanner", "--lowres", "-np", "1")
    plans = plans_of(tiny)
    for name in ("3d_lowres", "3d_fullres"):
        plans["configurations"][name].update(
            patch_size=[16, 32, 32], batch_size=2, architecture=unet_architecture(3, features=(4, 8, 8))
        )
    (tiny.root / "preprocessed" / tiny.dataset / "nnUNetPlans.json").write_text(json.dumps(plans))


def test_a_cascade_is_planned_for_small_images_and_waits_for_its_first_stage(
    cascaded: TinyNnunet, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_with_lowres(cascaded)
    found = plans_of(cascaded)["configurations"]
    fullres, lowres = found["3d_fullres"], found["3d_lowres"]
    assert found[CASCADE] == {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    assert lowres["next_stage"] == CASCADE
    assert (fullres["batch_dice"], lowres["batch_dice"]) == (True, False)
    assert 2 <= np.prod(np.divide(lowres["spacing"], fullres["spacing"])) < 2.2
    assert (
        len(list((cascaded.root / "preprocessed" / cascaded.dataset / lowres["data_identifier"]).glob("*.b2nd"))) == 10
    )

    assert main(["train", "301", CASCADE, "0", *SHORT]) == 2
    told = capsys.readouterr().err
    assert "5 of 5 cases have none in" in told
    assert (
        "first train and validate all folds of 3d_lowres with nnUNetTrainer and nnUNetPlans (validated: none)" in told
    )
    assert not list(cascaded.results.glob("*"))


@pytest.mark.full
@pytest.mark.live
def test_a_cascade_from_plans_to_labels_equals_nnunets_own_commands(
    cascaded: TinyNnunet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_with_lowres(cascaded)
    for configuration in ("3d_lowres", "3d_fullres", CASCADE):
        cascaded.run("ctseg", "train", "301", configuration, "-f", "all", "--npz", *SHORT)
    said = cascaded.run("ctseg", "find-best", "301", "-c", "3d_fullres", CASCADE, "-np", "1").stdout
    best = BestConfiguration.read(cascaded.results / "best.json")
    if any(member.configuration == CASCADE for member in best.members):
        first, second = (f"nnUNetTrainer__nnUNetPlans__{name}" for name in ("3d_lowres", CASCADE))
        assert f"{second} is a second stage: each scan goes through {first} first" in said

    scans = tmp_path / "scans"
    scans.mkdir()
    source = next((cascaded.root / "raw" / cascaded.dataset / "imagesTr").glob("*.nii.gz"))
    shutil.copy(source, scans / "case_0000.nii.gz")
    words = ("-d", "301", "-tr", "nnUNetTrainer", "-p", "nnUNetPlans", "-f", "0", "--disable_tta", "-device", "cpu")
    out = tmp_path / "nnunet"
    cascaded.run(
        str(nnunet_program("nnUNetv2_predict")), "-i", str(scans), "-o", str(out / "lowres"), *words, "-c", "3d_lowres"
    )
    cascaded.run(
        str(nnunet_program("nnUNetv2_predict")), "-i", str(scans), "-o", str(out / "cascade"), *words, "-c", CASCADE,
        "-prev_stage_predictions", str(out / "lowres"),
    )  # fmt: skip

    bundle, repository = tmp_path / "bundle", tmp_path / "models"
    export = ["export", "-d", "301", "-c", CASCADE, "-f", "0", "-o", str(bundle), "--name", "tumor", "--tta", "none"]
    assert main([*export, "--accept_unproven"]) == 0  # two iterations leave logits that are near ties everywhere
    build = ["build", str(bundle), "--repository", str(repository), "--runtime", "onnxruntime", "--accept_unproven"]
    assert main(build) == 0
    predict = [
        "predict",
        "-i",
        str(scans),
        "-o",
        str(tmp_path / "ctseg"),
        "-m",
        "tumor",
        "--repository",
        str(repository),
    ]
    assert main(predict) == 0
    labels, expected = (
        np.asarray(nib.load(folder / "case.nii.gz").dataobj) for folder in (tmp_path / "ctseg", out / "cascade")
    )
    # nnU-Net's own command sums windows and keeps logits in float16
    assert (labels != expected).mean() <= 5e-3
