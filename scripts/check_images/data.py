"""Real CT in pieces small enough to train on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel

from scripts.check_images.machine import ROOT

DEMO_DATA = ROOT / "examples" / "demo_data"


def crop(case: str, start: Sequence[int], shape: Sequence[int]) -> tuple[Any, Any]:
    """Cut a piece out of a real CT and its label map."""
    pieces = []
    for path in (DEMO_DATA / "images" / f"STS_{case}_0000.nii.gz", DEMO_DATA / "labels" / f"STS_{case}.nii.gz"):
        image = nibabel.load(path)
        window = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
        pieces.append(image.slicer[window])
    return pieces[0], pieces[1]


def make_data(folder: Path) -> None:
    """Write six small pieces of real CT to train on, and one to segment."""
    for part in ("images", "labels", "scans", "nnunet_scans", "nnunet", "bundles", "models"):
        (folder / part).mkdir(parents=True)
    for i, case in enumerate(("008", "025", "042") * 2):
        image, labels = crop(case, (40 + 4 * (i // 3), 42, 10 + 2 * (i // 3)), (56, 56, 24))
        nibabel.save(image, folder / "images" / f"piece{i}.nii.gz")
        nibabel.save(labels, folder / "labels" / f"piece{i}.nii.gz")
    scan = crop("042", (30, 40, 8), (72, 80, 30))[0]
    for name in ("scans/chest.nii.gz", "nnunet_scans/chest_0000.nii.gz"):
        nibabel.save(scan, folder / name)


def give_to(folder: Path, user: str) -> None:
    """Make a user the owner of a folder and what is in it."""
    uid, gid = (int(word) for word in user.split(":"))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, gid)
