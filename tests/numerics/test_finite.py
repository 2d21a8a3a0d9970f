"""NaN and infinity are found wherever they stand."""

import numpy as np
import pytest

from ctseg.numerics.finite import all_finite


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1, 4095, 65536, 99_999])
def test_one_bad_value_is_found_anywhere(bad: float, where: int) -> None:
    values = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    values[where] = bad
    assert not all_finite(values.reshape(10, 100, 100))


def test_numbers_are_finite_however_large_or_small() -> None:
    for value in (0.0, 1e-45, 1e30, np.finfo(np.float32).max, -np.finfo(np.float32).max):
        assert all_finite(np.full((3, 5, 7), value, np.float32)), value
    assert all_finite(np.empty((0, 3), np.float32))


def test_opposite_infinities_do_not_cancel() -> None:
    assert not all_finite(np.array([np.inf, -np.inf], np.float32))
