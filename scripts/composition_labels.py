"""Compute the labels of the `composition` model from CT: nobody draws them.

    python scripts/composition_labels.py -i CT_FOLDER -o LABEL_FOLDER

Every voxel of a label map follows from HU and shape by the rule of `composition`; the same CT gives the
same labels, so that they can be made again at any time.
"""

import argparse
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
from scipy import ndimage

LABELS = {"background": 0, "bone": 1, "muscle": 2, "fat": 3}
"""Label values by name; muscle stands for all soft tissue that is neither bone nor fat."""

BODY_HU = -300.0
FAT_HU = (-250.0, -30.0)
BONE_HU = 160.0
SPONGY_BONE_HU = 110.0
"""What is above this and hangs together with bone is bone."""
SMOOTHING_MM = 1.5
"""Standard deviation of the Gaussian that takes the noise from HU before they are compared with a threshold."""
SMALLEST_BODY_CM3 = 100.0
SMALLEST_BONE_CM3 = 3.0
TABLE_MM = 8.0
"""What is thinner than this on every slice, beside the body, is the table or a blanket."""
CLOSING_MM = 4.0
"""Radius of the disc that closes a bone's cortex on a slice before its marrow is filled."""


def composition(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Bone, muscle and fat by a rule.

    Body: what is above -300 HU, opened by a disc that takes the table away, in components of at least
    100 cm3, holes filled slice by slice. Inside it, on smoothed HU: bone above 160 HU in components of at
    least 3 cm3, closed and filled slice by slice, so marrow is bone; else fat from -250 to -30 HU; else
    muscle from -30 HU. Air in the body is background.

    Args:
        hu: HU of any number type, axes (x, y, z) with z along the body.
        spacing_mm: Along the same axes.

    Returns:
        Values of ``LABELS``, uint8, the same shape.
    """
    hu = np.asarray(hu, np.float32)  # of integers the Gaussian would give integers, cut off
    in_plane_mm = float(np.mean(spacing_mm[:2]))
    voxel_cm3 = float(np.prod(spacing_mm)) / 1000
    smooth = ndimage.gaussian_filter(hu, SMOOTHING_MM / np.asarray(spacing_mm))

    opened = open_slices(hu > BODY_HU, disc(TABLE_MM / 2, in_plane_mm))
    body = fill_slices(large_components(opened, SMALLEST_BODY_CM3 / voxel_cm3))

    bright = large_components(body & (smooth > BONE_HU), SMALLEST_BONE_CM3 / voxel_cm3)
    spongy = ndimage.binary_propagation(bright, mask=body & (smooth > SPONGY_BONE_HU))
    bone = body & fill_slices(close_slices(spongy, disc(CLOSING_MM, in_plane_mm)))

    labels = np.zeros(hu.shape, np.uint8)
    labels[body & (smooth >= FAT_HU[0])] = LABELS["fat"]
    labels[body & (smooth >= FAT_HU[1])] = LABELS["muscle"]
    labels[bone] = LABELS["bone"]
    return labels


def disc(radius_mm: float, spacing_mm: float) -> np.ndarray:
    """A disc in the plane of a slice, as a structuring element of shape (n, n, 1)."""
    reach = int(radius_mm / spacing_mm)
    x, y = np.mgrid[-reach : reach + 1, -reach : reach + 1] * spacing_mm
    return (x**2 + y**2 <= radius_mm**2)[..., None]


def large_components(mask: np.ndarray, smallest_voxels: float) -> np.ndarray:
    """The components (neighbours share a face) that have at least so many voxels."""
    components = cc3d.connected_components(mask, connectivity=6)
    large = np.bincount(components.ravel()) >= smallest_voxels
    large[0] = False
    return large[components]


def open_slices(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Binary opening of each slice along z; what touches the border goes on beyond it."""
    reach = element.shape[0]
    padded = np.pad(mask, [(reach, reach), (reach, reach), (0, 0)], mode="edge")
    return ndimage.binary_opening(padded, element)[reach:-reach, reach:-reach]


def close_slices(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Binary closing of each slice along z, also of what touches the border."""
    reach = element.shape[0]
    padded = np.pad(mask, [(reach, reach), (reach, reach), (0, 0)])
    return ndimage.binary_closing(padded, element)[reach:-reach, reach:-reach]


def fill_slices(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of each slice along z; the edge of the scan closes what it cuts in two places."""
    return np.stack([fill_slice(mask[..., z]) for z in range(mask.shape[2])], axis=2)


def fill_slice(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of each component, the border of the slice closed between its first and last pixel there."""
    components, count = ndimage.label(mask)
    filled = mask.copy()
    for label in range(1, count + 1):
        framed = np.pad(components == label, 1)
        for side in (framed[1], framed[-2], framed[:, 1], framed[:, -2]):
            touched = np.flatnonzero(side)
            if len(touched):
                side[touched[0] : touched[-1] + 1] = True
        filled |= ndimage.binary_fill_holes(framed)[1:-1, 1:-1]
    return filled


def main() -> None:
    """Write one label map per CT, named after the case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-i", "--input", type=Path, required=True, help="folder of CT in nnU-Net's names (CASE_0000.nii.gz)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the label maps (CASE.nii.gz)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for file in sorted(args.input.glob("*_0000.nii.gz")):
        image = nib.load(file)
        labels = composition(np.asarray(image.dataobj, np.float32), image.header.get_zooms()[:3])
        case = file.name.removesuffix("_0000.nii.gz")
        result = nib.Nifti1Image(labels, image.affine)
        result.header.set_xyzt_units("mm")
        nib.save(result, args.output / f"{case}.nii.gz")
        print(case, {name: int((labels == value).sum()) for name, value in LABELS.items()})


if __name__ == "__main__":
    main()
