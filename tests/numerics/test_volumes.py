import numpy as np
import pytest

from ctseg.numerics.volumes import volumes_ml


@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [
        ((3.0, 2.0, 1.0), {"one": 0.006, "three": 0.018, "both": 0.024, "none": 0.0}),
        ((1.0, 0.5, 0.5), {"one": 0.00025, "three": 0.00075, "both": 0.001, "none": 0.0}),  # under a cubic millimetre
        ((0.01, 0.01, 0.01), {"one": 1e-9, "three": 3e-9, "both": 4e-9, "none": 0.0}),
        ((100.0, 123.0, 100.123456), {"one": 1231.519, "three": 3694.556, "both": 4926.074, "none": 0.0}),
    ],
)
def test_volumes_are_those_of_the_voxels_and_what_is_found_is_never_nothing(spacing_mm, expected):
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1:] = 1, 3
    named = {"one": (1,), "three": (3,), "both": (1, 3), "none": (2,)}
    assert volumes_ml(labels, named, spacing_mm) == expected
