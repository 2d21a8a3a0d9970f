"""A union of five many-label models on a real abdomen, beside the same five run by nnU-Net and merged by plain code.

The networks are random: two of their labels nearly tie on many voxels, far more than with trained ones. What is put
together is exact: it is compared with a plain merge of the members' own label maps.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks.measured_process import Measured, run_measured
from ctseg.cli.main import main as ctseg
from ctseg.predict.report import Report
from tests.support.nnunet_plans import make_dataset, make_plans, unet_architecture
from tests.support.nnunet_reference import make_trained_folder, reference_predictor
from tests.support.plain_union import numbered_on

pytestmark = [pytest.mark.live, pytest.mark.full]

LARGEST_SHARE = 1e-4
LABELS = {"organs": 24, "vertebrae": 26, "cardiac": 18, "muscles": 23, "ribs": 26}
COARSE = "coarse_ribs"
ALL = {**LABELS, COARSE: LABELS["ribs"]}
"""How many labels each has; the last one is the only one at another spacing."""
UNIONS = {"total": tuple(LABELS), "mixed": (*list(LABELS)[:4], COARSE)}


@pytest.fixture(scope="module")
def models(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of trained models, and the scan; ``repository`` has them all, and both unions."""
    root = tmp_path_factory.mktemp("union")
    scan = root / "abdomen_0000.nii.gz"
    scan.symlink_to(shared_data / "totalseg" / "ts_abdomen_3mm_ct.nii.gz")
    for seed, (name, count) in enumerate(ALL.items()):
        spacing = (4.0, 3.5, 3.5) if name == COARSE else (3.0, 3.0, 3.0)
        network = unet_architecture(3, features=(8, 16, 32))
        plans = make_plans(patch_size=(64, 64, 64), spacing=spacing, architecture=network)
        dataset = make_dataset({"background": 0, **{f"{name}_{i}": i for i in range(1, count + 1)}})
        make_trained_folder(root / name, plans, dataset, mirror_axes=None, seed=seed)
        leave_background(root / name, scan)
        run("export", "-i", root / name, "-o", root / "bundles" / name, "--name", name, "--cases", scan)
        run("build", root / "bundles" / name, "--repository", root / "repository")
    for name, members in UNIONS.items():
        run("recipe", "-m", name, "--repository", root / "repository", "--union", *members)
    return root, scan


def leave_background(folder: Path, scan: Path) -> None:
    """Let a random network find background in three quarters of a scan, so that no model covers all others."""
    predictor = reference_predictor(folder)
    voxels = np.asarray(nib.load(scan).dataobj, np.float32).T[24:88, 20:84, 30:94]
    network = predictor.network.eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    with torch.inference_mode():
        logits = network(torch.from_numpy((np.clip(voxels, -84, 144) - 33.8) / 34)[None, None])[0]
    lead = (logits[1:].amax(dim=0) - logits[0]).flatten().quantile(0.75)
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    *_, last = (key for key in checkpoint["network_weights"] if key.endswith("bias") and "seg_layers" in key)
    checkpoint["network_weights"][last][0] += lead
    torch.save(checkpoint, path)


def run(*words: object) -> None:
    assert ctseg([str(word) for word in words]) == 0


@pytest.mark.parametrize("name", UNIONS)
def test_a_union_of_five_equals_nnunets_five_and_a_plain_script(
    name: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    root, scan = models
    members = UNIONS[name]
    ours = ["predict", "-i", scan, "-o", tmp_path / name, "-m", name, "--repository", root / "repository"]
    by_ctseg, _ = run_measured([sys.executable, "-m", "ctseg", *ours])
    theirs = [scan, tmp_path / "plain.npz", *(root / member for member in members)]
    by_nnunet, _ = run_measured([sys.executable, "-m", "tests.support.plain_union", *theirs])

    with np.load(tmp_path / "plain.npz") as plain:
        expected, of_nnunet = plain["union"], [plain[member] for member in members]
    of_ctseg = [predicted(member, root, scan, tmp_path) for member in members]
    found = nib.load(tmp_path / name / "abdomen.nii.gz")
    labels = np.asarray(found.dataobj).transpose(2, 1, 0)
    case = Report.model_validate_json((tmp_path / name / "report.json").read_bytes()).cases[0]
    differing = labels != expected
    print(f"{name}: {differing.sum()} of {labels.size} voxels differ, {len(np.unique(expected)) - 1} labels found")
    print(f"  ctseg {told(by_ctseg)}, {case.seconds}; nnU-Net {told(by_nnunet)}")
    np.testing.assert_array_equal(labels, numbered_on(of_ctseg, [ALL[member] for member in members]))
    assert not differing[np.all([a == b for a, b in zip(of_ctseg, of_nnunet, strict=True)], axis=0)].any()
    assert differing.mean() <= LARGEST_SHARE
    assert found.get_data_dtype() == np.uint8
    assert len(np.unique(expected)) > 40, "few labels prove little"
    assert case.made_by is not None
    assert [member.model for member in case.made_by.members] == list(members)


def predicted(member: str, root: Path, scan: Path, out: Path) -> np.ndarray:
    run("predict", "-i", scan, "-o", out / member, "-m", member, "--repository", root / "repository")
    return np.asarray(nib.load(out / member / "abdomen.nii.gz").dataobj).transpose(2, 1, 0)


def told(measured: Measured) -> str:
    return f"{measured.wall_s:.1f} s, {measured.peak_mb:.0f} MiB of all its processes"
