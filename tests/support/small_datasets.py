"""Data sets of a few voxels, sound and broken, and folders of pairs to make some from."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE_ZYX = (5, 6, 7)
SOUND = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "tumor": 1},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


def affine() -> np.ndarray:
    """Turned about the long axis, three spacings, an origin elsewhere."""
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    made = np.eye(4)
    made[:3, :3] = turn @ np.diag([0.8, 0.9, 2.5])
    made[:3, 3] = (11, -4, 30)
    return made


def image(seed: int = 0) -> np.ndarray:
    """HU, axes (z, y, x)."""
    return np.random.default_rng(seed).normal(0, 100, SHAPE_ZYX).astype(np.int16)


def labels(value: int = 1) -> np.ndarray:
    """Two voxels of one value."""
    made = np.zeros(SHAPE_ZYX, np.uint8)
    made[1:3, 2, 3] = value
    return made


def write(file: Path, voxels: np.ndarray, affine_ras: np.ndarray | None = None) -> None:
    """Write (z, y, x), or (channel, z, y, x), as NIfTI, of which nibabel has the axes the other way round."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels.T, affine() if affine_ras is None else affine_ras), file)


def raw_dataset(
    raw: Path,
    name: str = "Dataset007_Toy",
    *,
    cases: int = 5,
    number: str = "_0000",
    ending: str = ".nii.gz",
    content: dict[str, Any] | None = None,
) -> Path:
    """Write a raw data set of nnU-Net; the file names and what ``dataset.json`` says may be wrong."""
    (raw / name).mkdir(parents=True)
    for i in range(cases):
        write(raw / name / "imagesTr" / f"case{i}{number}{ending}", image(i))
        write(raw / name / "labelsTr" / f"case{i}{ending}", labels())
    text = {**SOUND, "numTraining": cases} if content is None else content
    (raw / name / "dataset.json").write_text(json.dumps(text))
    return raw / name


def pairs(folder: Path, *, cases: int = 2, value: int = 1) -> tuple[Path, Path]:
    """Write ``images/pN.nii.gz`` and ``labels/pN.nii.gz``; the two folders."""
    for i in range(cases):
        write(folder / "images" / f"p{i}.nii.gz", image(i))
        write(folder / "labels" / f"p{i}.nii.gz", labels(value))
    return folder / "images", folder / "labels"
