"""Fixtures that several test modules share."""

import os
from pathlib import Path

import nibabel as nib
import pytest

# nnU-Net reads it when imported and otherwise starts eight workers for every small task
os.environ.setdefault("nnUNet_def_n_proc", "2")

SHARED_DATA = Path(os.environ.get("CTSEG_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
DEMO_DATA = Path(__file__).parents[1] / "examples" / "demo_data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT that is too large for the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"NO REAL CT: {SHARED_DATA} is missing; set CTSEG_TEST_DATA to run this test")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_data() -> Path:
    """The real CT that the repository carries."""
    return DEMO_DATA


@pytest.fixture(scope="session")
def ct_piece(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece of real CT, 80 x 98 x 30 voxels of 0.98 x 0.98 x 3.27 mm: small enough to go through many networks."""
    image = nib.load(demo_data / "images" / "STS_025_0000.nii.gz")
    path = tmp_path_factory.mktemp("ct") / "piece_0000.nii.gz"
    nib.save(image.slicer[30:110, 20:118, 8:38], path)
    return path
