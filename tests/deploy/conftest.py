"""Small trained models and the bundles made of them, once for the whole session."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctseg.deploy.bundle import PARITY_SETS, Bundle, read_bundle
from ctseg.deploy.export import ExportOptions, export_model
from ctseg.deploy.parity_data import PreparedCase
from ctseg.deploy.trained_model import load_trained_model
from ctseg.model_spec import ParitySet
from ctseg.numerics.prepare import prepare
from tests.support.nnunet_reference import make_dataset, make_plans, make_trained_folder


@pytest.fixture(scope="session")
def trained_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two folds of a plain 3-D U-Net with random weights."""
    folder = tmp_path_factory.mktemp("results") / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    return make_trained_folder(folder, make_plans(), make_dataset(), folds=(0, 1))


@pytest.fixture(scope="session")
def real_cases(trained_unet: Path, demo_data: Path) -> list[PreparedCase]:
    """Two real scans, prepared for the U-Net."""
    spec = load_trained_model(trained_unet, folds=(0,)).spec(name="demo", mirroring="none", max_batch_size=1)
    cases = []
    for file in sorted((demo_data / "images").glob("*.nii.gz"))[:2]:
        image = nibabel.load(file)
        voxels = np.asarray(image.dataobj, dtype=np.float32).T[None, 10:34, 30:110, 30:110]
        zooms = image.header.get_zooms()
        cases.append(
            PreparedCase(file.name, prepare(voxels, (float(zooms[2]), float(zooms[1]), float(zooms[0])), spec).voxels)
        )
    assert len(cases) == 2
    return cases


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory, real_cases: list[PreparedCase]) -> Callable[..., Bundle]:
    """Export a trained folder with the real cases."""

    def run(folder: Path, *, folds: tuple[int, ...] = (0,), **options: object) -> Bundle:
        output = tmp_path_factory.mktemp("bundles") / "bundle"
        model = load_trained_model(folder, folds=folds)
        return export_model(model, output, ExportOptions(**options), cases=real_cases, data_source="demo data")  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def bundle(trained_unet: Path, export: Callable[..., Bundle]) -> Bundle:
    """The bundle of one fold of the U-Net, FP32 and FP16."""
    return export(trained_unet, precisions=("fp32", "fp16"), name="unet", max_batch_size=3)


@pytest.fixture(params=["scans", "phantom"])
def parity_set(request: pytest.FixtureRequest) -> ParitySet:
    """Every planted fault has to be found on the scans alone, and on the phantom alone."""
    found: ParitySet = request.param
    return found


@pytest.fixture(scope="session")
def mirroring_bundle(trained_unet: Path, export: Callable[..., Bundle]) -> Bundle:
    """The bundle of a graph that mirrors."""
    return export(trained_unet, mirroring="graph", max_batch_size=2)


@pytest.fixture(scope="session")
def phantom_bundle(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same bundle as an image carries it: without the voxels of patients."""
    folder = tmp_path_factory.mktemp("image") / "bundle"
    shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns(PARITY_SETS["scans"]))
    return read_bundle(folder)


@pytest.fixture(scope="session")
def large_bundle(trained_unet: Path, export: Callable[..., Bundle]) -> Bundle:
    """Two folds of the U-Net, exported as if one file could not hold their weights, mirroring in the graph."""
    options = {"mirroring": "graph", "name": "large", "max_batch_size": 3, "precisions": ("fp32", "fp16", "bf16")}
    return export(trained_unet, folds=(0, 1), one_file_bytes=2048, accept_unproven=True, **options)
