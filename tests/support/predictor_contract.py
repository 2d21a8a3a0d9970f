"""The contract that every PatchPredictor passes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ctseg.predict.predictor import PatchPredictor


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
