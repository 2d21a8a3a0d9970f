"""What an option does not take is refused before a scan is read."""

import pytest

from ctseg.predict.options import BatchOptions


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tile_step_size": 0.0}, "found 0.0"),
        ({"tile_step_size": 1e-4}, "found 0.0001: smaller steps give a million windows"),
        ({"tile_step_size": float("nan")}, "found nan"),
        ({"case_timeout_s": 0.0}, "found 0.0 s"),
        ({"case_timeout_s": 1e300}, r"found 1e\+300 s"),
        ({"memory_bytes": 0}, "found 0 bytes"),
        ({"memory_bytes": 10**300}, r"found 1e\+300 bytes"),
    ],
)
def test_numbers_out_of_range_are_the_callers_mistake(given: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BatchOptions(**given)


def test_the_ends_of_the_range_are_taken() -> None:
    for step in (0.01, 1.0):
        assert BatchOptions(tile_step_size=step).window_options.tile_step_size == step
