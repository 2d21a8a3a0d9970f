"""What counts as an answer to a random patch."""

import numpy as np
import pytest

from ctseg.serving.proof import is_answer, random_patches


def test_patches_are_the_same_at_each_call_and_not_constant() -> None:
    patches = random_patches((1, 2, 3, 4, 5))
    assert patches.shape == (1, 2, 3, 4, 5)
    assert patches.dtype == np.float32
    assert patches.std() > 0.5
    np.testing.assert_array_equal(patches, random_patches((1, 2, 3, 4, 5)))


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (np.zeros((1, 2), np.float16), True),
        (np.empty((0,), np.float32), False),
        (np.array([1.0, np.nan]), False),
        (np.array([1.0, -np.inf]), False),
    ],
)
def test_an_answer_is_there_and_finite(logits: np.ndarray, expected: bool) -> None:
    assert is_answer(logits) is expected
