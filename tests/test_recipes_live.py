"""A crop and a union of the two trained models of the repository, by the commands of the docs, on real CT."""

import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ctseg.cli.main import main as ctseg

pytestmark = pytest.mark.live

MODELS = Path(__file__).parents[1] / "model_repository"
MARGIN_MM = 15


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes") / "models"
    for name in ("sarcoma", "composition"):
        shutil.copytree(MODELS / name, root / name)
    return root


def predicted(model: str, scan: Path, repository: Path, out: Path) -> np.ndarray:
    words = ["predict", "-i", scan, "-o", out / model, "-m", model, "--repository", repository, "--disable_tta"]
    assert ctseg([str(word) for word in words]) == 0
    return np.asarray(nib.load(out / model / f"{scan.name.removesuffix('_0000.nii.gz')}.nii.gz").dataobj)


def test_a_crop_and_a_union_of_trained_models_on_real_ct(repository: Path, demo_data: Path, tmp_path: Path) -> None:
    scan = demo_data / "images" / "STS_025_0000.nii.gz"
    recipe = ["recipe", "--repository", str(repository), "-m"]
    crop = ["--crop", "sarcoma", "composition", "--labels", "tumor", "--margin_mm", str(MARGIN_MM)]
    assert ctseg([*recipe, "around_tumour", *crop]) == 0
    assert ctseg([*recipe, "both", "--union", "composition", "sarcoma"]) == 0

    tumour = predicted("sarcoma", scan, repository, tmp_path)
    composition = predicted("composition", scan, repository, tmp_path)
    assert tumour.any()
    union = np.where(tumour == 1, 4, composition)
    np.testing.assert_array_equal(predicted("both", scan, repository, tmp_path), union)

    image = nib.load(scan)
    box = []
    for axis, spacing in enumerate(image.header.get_zooms()):
        where = np.flatnonzero(tumour.any(axis=tuple({0, 1, 2} - {axis})))
        margin = math.ceil(MARGIN_MM / spacing)
        box.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + 1 + margin))
    cut = tmp_path / "cut_0000.nii.gz"
    nib.save(image.slicer[tuple(box)], cut)
    expected = np.zeros_like(tumour)
    expected[tuple(box)] = predicted("composition", cut, repository, tmp_path)
    assert expected.size > 2 * expected[tuple(box)].size, "a box that is nearly all of the scan proves little"
    found = predicted("around_tumour", scan, repository, tmp_path)
    np.testing.assert_array_equal(found, expected)
    assert (found != np.where(expected > 0, composition, 0)).any(), "what lies around the box matters"
