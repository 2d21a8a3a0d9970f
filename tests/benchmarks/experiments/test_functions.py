"""What nnU-Net's export is asked to take."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.experiments.functions import bearable_export_shape
from benchmarks.sizes import SIZES

WHOLE = (61, 512, 512)


def test_a_scan_that_nnunet_can_export_stays_whole():
    assert bearable_export_shape(WHOLE, 2, SIZES["standard"]) == WHOLE


def test_a_smaller_grid_keeps_the_proportions_and_the_limits():
    sizes = replace(SIZES["standard"], largest_export_s=8.0, largest_export_bytes=1e9)
    shape = bearable_export_shape(WHOLE, 25, sizes)
    assert np.prod(shape) * 25 * 8e-8 == pytest.approx(8.0, rel=0.05)
    assert np.prod(shape) * 25 * 10 <= 1.05e9
    assert [side / shape[0] for side in shape] == pytest.approx([side / WHOLE[0] for side in WHOLE], rel=0.05)


def test_no_axis_gets_shorter_than_eight_voxels():
    sizes = replace(SIZES["standard"], largest_export_s=1e-6)
    assert bearable_export_shape(WHOLE, 118, sizes) == (8, 8, 8)
