"""The contract that every PatchPredictor passes, and the mirroring on top."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ctseg.arrays import Logits, Patches
from ctseg.model_spec import ModelSpec
from ctseg.predict.predictor import Identity, MirroringPredictor, PatchPredictor
from tests.support.toy_models import toy_logits, toy_patches, toy_spec


def check_predictor(predictor: PatchPredictor) -> None:
    """Check what callers rely on: shapes, order of the batch, threads, untouched input, stable answers."""
    spec = predictor.spec
    identity = predictor.identity
    assert (identity.model, identity.digest) == (spec.name, spec.digest)
    assert identity.version >= 1
    assert identity.transport in ("shared memory", "grpc", "shared memory and grpc", "in process")
    assert bool(identity.servers) == (identity.transport != "in process")
    assert predictor.max_batch_size >= 1
    assert predictor.max_in_flight >= 1
    rng = np.random.default_rng(7)
    shape = (predictor.max_batch_size, len(spec.channels), *spec.patch_size)
    patches = rng.standard_normal(shape, dtype=np.float32)
    before = patches.copy()
    logits = predictor.predict(patches)
    assert logits.shape == (len(patches), spec.num_heads, *spec.patch_size)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(patches, before, err_msg="the input was changed")

    one_by_one = [predictor.predict(patches[i : i + 1]) for i in range(len(patches))]
    np.testing.assert_allclose(np.concatenate(one_by_one), logits, rtol=1e-5, atol=1e-5)

    many = [rng.standard_normal((1, *shape[1:]), dtype=np.float32) for _ in range(4 * predictor.max_in_flight)]
    expected = [predictor.predict(item).copy() for item in many]
    with ThreadPoolExecutor(predictor.max_in_flight + 2) as threads:
        held = list(threads.map(predictor.predict, many))
    for found, wanted in zip(held, expected, strict=True):  # all are held at once: none may be overwritten
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

    view = predictor.predict(patches)[0, -1]  # the array is gone, a view of it stays
    wanted_view = view.copy()
    for item in many:
        predictor.predict(item)
    np.testing.assert_array_equal(view, wanted_view, err_msg="an answer was overwritten while a view was held")


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
