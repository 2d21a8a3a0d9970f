"""A data set small enough to train on within seconds: crops of real CT, and made-up CT."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tests.support.nnunet_reference import swin_architecture, unet_architecture

DEMO_DATA = Path(__file__).parents[2] / "examples" / "demo_data"

CASES = 5
CROP_ZYX = (24, 48, 48)
SPACING_XYZ = (0.977, 0.977, 3.27)


@dataclass(frozen=True)
class TinyNnunet:
    """nnU-Net's folders with a planned, preprocessed ``Dataset301_Tiny``."""

    root: Path
    dataset: str = "Dataset301_Tiny"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a user whose machine is small."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")},
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }

    @property
    def results(self) -> Path:
        """Where the trained models of the data set lie."""
        return self.root / "results" / self.dataset

    def run(self, *words: str, check: bool = True, timeout_s: float = 300, **more: str) -> subprocess.CompletedProcess:
        """Run a command line with this environment; ``ctseg`` is this interpreter's."""
        if words[0] == "ctseg":
            words = (sys.executable, "-m", "ctseg", *words[1:])
        done = subprocess.run(
            words, env={**self.environment, **more}, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done


def write_pairs(folder: Path, cases: int = CASES) -> None:
    """Write ``tinyN_ct.nii.gz`` and ``tinyN_gtv.nii.gz``."""
    folder.mkdir(parents=True)
    real = sorted((DEMO_DATA / "images").glob("*_0000.nii.gz"))
    for i in range(cases):
        if i < len(real):
            image, label = _crop_of(real[i])
        else:
            image, label = _made_up(i)
        sitk.WriteImage(image, str(folder / f"tiny{i}_ct.nii.gz"), True)
        sitk.WriteImage(label, str(folder / f"tiny{i}_gtv.nii.gz"), True)


def _crop_of(file: Path) -> tuple[sitk.Image, sitk.Image]:
    image = sitk.ReadImage(str(file))
    label = sitk.ReadImage(str(DEMO_DATA / "labels" / file.name.replace("_0000", "")))
    where = np.argwhere(sitk.GetArrayViewFromImage(label) == 1).mean(axis=0)
    shape = image.GetSize()[::-1]
    start = [int(np.clip(c - n / 2, 0, s - n)) for c, n, s in zip(where, CROP_ZYX, shape, strict=True)]
    size, index = CROP_ZYX[::-1], start[::-1]
    return tuple(sitk.RegionOfInterest(part, size, index) for part in (image, label))


def _made_up(seed: int) -> tuple[sitk.Image, sitk.Image]:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in CROP_ZYX), indexing="ij"))
    centre = np.array(CROP_ZYX).reshape(3, 1, 1, 1) * rng.uniform(0.4, 0.6, (3, 1, 1, 1))
    radii = np.array([5, 12, 9]).reshape(3, 1, 1, 1)
    tumour = (((grid - centre) / radii) ** 2).sum(axis=0) < 1
    voxels = np.where(tumour, 60, 0) + rng.normal(0, 15, CROP_ZYX)
    parts = []
    for array in (voxels.astype(np.float32), tumour.astype(np.uint8)):
        part = sitk.GetImageFromArray(array)
        part.SetSpacing(SPACING_XYZ)
        parts.append(part)
    return parts[0], parts[1]


def small_swin_architecture() -> dict[str, Any]:
    """A Swin UNETR that a CPU trains: the narrowest, with one block a stage and small windows."""
    architecture = swin_architecture(3)
    architecture["arch_kwargs"].update(depths=[1, 1, 1, 1], window_size=4)
    return architecture


def write_small_plans(preprocessed: Path) -> None:
    """Write ``nnUNetSwinUNETRPlans`` and ``nnUNetPlans`` with patches and networks that a CPU trains in no time."""
    source = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    for name, architecture in (
        ("nnUNetSwinUNETRPlans", small_swin_architecture()),
        ("nnUNetPlans", unet_architecture(3, features=(4, 8, 8))),
    ):
        plans: dict[str, Any] = json.loads(json.dumps(source))
        plans["plans_name"] = name
        configuration = plans["configurations"]["3d_fullres"]
        configuration.update(patch_size=[32, 32, 64], batch_size=2, architecture=architecture, batch_dice=False)
        plans["configurations"] = {"3d_fullres": configuration}
        (preprocessed / f"{name}.json").write_text(json.dumps(plans))


def make_tiny(root: Path) -> TinyNnunet:
    """Create, plan and preprocess the data set by ctseg's own commands."""
    tiny = TinyNnunet(root)
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(parents=True)
    write_pairs(root / "pairs")
    pairs = str(root / "pairs")
    tiny.run(
        "ctseg", "dataset", "create", "-d", "301", "--name", "Tiny", "--images", pairs, "--labels", pairs,
        "--image_suffix", "_ct", "--label_suffix", "_gtv", "--label", "tumor=1",
    )  # fmt: skip
    tiny.run("ctseg", "plan", "-d", "301", "-c", "3d_fullres", "--gpu_memory_gb", "16", "-np", "1")
    write_small_plans(root / "preprocessed" / tiny.dataset)
    return tiny
