"""Label maps as arrays."""

from pathlib import Path

import nibabel as nib
import numpy as np


def labels_of(path: Path) -> np.ndarray:
    """Return the labels of a NIfTI file, along its own axes."""
    return np.asarray(nib.load(path).dataobj)
