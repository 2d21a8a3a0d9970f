"""A small genuine data set: crops of the CT in ``examples/demo_data``, with the bone, muscle and fat of a rule."""

import json
from pathlib import Path

import nibabel
import numpy as np

from scripts.composition_labels import LABELS, composition

DATASET = 401
NAME = f"Dataset{DATASET}_Composition"
PATIENTS = ("STS_008", "STS_025")
TEST_PATIENT = "STS_042"
CROP = (80, 80, 24)
TEST_CROP = (84, 76, 28)
"""Voxels along x, y, z."""
STARTS = ((20, 30, 6), (50, 45, 20))
"""First voxels of a patient's crops."""
FOLDS = 2


def scan_of(raw: Path) -> Path:
    """Return the scan that the data set does not hold."""
    return raw / NAME / "imagesTs" / f"{TEST_PATIENT}_0000.nii.gz"


def make_dataset(demo: Path, raw: Path) -> Path:
    """Write a raw data set of four cases in nnU-Net's layout; return a scan that it does not hold.

    Args:
        demo: Folder of CT in nnU-Net's names.
        raw: ``nnUNet_raw``.
    """
    folder = raw / NAME
    scan = scan_of(raw)
    if (folder / "dataset.json").exists():
        return scan
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for patient in PATIENTS:
        image = nibabel.load(demo / f"{patient}_0000.nii.gz")
        hu = np.asarray(image.dataobj, np.float32)
        labels = composition(hu, image.header.get_zooms()[:3])
        for number, start in enumerate(STARTS):
            case = f"{patient}_{number}"
            _save(hu, image, start, CROP, folder / "imagesTr" / f"{case}_0000.nii.gz")
            _save(labels, image, start, CROP, folder / "labelsTr" / f"{case}.nii.gz")
    image = nibabel.load(demo / f"{TEST_PATIENT}_0000.nii.gz")
    _save(np.asarray(image.dataobj, np.float32), image, STARTS[0], TEST_CROP, scan)
    words = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": len(PATIENTS) * len(STARTS),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(words), encoding="utf-8")
    return scan


def write_splits(preprocessed: Path) -> None:
    """Write two folds, one patient each: few trainings make a whole cross-validation."""
    cases = {patient: [f"{patient}_{number}" for number in range(len(STARTS))] for patient in PATIENTS}
    first, second = cases.values()
    folder = preprocessed / NAME
    folder.mkdir(parents=True, exist_ok=True)
    splits = [{"train": first, "val": second}, {"train": second, "val": first}]
    (folder / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")


def _save(
    voxels: np.ndarray, image: nibabel.Nifti1Image, start: tuple[int, ...], size: tuple[int, ...], file: Path
) -> None:
    region = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    piece = nibabel.Nifti1Image(voxels[region], image.slicer[region].affine)
    piece.header.set_xyzt_units("mm")
    nibabel.save(piece, file)
