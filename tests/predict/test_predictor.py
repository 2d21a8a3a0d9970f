"""The contract of predictors, and the mirroring on top."""

import numpy as np
import pytest

from ctseg.arrays import Logits, Patches
from ctseg.model_spec import ModelSpec
from ctseg.predict.predictor import Identity, MirroringPredictor
from tests.support.predictor_contract import check_predictor
from tests.support.toy_models import toy_logits, toy_patches, toy_spec


class ToyPredictor:
    """The toy network in this process."""

    max_batch_size = 4
    max_in_flight = 2

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.identity = Identity(spec.name, 3, spec.digest, (), "in process")

    def predict(self, patches: Patches) -> Logits:
        return toy_logits(patches)


class PositionPredictor(ToyPredictor):
    """Answers that depend on where a voxel lies, so that mirroring shows."""

    def predict(self, patches: Patches) -> Logits:
        ramp = np.arange(np.prod(self.spec.patch_size), dtype=np.float32).reshape(self.spec.patch_size)
        return toy_logits(patches) * ramp


def test_the_predictor_of_the_tests_passes_the_contract() -> None:
    check_predictor(ToyPredictor(toy_spec()))


def test_mirroring_passes_the_contract() -> None:
    check_predictor(MirroringPredictor(ToyPredictor(toy_spec(mirror_axes=(0, 2), mirroring="client"))))


@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
def test_mirroring_is_the_mean_over_all_subsets_of_the_axes(axes: tuple[int, ...]) -> None:
    spec = toy_spec(mirror_axes=axes, mirroring="client")
    plain = PositionPredictor(spec)
    patches = toy_patches(2)
    answers = []
    for choice in range(2 ** len(axes)):
        flipped = tuple(axis + 2 for i, axis in enumerate(axes) if choice >> i & 1)
        answers.append(np.flip(plain.predict(np.ascontiguousarray(np.flip(patches, flipped))), flipped))
    np.testing.assert_allclose(
        MirroringPredictor(plain).predict(patches), np.mean(answers, axis=0, dtype=np.float64), rtol=1e-4, atol=1e-3
    )
