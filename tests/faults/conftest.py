"""What the tests of faults share: a folder of real CT, and an undisturbed run over it."""

from pathlib import Path

import nibabel as nib
import pytest

from tests.support.folder_runs import Folder, serving

CASES = 8


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")
            item.add_marker("live")


@pytest.fixture(scope="session")
def folder(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Eight pieces of real CT, each another, and what an undisturbed run makes of them."""
    root = tmp_path_factory.mktemp("folder")
    scans = root / "in"
    scans.mkdir()
    image = nib.load(demo_data / "images" / "STS_025_0000.nii.gz")
    for case in range(CASES):
        nib.save(
            image.slicer[4 * case : 4 * case + 90, 12:118, 2 * case : 2 * case + 34], scans / f"case{case}_0000.nii.gz"
        )
    folder = Folder(scans, root / "undisturbed")
    with serving(root) as server:
        run = folder.start(folder.undisturbed, "--save_probabilities", "--url", server.url)
        assert run.wait() == 0, run.said
    folder.assert_is_done(folder.undisturbed)
    return folder
