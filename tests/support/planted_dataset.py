"""A data set of nnU-Net in which some cases are odd, each in its own way."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

SHAPE_ZYX, SPACING_ZYX = (10, 20, 16), (3.0, 1.0, 1.2)
LIVER, CYST = 1, 2
LIVER_VOXELS, CYST_VOXELS = 120, 8
SCRIPT = "<script>alert(1)</script>"


@dataclass(frozen=True)
class PlantedCase:
    """One case; what is not named is as in the others."""

    name: str
    seed: int
    spacing_zyx: tuple[float, float, float] = SPACING_ZYX
    liver_voxels_z: int = 4
    liver_hu: float = 100.0
    has_cyst: bool = True
    has_liver: bool = True
    at_first_x: bool = False
    mirrored: bool = False
    scaled: bool = False

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Voxels (z, y, x), and labels: a body in air, a liver of 4 x 6 x 5 voxels and a cyst of 2 x 2 x 2."""
        rng = np.random.default_rng(self.seed)
        voxels = np.full(SHAPE_ZYX, -1000.0)
        voxels[:, 2:18, 1:15] = 20
        labels = np.zeros(SHAPE_ZYX, np.uint8)
        if self.has_liver:
            x = 0 if self.at_first_x else 3
            labels[1 : 1 + self.liver_voxels_z, 5:11, x : x + 5] = LIVER
        if self.has_cyst:
            labels[6:8, 13:15, 9:11] = CYST
        voxels[labels > 0] = self.liver_hu
        voxels += rng.normal(0, 10, SHAPE_ZYX)
        if self.scaled:
            voxels = (voxels - voxels.min()) / np.ptp(voxels)
        return voxels.astype(np.float32 if self.scaled else np.int16), labels

    def affine(self) -> NDArray[np.float64]:
        """Of voxels that run to the left, back and up; to the right, back and up where they are mirrored."""
        z, y, x = self.spacing_zyx
        return np.diag([x if self.mirrored else -x, -y, z, 1.0])


USUAL = tuple(PlantedCase(f"c{number:02d}", number) for number in range(9))
ODD = (
    PlantedCase("big", 20, liver_voxels_z=8),
    PlantedCase("blank", 21, has_liver=False, has_cyst=False),
    PlantedCase("cut", 22, at_first_x=True),
    PlantedCase("hot", 23, liver_hu=400.0),
    PlantedCase("mirrored", 24, mirrored=True),
    PlantedCase("no_cyst", 25, has_cyst=False),
    PlantedCase("scaled", 26, scaled=True),
    PlantedCase("thick", 27, spacing_zyx=(9.0, 1.0, 1.2)),
    replace(USUAL[0], name="twin"),
    PlantedCase("<img src=x onerror=alert(1)>", 28),
)


def write_planted(folder: Path, *, broken: bool = True) -> None:
    """Write the data set; the image of the case ``broken`` is cut off."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in (*USUAL, *ODD):
        write_case(folder, case.name, case.arrays(), case.affine())
    if broken:
        write_case(folder, "broken", USUAL[1].arrays(), USUAL[1].affine())
        image = folder / "imagesTr" / "broken_0000.nii.gz"
        image.write_bytes(image.read_bytes()[:300])
    write_json(folder, {"background": 0, "liver": LIVER, SCRIPT: CYST}, cases=len(USUAL) + len(ODD) + broken)


def write_case(folder: Path, name: str, arrays: tuple[NDArray[Any], NDArray[Any]], affine: NDArray[np.float64]) -> None:
    """Write an image, of one channel, and its label map."""
    for file, values in (
        (folder / "imagesTr" / f"{name}_0000.nii.gz", arrays[0]),
        (folder / "labelsTr" / f"{name}.nii.gz", arrays[1]),
    ):
        nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), file)


def write_json(folder: Path, labels: dict[str, Any], *, cases: int, **more: Any) -> None:
    """Write ``dataset.json``."""
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content))
