"""Fixtures that several test modules share."""

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from tests.support.real_data import VARIABLE, real_data_folder

# nnU-Net reads it when imported and otherwise starts eight workers for every small task
os.environ.setdefault("nnUNet_def_n_proc", "2")
# as ctseg.compiled.loading has it; some tests import kernels themselves
os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")

DEMO_DATA = Path(__file__).parents[1] / "examples" / "demo_data"

SLOW_FILES = (
    "test_equality_live.py", "deploy/test_export.py", "predict/test_folder_live.py", "deploy/test_build.py",
    "train/test_commands.py", "triton/test_predictor.py", "runs/test_where.py", "runs/test_dask.py",
    "deploy/test_recipe_bundle.py", "cli/test_predict_away.py", "test_recipes_live.py", "runs/test_recipe.py",
    "train/test_planner.py", "predict/test_ledger_kills.py", "deploy/test_precision.py", "scripts/test_gpu_proof.py",
)  # fmt: skip
"""Half a minute and more each: begun first, so that none of them is left for one process at the end."""

_LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests on real CT, and leave them out where there is none; put the slow files first."""
    places = {Path(__file__).parent / file: place for place, file in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    try:
        folder = real_data_folder()
    except FileNotFoundError as error:
        raise pytest.UsageError(str(error)) from error
    on_real_data = [
        item
        for item in items
        if "shared_data" in getattr(item, "fixturenames", ()) or item.get_closest_marker("data") is not None
    ]
    for item in on_real_data:
        item.add_marker("data")
    if folder is None and on_real_data:
        if "data" in config.option.markexpr.replace("not data", "").split():
            raise pytest.UsageError(f"the tests on real CT need their folder: set {VARIABLE}")
        config.stash[_LEFT_OUT] = len(on_real_data)
        config.hook.pytest_deselected(items=on_real_data)
        items[:] = [item for item in items if item not in on_real_data]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one, if tests run in several, how many were left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker process tells; each has collected the same tests."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say in one line how many tests on real CT were left out."""
    if left_out := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} tests on real CT left out: {VARIABLE} is not set (make test-data)")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT that is too large for the repository; tests that ask for it have the marker ``data``."""
    folder = real_data_folder()
    assert folder is not None, "left out at collection"
    return folder


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
