"""nnU-Net's own windows, and geometries to try them on."""

from itertools import product

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window


def nnunet_windows(voxels: np.ndarray, patch_size: tuple[int, ...], step: float) -> tuple[torch.Tensor, list, tuple]:
    """nnU-Net's padded volume, its windows, and how it takes the padding off."""
    padded, slicer = pad_nd_image(torch.from_numpy(voxels), patch_size, "constant", {"value": 0}, True, None)
    size = padded.shape[1:]
    slicers: list[tuple] = []
    if len(patch_size) == 2:
        steps = compute_steps_for_sliding_window(size[1:], patch_size, step)
        for z, y, x in product(range(size[0]), *steps):
            slicers.append((slice(None), z, slice(y, y + patch_size[0]), slice(x, x + patch_size[1])))
    else:
        steps = compute_steps_for_sliding_window(size, patch_size, step)
        for start in product(*steps):
            slicers.append((slice(None), *(slice(s, s + p) for s, p in zip(start, patch_size, strict=True))))
    return padded, slicers, (slice(None), *slicer[1:])


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, int, int], tuple[int, ...], float]:
    image = tuple(draw(st.integers(1, 14)) for _ in range(3))
    patch = tuple(draw(st.integers(1, 9)) for _ in range(draw(st.sampled_from([2, 3]))))
    return image, patch, draw(st.sampled_from([0.25, 0.5, 0.6, 0.75, 1.0]))
