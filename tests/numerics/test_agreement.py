"""The agreement of folds is what its formula says, on examples that were computed by hand and on random ones."""

import numpy as np
import pytest

from ctseg.model_spec import ModelSpec
from ctseg.numerics.agreement import FoldAgreement
from ctseg.numerics.decide import REGION_THRESHOLD
from ctseg.numerics.votes import logits_and_votes
from tests.support.toy_models import toy_spec

LABELS = toy_spec(votes={"folds": 4})
REGIONS = toy_spec(
    votes={"folds": 4},
    labels=[{"name": "whole", "values": (1, 2)}, {"name": "core", "values": (2,)}],
    regions_class_order=(1, 2),
)


def scores_of(logits: np.ndarray, counts: np.ndarray, spec: ModelSpec) -> dict[str, float]:
    agreement = FoldAgreement(spec)
    agreement.add(logits_and_votes(logits[None], counts[None], spec)[0])
    return dict(agreement.scores)


def test_labels_by_hand() -> None:
    # a row of four voxels: background, liver, liver, tumour
    logits = np.array([[9, 0, 0, 0], [0, 9, 9, 1], [0, 0, 0, 9]], np.float32).reshape(3, 1, 1, 4)
    counts = np.array([[3, 0, 1, 0], [1, 4, 3, 2], [0, 0, 0, 2]], np.uint8).reshape(3, 1, 1, 4)
    # liver: votes 1/4 + 1 + 3/4 + 1/2 = 2.5 everywhere, 1.75 where it is; two voxels. Tumour: 1/2, 1/2; one voxel
    assert scores_of(logits, counts, LABELS) == {"liver": round(2 * 1.75 / 4.5, 4), "tumour": round(1 / 1.5, 4)}


def test_regions_may_overlap_and_each_is_decided_by_itself() -> None:
    logits = np.array([[1, 1, -1], [1, REGION_THRESHOLD, -1]], np.float32).reshape(2, 1, 1, 3)
    counts = np.array([[4, 2, 1], [3, 1, 0]], np.uint8).reshape(2, 1, 1, 3)
    # whole: 7/4 everywhere, 6/4 in two voxels. core: 1 everywhere, 3/4 in one: the threshold itself is not above it
    assert scores_of(logits, counts, REGIONS) == {"whole": 0.8, "core": 0.75}


def test_a_label_that_only_some_folds_see_has_none_and_one_that_nobody_sees_is_left_out() -> None:
    logits = np.array([[9], [1], [0]], np.float32).reshape(3, 1, 1, 1)
    counts = np.array([[3], [1], [0]], np.uint8).reshape(3, 1, 1, 1)
    assert scores_of(logits, counts, LABELS) == {"liver": 0.0}


def test_a_label_that_the_mean_alone_gives_has_an_agreement_of_nothing() -> None:
    logits = np.array([[1], [2], [1]], np.float32).reshape(3, 1, 1, 1)
    counts = np.array([[2], [0], [2]], np.uint8).reshape(3, 1, 1, 1)
    assert scores_of(logits, counts, LABELS) == {"liver": 0.0, "tumour": 0.0}


def test_folds_of_one_mind_agree_wholly() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 2, 3, 5)).astype(np.float32)
    counts = np.where(logits == logits.max(axis=0), 4, 0).astype(np.uint8)
    assert scores_of(logits, counts, LABELS) == {"liver": 1.0, "tumour": 1.0}


@pytest.mark.parametrize("spec", [LABELS, REGIONS], ids=["labels", "regions"])
def test_slabs_give_what_a_plain_computation_gives(spec: ModelSpec) -> None:
    rng = np.random.default_rng(1)
    heads, size = spec.num_heads, (5, 7, 11)
    logits = rng.integers(-3, 4, (heads, *size)).astype(np.float32)  # with ties: the first of equal ones wins
    shares = rng.random((2, *size)).astype(np.float32)
    slab = np.concatenate([logits, shares]).transpose(0, 1, 3, 2)  # of any strides
    agreement = FoldAgreement(spec)
    for begin, end in ((0, 1), (1, 4), (4, 5)):
        agreement.add(slab[:, begin:end])
    if spec.has_regions:
        masks = logits > REGION_THRESHOLD
    else:
        masks = np.stack([logits.argmax(axis=0) == head for head in (1, 2)])
    names = [label.name for label in spec.labels][-2:]
    expected = {
        name: 2 * share[mask].sum(dtype=float) / (share.sum(dtype=float) + mask.sum())
        for name, share, mask in zip(names, shares, masks, strict=True)
    }
    assert agreement.scores == pytest.approx(expected, abs=6e-5)


def test_channels_that_are_none_of_the_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 5 channels of logits and votes, found 3"):
        FoldAgreement(LABELS).add(np.zeros((3, 1, 2, 2), np.float32))
