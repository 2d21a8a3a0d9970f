"""Names for the arrays that travel between rooms: their axes, units and types. No classes, no code."""

import numpy as np
import numpy.typing as npt

Shape3 = tuple[int, int, int]
"""Voxels along (z, y, x)."""
Spacing = tuple[float, float, float]
"""Distance between voxel centres along (z, y, x), in millimetres."""
Affine = npt.NDArray[np.float64]
"""(4, 4): voxel index (x, y, z, 1) to (right, anterior, superior, 1) in millimetres."""

Voxels = npt.NDArray[np.float32]
"""(z, y, x): intensities."""
Patches = npt.NDArray[np.float32]
"""(batch, channels, *patch_size), C-contiguous."""
Logits = npt.NDArray[np.float32]
"""(batch, heads, *patch_size)."""
Slab = npt.NDArray[np.float32]
"""(heads, planes, y, x): blended logits of consecutive planes of the prepared volume."""
Probabilities = npt.NDArray[np.float32]
"""(heads, z, y, x), between 0 and 1."""
LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""(z, y, x): the value of a label in each voxel."""
