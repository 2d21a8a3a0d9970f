"""The rule behind the labels of the `composition` model, on a limb made of cylinders and on real CT."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.composition_labels import LABELS, composition, main

SPACING_MM = (1.0, 1.0, 3.0)
SHAPE = (120, 110, 20)
DEMO_IMAGES = Path(__file__).parents[2] / "examples" / "demo_data" / "images"


def distance_mm(x: float, y: float) -> np.ndarray:
    """In the plane, from the voxel (x, y)."""
    i, j = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.broadcast_to(np.hypot(i - x, j - y)[..., None], SHAPE)


def limb(bone_at: tuple[float, float] = (60, 50)) -> np.ndarray:
    """Fat of radius 45 mm, muscle of 35, a bone of 14 with fatty marrow of 9, in air, over a table."""
    body, bone = distance_mm(60, 50), distance_mm(*bone_at)
    hu = np.full(SHAPE, -1000.0, np.float32)
    hu[body <= 45] = -100
    hu[body <= 35] = 50
    hu[(bone <= 14) & (body <= 45)] = 900
    hu[(bone <= 9) & (body <= 45)] = -80
    hu[:, 100:104] = 400
    return hu


def share(labels: np.ndarray, name: str, where: np.ndarray) -> float:
    return float((labels[where] == LABELS[name]).mean())


def test_bone_with_its_marrow_muscle_fat_and_no_table() -> None:
    labels = composition(limb(), SPACING_MM)
    body = distance_mm(60, 50)
    assert share(labels, "bone", body <= 13) == 1
    assert share(labels, "muscle", (body > 18) & (body <= 33)) == 1
    assert share(labels, "fat", (body > 37) & (body <= 43)) == 1
    assert share(labels, "background", body > 46) == 1


def test_integers_give_the_labels_of_floats() -> None:
    hu = np.rint(limb() + np.random.default_rng(0).normal(0, 40, SHAPE)).astype(np.float32)
    expected = composition(hu, SPACING_MM)
    np.testing.assert_array_equal(composition(hu.astype(np.int16), SPACING_MM), expected)


def test_the_marrow_of_a_bone_that_the_scan_cuts_is_bone() -> None:
    whole = np.full((60, 60, 20), 50, np.float32)
    i, j = np.mgrid[:60, :60]
    from_middle = np.hypot(i - 30, j)
    whole[from_middle <= 14] = 900
    whole[from_middle <= 9] = -80
    labels = composition(whole, SPACING_MM)
    assert share(labels, "bone", np.broadcast_to((from_middle <= 13)[..., None], labels.shape)) == 1
    assert share(labels, "muscle", np.broadcast_to((from_middle > 17)[..., None], labels.shape)) == 1


@pytest.mark.parametrize(("radius_mm", "name"), [(4, "muscle"), (9, "bone")])
def test_a_calcification_is_no_bone(radius_mm: int, name: str) -> None:
    """3 cm3 are the limit: a cylinder of 60 mm has 3.0 cm3 at a radius of 4 mm, 15 at 9."""
    hu = np.full(SHAPE, 50, np.float32)
    spot = distance_mm(60, 50) <= radius_mm
    spot[..., :3] = spot[..., 17:] = False
    hu[spot] = 400
    labels = composition(hu, SPACING_MM)
    assert labels[60, 50, 10] == LABELS[name]
    assert (labels == LABELS["bone"]).any() == (name == "bone")


def test_air_in_the_body_is_background() -> None:
    hu = limb()
    bowel = distance_mm(60, 75) <= 6
    hu[bowel] = -900
    labels = composition(hu, SPACING_MM)
    assert share(labels, "background", distance_mm(60, 75) <= 4) == 1


def test_a_scan_of_air_is_background() -> None:
    assert not composition(np.full(SHAPE, -1000, np.float32), SPACING_MM).any()


def test_the_command_makes_the_labels_of_real_ct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "STS_042_0000.nii.gz").symlink_to(DEMO_IMAGES / "STS_042_0000.nii.gz")
    monkeypatch.setattr("sys.argv", ["composition_labels", "-i", str(tmp_path / "ct"), "-o", str(tmp_path / "labels")])
    main()
    scan = nib.load(DEMO_IMAGES / "STS_042_0000.nii.gz")
    made = nib.load(tmp_path / "labels" / "STS_042.nii.gz")
    counts = np.bincount(np.asarray(made.dataobj).ravel(), minlength=4)
    # counted once with SciPy 1.17; the Gaussian's last bits may move a few voxels at a threshold
    np.testing.assert_allclose(counts, [595_378, 92_420, 210_366, 165_528], atol=100)
    np.testing.assert_allclose(made.affine, scan.affine)
