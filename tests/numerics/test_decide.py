"""One label decision: nnU-Net's, head by head, and the one that the fused kernel makes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctseg.nnunet.plans import spec_from_plans
from ctseg.numerics.decide import REGION_THRESHOLD, labels_of_logits
from ctseg.numerics.prepare import PreparationRecord
from ctseg.numerics.restore import LabelRestorer
from tests.support.nnunet_plans import make_dataset, make_plans

LABELS = {"background": 0, "kidney": 1, "liver": 2, "tumour": 3}
REGIONS = {"background": 0, "organ": [1, 2, 3], "tumour and cyst": [2, 3], "tumour": 3}
DATASETS = {
    "labels": make_dataset(labels=LABELS),
    "regions": make_dataset(labels=REGIONS, regions_class_order=[1, 2, 3]),
    "regions in another order": make_dataset(labels=REGIONS, regions_class_order=[3, 1, 2]),
}
SHAPE = (3, 4, 5)
RECORD = PreparationRecord(
    SHAPE, (0, 1, 2), ((0, SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2])), (3.0, 2.0, 2.0), (3.0, 2.0, 2.0), SHAPE
)
# ties and what lies around the threshold of regions are frequent
LOGITS = st.sampled_from([-1.0, 0.0, 5e-8, float(REGION_THRESHOLD), 1.3e-7, 1.0, 1.0, 7.5])


@pytest.mark.parametrize("kind", DATASETS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), values=st.lists(LOGITS, min_size=3, max_size=8))
def test_decision_is_nnunets_and_the_fused_kernels(kind: str, seed: int, values: list[float]) -> None:
    plans, dataset = make_plans(), DATASETS[kind]
    spec = spec_from_plans(plans, dataset, "3d_fullres", name="model", mirror_axes=None, mirroring="none")
    logits = np.random.default_rng(seed).choice(np.float32(values), size=(spec.num_heads, *SHAPE))

    manager = PlansManager(plans).get_label_manager(dataset)
    expected = manager.convert_logits_to_segmentation(torch.from_numpy(logits)).numpy()
    np.testing.assert_array_equal(labels_of_logits(logits, spec), expected)

    restorer = LabelRestorer(spec, RECORD)
    restorer.add(logits)
    np.testing.assert_array_equal(restorer.finish(), expected)
