"""`make compatibility`: what is trained, what is written about it; the run itself takes an hour."""

import ast
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.compatibility.data import CROP, LABELS, NAME, STARTS, make_dataset, scan_of, write_splits
from scripts.compatibility.environment import Workplace
from scripts.compatibility.kinds import NNUNETS, NnUNet, Training, kinds_of
from scripts.compatibility.own_network import FORMS
from scripts.compatibility.page import page_of
from scripts.compatibility.proof import Finding, finding_of
from scripts.compatibility.training import members_of

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo_data" / "images"


@pytest.mark.parametrize("nnunet", NNUNETS, ids=lambda nnunet: nnunet.version)
def test_kinds_have_names_of_their_own_and_first_stages_are_trained_before_second_ones(nnunet: NnUNet) -> None:
    kinds = kinds_of(nnunet)
    assert len({kind.key for kind in kinds}) == len(kinds)
    trainings = list(dict.fromkeys(training for kind in kinds for training in kind.trainings))
    for training in trainings:
        assert training.first is None or trainings.index(training.first) < trainings.index(training)
    plans = {training.plans for training in trainings}
    assert plans == {"nnUNetPlans", nnunet.residual_plans}
    for kind in kinds:
        if kind.source == "archive" or len(kind.members) > 1:
            assert all(training.validated for training in kind.trainings)  # nnU-Net zips validated folds only


def test_a_cascade_is_compared_with_both_of_its_stages(tmp_path: Path) -> None:
    place = Workplace(NNUNETS[0], tmp_path)
    (cascade,) = (kind for kind in kinds_of(place.nnunet) if kind.name == "cascade")
    ((first, second),) = members_of(place, cascade)
    assert first["folder"].endswith(f"{NAME}/{Training('3d_lowres').folder_name}")
    assert second["folder"].endswith(f"{NAME}/{Training('3d_cascade_fullres').folder_name}")


def test_the_data_are_pieces_of_genuine_scans_in_their_place(tmp_path: Path) -> None:
    scan = make_dataset(DEMO, tmp_path)
    assert scan == scan_of(tmp_path)
    for number, start in enumerate(STARTS):
        whole = nibabel.load(DEMO / "STS_008_0000.nii.gz")
        piece = nibabel.load(tmp_path / NAME / "imagesTr" / f"STS_008_{number}_0000.nii.gz")
        labels = np.asarray(nibabel.load(tmp_path / NAME / "labelsTr" / f"STS_008_{number}.nii.gz").dataobj)
        inside = tuple(slice(first, first + size) for first, size in zip(start, CROP, strict=True))
        assert np.array_equal(piece.dataobj, whole.dataobj[inside])
        np.testing.assert_allclose(piece.affine[:3, 3], (whole.affine @ [*start, 1])[:3], atol=1e-4)
        assert set(np.unique(labels)) == set(LABELS.values())
    write_splits(tmp_path)
    assert "STS_042" not in (tmp_path / NAME / "splits_final.json").read_text()


def test_what_runs_inside_an_older_nnunet_knows_nothing_of_ctseg() -> None:
    tree = ast.parse((ROOT / "scripts" / "compatibility" / "inside.py").read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    foreign = {str(name).partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign == {"numpy", "torch", "nnunetv2", "batchgenerators"}


@pytest.mark.parametrize("form", FORMS)
def test_trainers_of_every_form_are_python(form: str) -> None:
    (trainer,) = (node for node in ast.parse(FORMS[form]).body if isinstance(node, ast.ClassDef))
    assert trainer.name == "nnUNetTrainerOwnNetwork"


def test_the_page_has_what_was_found_what_is_refused_and_what_fails() -> None:
    found = Finding(
        version="2.4.2",
        kind="2d",
        trained="A",
        gate="proven",
        foreground=12345,
        differing=1,
        differing_own=2,
        own_from_float32=3,
    )
    refused = Finding(version="2.4.2", kind="own", trained="B", refused="no such form")
    failing = Finding(version="2.8.1", kind="2d", trained="A", problem="7 voxels differ")
    page = page_of([found, refused, failing])
    assert "| 2d | A | proven | 12,345 | 1 | 2 | 3 |" in page
    assert "| own | B | refused: no such form | | | | |" in page
    assert "| 2d | A | **fails**: 7 voxels differ | | | | |" in page
    assert page.index("### nnU-Net 2.4.2") < page.index("### nnU-Net 2.8.1")


def test_the_committed_page_has_every_release_and_kind_and_no_failure() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    newest = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").split("nnunetv2==")[1].split()[0]
    assert NNUNETS[-1].version == newest
    for nnunet in NNUNETS:
        section = page.split(f"### nnU-Net {nnunet.version}\n")[1].split("\n### ")[0]
        for kind in kinds_of(nnunet):
            assert f"| {kind.name} |" in section
    assert "**fails**" not in page


def test_a_proof_that_was_not_made_is_not_there(tmp_path: Path) -> None:
    place = Workplace(NNUNETS[0], tmp_path)
    assert finding_of(place, kinds_of(place.nnunet)[0]) is None
